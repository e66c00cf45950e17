"""The findings of ``doctor`` against the schema of its JSON."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from pgbus_gevent.commands.finding import Finding

SCHEMA = Path(__file__).parents[2] / "docs/reference/doctor.schema.json"


@cache
def validator() -> Draft202012Validator:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def check_line(line: dict[str, Any]) -> dict[str, Any]:
    """Return what a line of ``doctor --json`` says. Raises ValidationError if the schema does not describe it."""
    validator().validate(line)
    return line


def checked(finding: Finding) -> Finding:
    """Return a finding. Raises ValidationError if the schema does not describe it."""
    check_line({**finding._asdict(), "figures": dict(finding.figures)})
    return finding
