"""The documents of the HTTP interface are valid, and a running server does what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from jsonschema import Draft7Validator, ValidationError
from openapi_parts import ASYNCAPI, OPENAPI, ROOT, check_frame, document
from openapi_spec_validator import validate
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from site_parts import PUBLISH_TOKEN, Site, running_site
from support import until

from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.sse_parser import ParsedFrame
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web import guesses, requests
from pgbus_gevent.web.received import Received
from pgbus_gevent.web.stream_app import StreamApp

OFFICIAL = ROOT / "tests/browser/node_modules/@asyncapi/specs/schemas/3.0.0.json"


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    """A site whose streams end soon, because a tool for requests waits for the end of an answer."""
    with (
        pytest.MonkeyPatch.context() as patch,
        running_site(pgbus_databases.make(), public=("*",), max_age=0.15) as site,
    ):
        patch.setattr(guesses, "TRIES", 10_000)  # or the requests with a wrong token would soon get 429
        patch.setattr(guesses, "DIFFERENT", 10_000)
        patch.setattr(Received, "_wait", lambda self, seconds: None)  # test_received looks at the time that it takes
        asked = requests._poll
        patch.setattr(requests, "_poll", lambda fields: None if asked(fields) is None else 0)  # the same for polls
        yield site


# OpenAPI --------------------------------------------------------------------------------------------------------------


def test_the_openapi_document_is_valid() -> None:
    validate(document(OPENAPI))


def test_it_describes_each_address_of_the_application_that_is_not_left_out(site: Site) -> None:
    routes = {path for path in site.app._routes if not path.startswith("/edges/")}
    assert set(document(OPENAPI)["paths"]) == {*routes, "/streams/{name}"}


OF_HTTP = {"ACCEPT", "ACCEPT_ENCODING", "AUTHORIZATION", "ORIGIN", "ACCESS_CONTROL_REQUEST_HEADERS"}
"""Headers that OpenAPI describes otherwise than as parameters, or not at all: media types, security and CORS."""


def test_it_names_each_request_header_that_an_address_reads() -> None:
    modules = ("stream_app", "element", "representations", "requests", "responses", "received", "backstage")
    code = "".join((ROOT / f"pgbus_gevent/web/{name}.py").read_text(encoding="utf-8") for name in modules)
    read = set(re.findall(r'"HTTP_([A-Z_]+)"', code)) - OF_HTTP
    described = document(OPENAPI)
    parameters = [
        *described["components"]["parameters"].values(),
        *(one for path in described["paths"].values() for method in path.values() for one in _parameters(method)),
    ]
    named = {one["name"].upper().replace("-", "_") for one in parameters if one.get("in") == "header"}
    # The cookie and the browser tell clients apart that share an address; what they say changes no answer.
    assert read - {"COOKIE", "USER_AGENT"} == named == {"LAST_EVENT_ID", "IF_NONE_MATCH", "TRACEPARENT"}


def _parameters(method: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = method.get("parameters", []) if isinstance(method, dict) else []
    return found


schema = schemathesis.openapi.from_path(OPENAPI)


@pytest.mark.slow
@schema.parametrize()
@hypothesis_settings(
    max_examples=5,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_server_does_what_the_openapi_document_says(case: Any, site: Site) -> None:
    headers = {"Authorization": f"Bearer {PUBLISH_TOKEN}"} if case.method == "POST" else {}
    excluded = {
        # It takes ?stream=x for a violation, because x is no list; but that is how a list of one is written.
        ("GET", "/streams"): [negative_data_rejection],
        # OpenAPI cannot say that a key is not allowed with ephemeral. And it takes the body `true` for a boolean and not a text,
        # and the token for missing, which we add.
        ("POST", "/streams/{name}"): [positive_data_acceptance, negative_data_rejection],
    }.get((case.method, case.path), [])
    case.call_and_validate(base_url=f"{site.url}/pgbus", headers=headers, timeout=20, excluded_checks=excluded)


def test_the_check_finds_an_answer_that_is_not_described(site: Site) -> None:
    original = site.app

    def teapot(environ: Any, start_response: Any) -> list[bytes]:
        start_response("418 I'm a Teapot", [("content-type", "text/plain")])
        return [b"short and stout"]

    site.app = teapot
    try:
        case = schema["/healthz"]["GET"].Case()
        with pytest.raises(FailureGroup, match="418"):
            case.call_and_validate(base_url=f"{site.url}/pgbus", timeout=20)
    finally:
        site.app = original


# AsyncAPI -------------------------------------------------------------------------------------------------------------


def test_the_asyncapi_document_is_valid() -> None:
    if not OFFICIAL.exists():
        pytest.skip("the official schema is not installed: npm ci --prefix tests/browser")
    Draft7Validator(json.loads(OFFICIAL.read_text(encoding="utf-8"))).validate(document(ASYNCAPI))


def frames_of(client: StreamClient) -> list[ParsedFrame]:
    return [frame for frame in client.frames if frame.dispatches]


@pytest.mark.slow
def test_each_frame_that_a_running_server_sends_is_described(pgbus_databases: TestDatabases) -> None:
    """All kinds: greeting, messages, ephemeral messages, gaps, presence, another identity, farewells."""
    seen: set[str] = set()
    who = {"owner": "ada"}

    def authorize(environ: Any, stream: str) -> Subscriber:
        return Subscriber(owner=who["owner"], member=who["owner"] if stream.startswith("room:") else None)

    with running_site(pgbus_databases.make(), public=("*",), presence=("room:*",), recheck=0.2) as site:
        site.app = StreamApp(site.instance, authorize=authorize)
        bus = site.bus
        many = "/pgbus/streams?stream=a&stream=room:b&stream=c"
        with (
            StreamClient(site.url, "/pgbus/streams/a", headers={"Last-Event-ID": "nonsense"}) as one,
            StreamClient(site.url, many) as several,
        ):
            one.next("pgbus:gap-detected")
            several.next("pgbus:connected")
            bus.stream("a").broadcast("two\nlines", event="order.paid")
            bus.stream("a").broadcast("")
            bus.stream("c").broadcast("é", ephemeral=True, event="hint")
            bus.stream("room:b").presence.join("max", {"name": "Max"})
            several.next("presence")
            until(lambda: "é" in [frame.data for frame in several.frames], "the ephemeral message is here")
            until(lambda: len(one.messages) == 2, "both messages are here")
            who["owner"] = "eve"
            one.next("pgbus:identity")
            several.next("pgbus:identity")
            bus.disconnect("eve")  # only those that are hers by now
            several.next("pgbus:shutdown")
            one.next("pgbus:shutdown")
            found = frames_of(one) + frames_of(several)
        with StreamClient(site.url, f"/pgbus/streams/a?since={2**53 - 1}") as ahead:
            assert json.loads(ahead.next("pgbus:gap-detected").data)["reason"] == "ahead"
            found += frames_of(ahead)
        seen = {check_frame(frame) for frame in found}
    assert seen == set(document(ASYNCAPI)["components"]["messages"])


@pytest.mark.parametrize(
    "frame",
    [
        ParsedFrame(event="pgbus:shutdown", data='{"reason":"boredom"}', dispatches=True),
        ParsedFrame(event="pgbus:shutdown", data='{"reason":"restart"}', id="5", dispatches=True),
        ParsedFrame(event="pgbus:connected", data="{}", id="5", retry=2000, dispatches=True),
        ParsedFrame(data="x", id="five", dispatches=True),
    ],
)
def test_a_frame_that_is_not_described_is_found(frame: ParsedFrame) -> None:
    with pytest.raises(ValidationError):
        check_frame(frame)
