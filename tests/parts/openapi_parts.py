"""The documents of the HTTP interface, and checks of frames against the one for frames."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from pgbus_gevent.core.sse_parser import ParsedFrame

ROOT = Path(__file__).parents[2]
OPENAPI = ROOT / "docs/reference/openapi.yaml"
ASYNCAPI = ROOT / "docs/reference/asyncapi.yaml"


@cache
def document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


@cache
def _validator(place: str) -> Draft202012Validator:
    """Return the validator of a schema in the AsyncAPI document, given by its JSON pointer."""
    whole = Resource.from_contents(document(ASYNCAPI), default_specification=DRAFT202012)
    registry = Registry().with_resource("asyncapi", whole)  # type: ignore[var-annotated]
    return Draft202012Validator({"$ref": f"asyncapi#{place}"}, registry=registry)


CONTROL = {"pgbus:connected": "connected", "pgbus:gap-detected": "gapDetected", "pgbus:identity": "identity",
           "pgbus:shutdown": "shutdown", "presence": "presence"}  # fmt: skip


def kind_of_frame(frame: ParsedFrame) -> str:
    """Return the name of a frame in the AsyncAPI document. Raises AssertionError for a control frame that is not there."""
    if frame.event in CONTROL:
        return CONTROL[frame.event]
    assert not frame.event.startswith("pgbus:"), f"{frame.event} is not in the document"
    return "message" if frame.id is not None else "ephemeral"


def check_frame(frame: ParsedFrame) -> str:
    """Check a frame that a server sent, and return which message of the document it is. Raises ValidationError."""
    kind = kind_of_frame(frame)
    fields: dict[str, Any] = {} if frame.event == "message" else {"event": frame.event}
    fields |= {name: value for name, value in (("id", frame.id), ("retry", frame.retry)) if value is not None}
    _validator(f"/components/messages/{kind}/headers").validate(fields)
    text = kind in ("message", "ephemeral")
    _validator(f"/components/messages/{kind}/payload").validate(frame.data if text else json.loads(frame.data))
    return kind
