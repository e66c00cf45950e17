"""The HTTP interface from outside: every status, header and refusal."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic, time
from typing import Any
from urllib.parse import quote
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import bottle
import gevent
import psycopg2.extensions as ext
import pytest
from gevent.pywsgi import WSGIServer
from raw_http import Answer, ask, connected, exchange, get, parse, read_to_end, read_until, wait_for
from site_parts import DEADLINE, MAX_BODY, PUBLISH_TOKEN, Site, impatient_site, running_site

from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.errors import PoolTimeout
from pgbus_gevent.hosts.pywsgi import listen
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web.stream_app import StreamApp

STREAM = "demo:a"
ORIGIN = "https://shop.example:8443"
EVENTS = {"Accept": "text/event-stream"}
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
    "x-content-type-options": "nosniff",
    "connection": "close",
}


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_site(pgbus_databases.make()) as site:
        yield site


@pytest.fixture(scope="module")
def impatient(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with impatient_site(pgbus_databases.make()) as site:
        yield site


@pytest.fixture(scope="module")
def cors_site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    """A site whose streams pages of other origins may read."""
    with running_site(pgbus_databases.make(), cors_origins=(ORIGIN, "http://localhost:3000")) as site:
        yield site


@pytest.fixture
def app(site: Site) -> Iterator[Callable[[Any], None]]:
    """Return a function that replaces the application of the site for one test."""
    original = site.app

    def put(application: Any) -> None:
        site.app = application

    yield put
    site.app = original


def head_of_stream(port: int, target: str = f"/pgbus/streams/{STREAM}", version: str = "1.1", **headers: str) -> Answer:
    """Return status and headers of a stream, without waiting for its end."""
    with connected(port, get(target, headers, version)) as sock:
        raw = read_until(sock, b"pgbus:connected")
    return parse(raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n", "HEAD")


# addresses and methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/", "/other", "/pgbus", "/pgbus/", "/pgbusx", "/pgbus/nothing", "/pgbus/streamsx", "/pgbus/healthz/", "/PGBUS/healthz",
     "/pgbus//healthz", "/pgbus/%FF", "//pgbus/healthz"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
def test_an_unknown_path_is_404_for_any_method(path: str, method: str, site: Site) -> None:
    answer = ask(site.port, path, method)
    assert answer.status == 404
    assert answer.body == (b"" if method == "HEAD" else b"not found\n")


ALLOWED = {
    "/healthz": "GET, HEAD",
    "/readyz": "GET, HEAD",
    f"/streams?stream={STREAM}": "GET, HEAD",
    f"/streams/{STREAM}": "GET, HEAD, POST",
}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "get"])
@pytest.mark.parametrize("path", ALLOWED)
def test_another_method_is_405_with_allow(path: str, method: str, site: Site) -> None:
    if method in ALLOWED[path]:
        return
    answer = ask(site.port, f"/pgbus{path}", method, b"body")
    assert (answer.status, answer.headers["allow"]) == (405, ALLOWED[path])
    assert answer.line == f"this address takes {ALLOWED[path]}"


def as_get_and_head(site: Site, path: str) -> tuple[bytes, bytes]:
    request = get(f"/pgbus{path}", {"Connection": "close"})
    return exchange(site.port, request), exchange(site.port, b"HEAD" + request[3:])


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/nothing", "/streams", "/streams/unknown", f"/streams/{STREAM}?since=x"]
)
def test_a_head_answers_like_its_get_without_the_body(path: str, site: Site) -> None:
    until_settled(site)
    whole, head = (raw.partition(b"\r\n\r\n") for raw in as_get_and_head(site, path))
    assert head[2] == b"" and whole[2]
    assert undated(head[0]) == undated(whole[0])


def until_settled(site: Site) -> None:
    """Wait until the answer of readyz changes no more."""
    wait_for(
        lambda: json.loads(site.get("/readyz").body) == {"status": "ready", "steward": "this worker"},
        "it is the steward",
    )


def undated(head: bytes) -> list[bytes]:
    return sorted(line for line in head.lower().split(b"\r\n") if not line.startswith(b"date:"))


@pytest.mark.parametrize("path", [f"/streams/{STREAM}", f"/streams?stream={STREAM}&since=0"])
def test_a_head_of_a_stream_has_its_headers_and_ends(path: str, site: Site) -> None:
    raw = exchange(site.port, b"HEAD" + get(f"/pgbus{path}")[3:])
    assert raw.endswith(b"\r\n\r\n")
    assert parse(raw, "HEAD").headers.keys() - {"date"} == STREAM_HEADERS.keys()
    assert len(site.instance.registry) == 0


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_stream_has_exactly_these_headers(version: str, site: Site) -> None:
    answer = head_of_stream(site.port, version=version)
    assert answer.status == 200
    framing = {} if version == "1.0" else {"transfer-encoding": "chunked"}
    assert {name: value for name, value in answer.headers.items() if name != "date"} == STREAM_HEADERS | framing


@pytest.mark.parametrize("header", ["Transfer-Encoding: chunked", "Content-Length: 3"])
def test_the_body_of_a_get_is_ignored(header: str, site: Site) -> None:
    body = b"3\r\nabc\r\n0\r\n\r\n" if "chunked" in header else b"abc"
    request = f"GET /pgbus/streams/{STREAM} HTTP/1.1\r\nHost: test\r\n{header}\r\n\r\n".encode() + body
    with connected(site.port, request + get("/pgbus/healthz")) as sock:
        read_until(sock, b"pgbus:connected")
        site.bus.stream(STREAM).broadcast("goes on")
        assert b"HTTP/1.1" not in read_until(sock, b"goes on")


# cors ----------------------------------------------------------------------------------------------------------------

CORS_PATHS = {
    "healthz": ("/healthz", 200),
    "an unknown path": ("/nothing", 404),
    "an unknown stream": ("/streams/unknown", 404),
    "a malformed cursor": (f"/streams/{STREAM}?since=x", 400),
    "no stream": ("/streams", 400),
}


@pytest.mark.parametrize(("path", "status"), CORS_PATHS.values(), ids=list(CORS_PATHS))
@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000"])
def test_errors_have_cors_headers_for_a_configured_origin(path: str, status: int, origin: str, cors_site: Site) -> None:
    answer = cors_site.get(path, Origin=origin)
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["vary"] == "origin"


def test_a_stream_has_cors_headers_for_a_configured_origin(cors_site: Site) -> None:
    headers = head_of_stream(cors_site.port, Origin=ORIGIN).headers
    assert headers["access-control-allow-origin"] == ORIGIN
    assert headers["vary"] == "origin"


def test_405_and_401_have_cors_headers_for_a_configured_origin(cors_site: Site) -> None:
    for method, status in (("DELETE", 405), ("POST", 401)):
        answer = ask(cors_site.port, f"/pgbus/streams/{STREAM}", method, Origin=ORIGIN)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)


@pytest.mark.parametrize(
    "origin",
    ["https://shop.example", "https://shop.example:8443/", "http://shop.example:8443", "https://SHOP.example:8443",
     "https://shop.example:84430", "https://evil.shop.example:8443", "null", "*", "", "https://shop.example:8443,https://evil"],
)  # fmt: skip
def test_a_similar_origin_gets_no_cors_headers(origin: str, cors_site: Site) -> None:
    for headers in (
        cors_site.get("/healthz", Origin=origin).headers,
        head_of_stream(cors_site.port, Origin=origin).headers,
    ):
        assert "access-control-allow-origin" not in headers
        assert headers["vary"] == "origin"


def test_without_configured_origins_there_is_no_cors_header(site: Site) -> None:
    headers = site.get("/healthz", Origin=ORIGIN).headers
    assert "vary" not in headers and "access-control-allow-origin" not in headers


# cursors -------------------------------------------------------------------------------------------------------------

MALFORMED = ["", "x", "-1", "+5", " 5", "5 ", "5\n", "1e3", "5.0", "0x5", "٥", "５", "1_000", "9007199254740992", "5,6",
             "5;6", "\0", "1" * 17, "<script>", "a" * 3000, "0~1.2", "null", "NaN", "🚀"]  # fmt: skip


@pytest.mark.parametrize(("name", "what"), [("since", "a cursor"), ("replay", "a count of messages")])
@pytest.mark.parametrize("value", MALFORMED)
def test_a_malformed_cursor_or_count_is_400_and_the_body_says_why_without_repeating_it_raw(
    name: str, what: str, value: str, site: Site
) -> None:
    for path in (f"/streams/{STREAM}?{name}={quote(value)}", f"/streams?stream={STREAM}&{name}={quote(value)}"):
        answer = site.get(path)
        assert answer.status == 400
        assert re.fullmatch(rf"{name}='.*' is not {what}: it is a number from 0 to 9007199254740991", answer.line)
        assert answer.body.isascii() and len(answer.body) < 300
        assert "\0" not in answer.line


@pytest.mark.parametrize("name", ["since", "replay"])
def test_a_cursor_that_is_given_twice_is_400(name: str, site: Site) -> None:
    answer = site.get(f"/streams/{STREAM}?{name}=1&{name}=1")
    assert (answer.status, answer.line) == (400, f"{name} is given 2 times")


def test_a_plus_sign_in_the_query_is_a_space_and_no_cursor(site: Site) -> None:
    assert site.get(f"/streams/{STREAM}?since=+5").status == 400


@pytest.mark.parametrize("value", ["0", "00", "5", "0000000000000005", "9007199254740991"])
def test_a_number_below_2_to_the_53_is_a_cursor(value: str, site: Site) -> None:
    with site.watch(STREAM, f"since={value}") as client:
        client.next("pgbus:connected")
        assert client.response is not None and client.response.status == 200


def test_a_stream_begins_according_to_since_or_replay_or_with_new_messages(site: Site) -> None:
    stream = site.bus.stream("demo:begin")
    ids = [stream.broadcast(f"{n}") for n in range(5)]
    expected = {
        "since=0": "01234",
        f"since={ids[2]}": "34",
        "replay=2": "34",
        "replay=0": "",
        "replay=99": "01234",
        "": "",
    }
    for query, before in expected.items():
        with site.watch("demo:begin", query) as client:
            client.next("pgbus:connected")
            found = "".join(client.next().data for _ in before)
            assert found == before, query
            stream.broadcast("new")
            assert client.next().data == "new", query
        with site.bus.transaction() as cursor:
            cursor.execute("delete from pgbus.messages where data = 'new'")


def test_last_event_id_wins_over_the_query(site: Site) -> None:
    stream = site.bus.stream("demo:wins")
    ids = [stream.broadcast(f"{n}") for n in range(4)]
    for query in ("since=0", "replay=4", f"since={ids[3]}", ""):
        with site.watch("demo:wins", query, Last_Event_ID=str(ids[1])) as client:
            assert [client.next().data, client.next().data] == ["2", "3"], query


def test_an_empty_last_event_id_is_none(site: Site) -> None:
    site.bus.stream("demo:empty").broadcast("0")
    with site.watch("demo:empty", "since=0", Last_Event_ID="") as client:
        assert client.next().data == "0"


def test_a_malformed_since_is_400_despite_a_last_event_id(site: Site) -> None:
    assert site.get(f"/streams/{STREAM}?since=x", Last_Event_ID="5").status == 400


MALFORMED_HEADERS = [value.encode() for value in MALFORMED if value.strip() and value.strip() not in ("5", "\0")] + [
    b"\xff\xfe",
    "é".encode("latin-1"),
    b"x" * 9000,
    b"'; drop table",
    b"1~2~3",
    b"5 6",
]


@pytest.mark.parametrize("value", MALFORMED_HEADERS)
def test_a_malformed_last_event_id_gets_the_live_stream_and_a_gap_event(value: bytes, site: Site) -> None:
    with site.bus as bus:
        old = bus.stream("demo:malformed").broadcast("old")
    request = get("/pgbus/streams/demo:malformed?since=0").replace(
        b"\r\n\r\n", b"\r\nLast-Event-ID: " + value + b"\r\n\r\n"
    )
    with connected(site.port, request) as sock:
        raw = read_until(sock, b"invalid-cursor")
        raw += read_until(sock, b"\n\n") if b"\n\n" not in raw.partition(b"invalid-cursor")[2] else b""
        site.bus.stream("demo:malformed").broadcast("live")
        raw += read_until(sock, b"data: live\n")
    assert raw.startswith(b"HTTP/1.1 200 OK\r\n")
    (gap,) = re.findall(rb"event: pgbus:gap-detected\ndata: (.*)\n", raw)
    told = json.loads(gap)
    assert (told["reason"], told["requestedId"], told["stream"]) == ("invalid-cursor", None, "demo:malformed")
    assert told["lastId"] == old
    assert b"data: old" not in raw
    assert len(value) < 3 or value not in raw.replace(b"null", b"")


def test_a_last_event_id_too_large_for_a_request_head_is_400(site: Site) -> None:
    assert site.get(f"/streams/{STREAM}", Last_Event_ID="x" * 40000).status == 400


# broadcasting --------------------------------------------------------------------------------------------------------


def test_a_broadcast_is_201_with_the_id_and_reaches_connected_clients(site: Site) -> None:
    with site.watch("demo:news") as client:
        client.next("pgbus:connected")
        answer = site.publish("demo:news", "grüße\nzeile".encode(), "event=greeting")
        assert answer.status == 201 and answer.headers["content-type"] == "application/json"
        frame = client.next("greeting")
        assert (frame.data, frame.id) == ("grüße\nzeile", str(json.loads(answer.body)["id"]))


def test_every_field_of_a_broadcast_is_stored(site: Site) -> None:
    query = f"event=order.paid&visible_to=admins&exclude=c0ffee&key={quote('order 7/paid ü')}"
    id = json.loads(site.publish("demo:fields", b"x", query).body)["id"]
    (message,) = site.bus.stream("demo:fields").read_after(id - 1)
    assert (message.id, message.event, message.data, message.visible_to, message.exclude) == (
        id, "order.paid", "x", "admins", "c0ffee"
    )  # fmt: skip
    again = site.publish("demo:fields", b"y", query)
    assert (again.status, json.loads(again.body)) == (201, {"id": id})


@pytest.mark.parametrize("query", ["event=hint&ephemeral=1", "event=hint&ephemeral=true", "event=hint&ephemeral=yes"])
def test_an_ephemeral_broadcast_has_no_id_and_is_not_stored(query: str, site: Site) -> None:
    with site.watch("demo:ephemeral") as client:
        client.next("pgbus:connected")
        answer = site.publish("demo:ephemeral", b"x", query)
        assert (answer.status, json.loads(answer.body)) == (201, {"id": None})
        frame = client.next("hint")
        assert (frame.data, frame.id) == ("x", None)
    assert site.bus.stream("demo:ephemeral").read_after(0) == []


def test_a_broadcast_takes_a_signed_name(site: Site) -> None:
    assert site.publish(site.sign("orders")).status == 201
    assert len(site.bus.stream("orders").read_after(0)) == 1
    assert site.publish(site.sign("orders", expires_in=-1)).status == 403
    assert site.publish("orders").status == 404


def test_an_empty_body_is_a_message_without_data(site: Site) -> None:
    for body in (b"", parts()):
        id = json.loads(site.publish("demo:empty-body", body).body)["id"]
        (message,) = site.bus.stream("demo:empty-body").read_after(id - 1)
        assert message.data == ""


BAD_BROADCASTS = {
    "an event of ours": (
        "event=pgbus:shutdown",
        b"x",
        "event names that start with 'pgbus:' are reserved for control frames: choose another",
    ),
    "a line break in the event": ("event=a%0Adata:+b", b"x", "an event name has no line break or NUL: 'a\\ndata: b'"),
    "a NUL in the event": ("event=a%00", b"x", "an event name has no line break or NUL"),
    "a NUL in visible_to": ("visible_to=%00", b"x", "visible_to is empty, or has a NUL"),
    "an empty exclude": ("exclude=", b"x", "exclude is empty, or has a NUL"),
    "an empty key": ("key=", b"x", "key is empty, or has a NUL"),
    "two events": ("event=a&event=b", b"x", "event is given 2 times"),
    "two keys": ("key=a&key=a", b"x", "key is given 2 times"),
    "ephemeral with a key": ("ephemeral=1&key=a", b"x", "an ephemeral message is not stored, so it cannot have a key"),
    "ephemeral, perhaps": ("ephemeral=perhaps", b"x", "ephemeral='perhaps' is neither 1 nor 0"),
    "ephemeral, empty": ("ephemeral=", b"x", "ephemeral='' is neither 1 nor 0"),
    "a query that is not UTF-8": ("event=%FF", b"x", "the query is not UTF-8"),
    "a body that is not UTF-8": ("", b"\xff", "the body is not UTF-8"),
    "a surrogate in the body": ("", b"\xed\xa0\x80", "the body is not UTF-8"),
    "a NUL in the body": ("", b"a\0b", "data has a NUL character in it"),
}


@pytest.mark.parametrize(("query", "body", "complaint"), BAD_BROADCASTS.values(), ids=list(BAD_BROADCASTS))
def test_an_invalid_broadcast_is_400_and_adds_nothing(query: str, body: bytes, complaint: str, site: Site) -> None:
    answer = site.publish("demo:bad", body, query)
    assert answer.status == 400 and answer.line.startswith(complaint)
    assert site.bus.stream("demo:bad").read_after(0) == []


def parts(*chunks: bytes) -> Iterator[bytes]:
    """Return a body that http.client sends chunked."""
    yield from chunks


def test_a_body_up_to_the_limit_is_taken_and_a_longer_one_is_413(site: Site) -> None:
    for whole in (True, False):
        body = b"x" * MAX_BODY
        assert site.publish("demo:size", body if whole else parts(body)).status == 201
        answer = site.publish("demo:size", body + b"x" if whole else parts(body, b"x"))
        assert (answer.status, answer.line) == (413, f"the body has more than {MAX_BODY} bytes")
    assert len(site.bus.stream("demo:size").read_after(0)) == 2


def test_a_body_a_megabyte_over_the_limit_is_413_and_not_a_reset(site: Site) -> None:
    assert site.publish("demo:size", b"x" * 2_000_000).status == 413
    assert site.publish("demo:size", parts(*[b"x" * 65536] * 40)).status == 413


def request_head(*lines: str) -> bytes:
    head = [f"POST /pgbus/streams/{STREAM} HTTP/1.1", "Host: test", f"Authorization: Bearer {PUBLISH_TOKEN}", *lines]
    return "\r\n".join([*head, "", ""]).encode()


@pytest.mark.parametrize("head", [request_head("Content-Length: 9"), request_head("Transfer-Encoding: chunked")])
def test_a_body_that_trickles_in_is_408_at_the_deadline(head: bytes, impatient: Site) -> None:
    with connected(impatient.port, head) as sock:

        def trickle() -> None:
            try:
                while True:
                    sock.sendall(b"1\r\nx\r\n" if b"chunked" in head else b"x")
                    gevent.sleep(DEADLINE / 3)
            except OSError:
                pass

        trickler = gevent.spawn(trickle)
        answer = parse(read_to_end(sock))
        trickler.kill()
    assert answer.status == 408 and answer.headers["connection"] == "close"


def test_a_body_that_stops_is_408_and_one_that_ends_early_is_400(site: Site, impatient: Site) -> None:
    request = request_head("Content-Length: 9") + b"abc"
    assert parse(exchange(impatient.port, request)).status == 408
    with connected(site.port, request) as sock:
        sock.shutdown(socket.SHUT_WR)
        answer = parse(read_to_end(sock))
    assert (answer.status, answer.line) == (400, "the body ended early, or is malformed")


def test_a_malformed_chunk_in_a_broadcast_is_400(site: Site) -> None:
    raw = exchange(site.port, request_head("Transfer-Encoding: chunked") + b"zz\r\n" + get("/pgbus/healthz"))
    assert parse(raw).status == 400 and raw.count(b"HTTP/1.1 ") == 1


BAD_TOKENS = {
    "none": {"Authorization": ""},
    "another": {"Authorization": "Bearer publish-token-of-another-site"},
    "a part of it": {"Authorization": f"Bearer {PUBLISH_TOKEN[:-1]}"},
    "more than it": {"Authorization": f"Bearer {PUBLISH_TOKEN}x"},
    "in upper case": {"Authorization": f"Bearer {PUBLISH_TOKEN.upper()}"},
    "without a scheme": {"Authorization": PUBLISH_TOKEN},
    "another scheme": {"Authorization": f"Basic {PUBLISH_TOKEN}"},
    "letters beyond ASCII": {"Authorization": "Bearer tökén"},
    "twice": {"Authorization": f"Bearer {PUBLISH_TOKEN}, Bearer {PUBLISH_TOKEN}"},
}


@pytest.mark.parametrize("headers", BAD_TOKENS.values(), ids=list(BAD_TOKENS))
def test_a_bad_publish_token_is_401_for_every_stream(
    headers: dict[str, str], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgbus_gevent.web.guesses.Guesses.note", lambda *_: True)
    for name in (STREAM, "unknown", site.sign("orders", expires_in=-1)):
        answer = site.publish(name, **headers)
        assert (answer.status, answer.line) == (401, "the publish token is missing or wrong")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_the_scheme_of_the_token_may_be_in_any_case(site: Site) -> None:
    assert site.publish(STREAM, Authorization=f"bEARER {PUBLISH_TOKEN}").status == 201


def test_each_of_several_publish_tokens_is_accepted(pgbus_databases: TestDatabases) -> None:
    tokens = ("the-old-publish-token", "the-new-publish-token")
    with running_site(pgbus_databases.make(), publish_token=tokens) as site:
        for token in tokens:
            assert site.publish(STREAM, Authorization=f"Bearer {token}").status == 201
        assert site.publish(STREAM, Authorization=f"Bearer {','.join(tokens)}").status == 401


def test_the_token_in_the_query_does_not_count(site: Site) -> None:
    assert site.publish(STREAM, b"x", f"access_token={PUBLISH_TOKEN}", Authorization="").status == 401


def test_without_a_publish_token_broadcasting_is_403(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make(), publish_token=()) as site:
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer "}, {"Authorization": "Bearer None"}):
            answer = site.publish(STREAM, **headers)
            assert (answer.status, answer.line) == (
                403,
                "broadcasting over HTTP is off: set PGBUS_PUBLISH_TOKEN to turn it on",
            )


def test_a_broadcast_without_a_free_connection_is_503(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make(), pool_size=1, pool_timeout=0.2) as site:
        with ExitStack() as stack:

            def is_taken() -> bool:
                with suppress(PoolTimeout):  # a task of the site has it for now
                    stack.enter_context(site.instance.database.pool.connection())
                    return True
                return False

            wait_for(is_taken, "the connection is free")
            answer = site.publish(STREAM)
        assert (answer.status, answer.line) == (503, "the database is not available now")
        wait_for(lambda: site.publish(STREAM).status == 201, "the connection is free again")


def test_a_broadcast_that_the_database_refuses_is_500_and_only_the_log_says_why(
    pgbus_databases: TestDatabases, caplog: pytest.LogCaptureFixture
) -> None:
    with running_site(pgbus_databases.make()) as site:
        with site.bus.transaction() as cursor:
            cursor.execute("alter table pgbus.messages add constraint no_secrets check (data <> 'secret')")
        answer = site.publish(STREAM, b"secret")
        assert (answer.status, answer.line) == (500, "the database refused the broadcast; the server's log says why")
        (error,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert "no_secrets" in error and "\n" not in error


# health and refusals -------------------------------------------------------------------------------------------------


def test_a_healthy_site_says_so_in_json(site: Site) -> None:
    until_settled(site)
    health, readiness = site.get("/healthz"), site.get("/readyz")
    assert health.status == 200
    assert health.headers["content-type"] == readiness.headers["content-type"] == "application/json"
    told = json.loads(health.body)
    assert told["status"] == "ok"
    assert set(told["parts"].values()) == {"running"} and {"listener", "dispatcher", "heartbeat"} <= set(told["parts"])


def check_refusal(site: Site, reason: str) -> None:
    """Check that the site refuses streams for a passing reason: an EventSource comes back, other clients get 503."""
    took = []
    for accept in ("text/event-stream", "text/html, text/event-stream;q=0.9", "Text/Event-Stream"):
        began = monotonic()
        raw = exchange(site.port, get(f"/pgbus/streams/{STREAM}", {"Accept": accept}))
        took.append(monotonic() - began)
        answer = parse(raw)
        assert answer.status == 200
        assert STREAM_HEADERS.items() <= answer.headers.items()
        match = re.fullmatch(rb'retry: (\d+)\nevent: pgbus:shutdown\ndata: {"reason":"(.*)"}\n\n', answer.body)
        assert match is not None and match[2].decode() == reason
        assert 5000 <= int(match[1]) <= 15000
    assert min(took) < 2, "they were held"  # the quickest, because this process may stand still
    for headers in ({}, {"Accept": "*/*"}, {"Accept": "text/html"}):
        answer = site.get(f"/streams/{STREAM}", **headers)
        assert (answer.status, answer.line) == (503, f"not now: {reason}")
        assert 5 <= int(answer.headers["retry-after"]) <= 15
    head = ask(site.port, f"/pgbus/streams/{STREAM}", "HEAD", **EVENTS)
    assert (head.status, head.body) == (200, b"")
    assert ask(site.port, f"/pgbus/streams/{STREAM}", "HEAD").status == 503
    # An error in the request itself takes precedence.
    assert site.get("/streams/unknown", **EVENTS).status == 404
    assert site.get(f"/streams/{STREAM}?since=x", **EVENTS).status == 400


def test_retry_times_are_spread(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make()) as site:
        site.instance.shutdown()
        answers = [site.get(f"/streams/{STREAM}", **EVENTS).body.partition(b"\n")[0] for _ in range(20)]
        assert len(set(answers)) > 10


def test_a_draining_site_refuses_with_restart_and_is_not_ready(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make()) as site:
        site.instance.shutdown()
        check_refusal(site, "restart")
        readiness, health = site.get("/readyz"), site.get("/healthz")
        assert (readiness.status, health.status) == (503, 503)
        assert {"status": "unready", "reason": "restart"}.items() <= json.loads(readiness.body).items()
        assert json.loads(health.body)["parts"]["listener"] == "stopped"


def test_a_full_site_refuses_with_overloaded_and_is_not_ready_until_there_is_room(
    pgbus_databases: TestDatabases,
) -> None:
    with running_site(pgbus_databases.make(), max_connections=1) as site:
        with site.watch(STREAM) as client:
            client.next("pgbus:connected")
            check_refusal(site, "overloaded")
            told = json.loads(site.get("/readyz").body)
            assert {"status": "unready", "reason": "overloaded"}.items() <= told.items()
            assert (site.get("/readyz").status, site.get("/healthz").status) == (503, 200)
        wait_for(lambda: len(site.instance.registry) == 0, "the client's leaving is noticed")
        wait_for(lambda: site.get("/readyz").status == 200, "it is ready")
        with site.watch(STREAM) as client:
            client.next("pgbus:connected")


def close_database(databases: TestDatabases, url: str, allow: bool) -> None:
    """Refuse all connections to a database, or allow them again."""
    name = ext.parse_dsn(url)["dbname"]
    databases._run(f'alter database "{name}" allow_connections {str(allow).lower()}')
    if not allow:
        databases._run(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")


def test_a_site_without_its_database_refuses_with_unavailable_until_it_is_back(pgbus_databases: TestDatabases) -> None:
    url = pgbus_databases.make()
    with running_site(url, away_after=0.5) as site:
        close_database(pgbus_databases, url, False)
        try:
            wait_for(lambda: site.get("/readyz").status == 503, "it is not ready")
            check_refusal(site, "unavailable")
            told = json.loads(site.get("/readyz").body)
            assert (told["status"], told["reason"]) == ("unready", "unavailable")
            assert re.fullmatch(r"the database has not answered for \d+ s", told["detail"])
            assert site.get("/healthz").status == 200
            answer = site.publish(STREAM)
            assert (answer.status, answer.line) == (503, "the database is not available now")
            assert int(answer.headers["retry-after"]) >= 1
        finally:
            close_database(pgbus_databases, url, True)
        wait_for(lambda: site.get("/readyz").status == 200, "it is ready again", 40)
        assert site.publish(STREAM).status == 201


def test_a_polling_site_without_its_database_is_not_ready_either(pgbus_databases: TestDatabases) -> None:
    url = pgbus_databases.make()
    with running_site(url, wake="poll", away_after=2.0) as site:
        wait_for(lambda: site.get("/readyz").status == 200, "it is ready")
        close_database(pgbus_databases, url, False)
        try:
            wait_for(
                lambda: site.instance.pulse.trouble and site.instance.pulse.silence > 2.5, "no answer comes any more"
            )
            answer = site.get("/readyz")
            assert (answer.status, json.loads(answer.body)["reason"]) == (503, "unavailable")
        finally:
            close_database(pgbus_databases, url, True)


# the authorize hook --------------------------------------------------------------------------------------------------


def test_a_hook_gets_the_request_and_the_stream_and_can_allow_it(site: Site, app: Callable[[Any], None]) -> None:
    asked: list[tuple[str, str]] = []

    def authorize(environ: Any, stream: str) -> bool:
        asked.append((environ["HTTP_COOKIE"], stream))
        return True

    app(StreamApp(site.instance, authorize))
    with site.watch(site.sign("orders"), Cookie="user=7") as client:
        client.next("pgbus:connected")
    assert asked == [("user=7", "orders")]


def fails(environ: Any, stream: str) -> bool:
    raise RuntimeError("a bug in the hook")


def times_out(environ: Any, stream: str) -> bool:
    raise gevent.Timeout(1)


def ends_the_process(environ: Any, stream: str) -> bool:
    raise SystemExit(1)


def is_interrupted(environ: Any, stream: str) -> bool:
    raise KeyboardInterrupt


REFUSING_HOOKS: dict[str, tuple[Callable[[Any, str], Any], str | None]] = {
    "says no": (lambda environ, stream: False, None),
    "says nothing": (lambda environ, stream: None, "answered a NoneType"),
    "says something that is true": (lambda environ, stream: "yes", "answered a str"),
    "says 1": (lambda environ, stream: 1, "answered a int"),
    "raises": (fails, "the authorize hook raised for stream 'demo:a': refused"),
    "ends the process": (ends_the_process, "the authorize hook raised for stream 'demo:a': refused"),
    "is interrupted": (is_interrupted, "the authorize hook raised for stream 'demo:a': refused"),
    "times out": (times_out, "the authorize hook raised for stream 'demo:a': refused"),
}


@pytest.mark.parametrize(("hook", "logged"), REFUSING_HOOKS.values(), ids=list(REFUSING_HOOKS))
def test_a_client_that_the_hook_does_not_allow_gets_403(
    hook: Any, logged: str | None, site: Site, app: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    app(StreamApp(site.instance, hook))
    answer = site.get(f"/streams/{STREAM}", **EVENTS)
    assert (answer.status, answer.line) == (403, "you may not watch this stream")
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == (0 if logged is None else 1)
    assert logged is None or logged in errors[0]


def test_the_hook_is_not_asked_about_names_that_do_not_verify(site: Site, app: Callable[[Any], None]) -> None:
    app(StreamApp(site.instance, fails))
    assert site.get("/streams/unknown").status == 404
    assert site.get(f"/streams/{STREAM}?since=x").status == 400


def test_a_connection_gets_the_subscriber_that_the_hook_returns(site: Site, app: Callable[[Any], None]) -> None:
    app(StreamApp(site.instance, lambda environ, stream: Subscriber("ada", {"is_admin": True}, "ada-1", time() + 60)))
    with site.watch(STREAM) as client:
        client.next("pgbus:connected")
        (connection,) = site.instance.registry.clients()
        (subscription,) = connection.subscriptions
        assert subscription.place.subscriber[:3] == ("ada", {"is_admin": True}, "ada-1")
        assert connection.owner == "ada"
        assert connection.expires_at is not None and 50 < connection.expires_at - time() <= 60


def test_the_earlier_expiry_of_token_and_subscriber_counts(site: Site, app: Callable[[Any], None]) -> None:
    for token_ends, hook_ends in ((1000, 60), (60, 1000), (60, None), (None, 60)):
        ends = None if hook_ends is None else time() + hook_ends
        app(StreamApp(site.instance, lambda environ, stream, ends=ends: Subscriber(expires_at=ends)))
        with site.watch(site.sign("orders", expires_in=token_ends)) as client:
            client.next("pgbus:connected")
            (connection,) = site.instance.registry.clients()
            assert connection.expires_at is not None
            assert 50 < connection.expires_at - time() <= 60
        wait_for(lambda: len(site.instance.registry) == 0, "the client's leaving is noticed")


def test_an_expired_subscriber_is_403(site: Site, app: Callable[[Any], None]) -> None:
    app(StreamApp(site.instance, lambda environ, stream: Subscriber(expires_at=time() - 1)))
    answer = site.get(f"/streams/{STREAM}", **EVENTS)
    assert (answer.status, answer.line) == (403, "the right to watch this stream has expired")


# wsgi ----------------------------------------------------------------------------------------------------------------


def call(application: Any, path: str, method: str = "GET", **environ: Any) -> tuple[str, list[tuple[str, str]], Any]:
    """Call a WSGI application as a server would that does not know this package."""
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": "", **environ}
    setup_testing_defaults(environ)
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        started.append((status, headers))
        return lambda data: None

    body = application(environ, start_response)
    ((status, headers),) = started
    return status, headers, body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path", ["/pgbus/healthz", "/pgbus/readyz", "/pgbus/nothing", "/other", "/pgbus/streams", "/pgbus/streams/unknown"]
)
def test_plain_answers_pass_the_standard_validator(path: str, method: str, site: Site) -> None:
    status, headers, body = call(validator(StreamApp(site.instance)), path, method)
    found = b"".join(body)
    body.close()
    assert status[3] == " "
    assert dict(headers)["content-length"] == str(len(found)) or method == "HEAD"


def test_a_broadcast_passes_the_standard_validator(site: Site, app: Callable[[Any], None]) -> None:
    app(validator(StreamApp(site.instance)))
    assert site.publish(STREAM, b"x").status == 201
    assert site.publish(STREAM, parts(b"x")).status == 201
    assert site.publish(STREAM, b"x" * 2000).status == 413


def test_a_stream_in_the_body_passes_the_standard_validator(site: Site) -> None:
    status, headers, body = call(validator(StreamApp(site.instance)), f"/pgbus/streams/{STREAM}")
    chunks = iter(body)
    found = b""
    with gevent.Timeout(40):
        while b"pgbus:connected" not in found:
            found += next(chunks)
        site.bus.stream(STREAM).broadcast("through the body")
        while b"data: through the body\n" not in found:
            found += next(chunks)
    body.close()
    assert status == "200 OK" and dict(headers) == {k: v for k, v in STREAM_HEADERS.items() if k != "connection"}
    assert len(site.instance.registry) == 0


def test_a_broadcast_without_a_length_has_no_body_if_the_server_cannot_tell_its_end(site: Site) -> None:
    class Endless:
        def read(self, size: int) -> bytes:
            raise AssertionError("it would wait for the next request")

    headers = {"HTTP_AUTHORIZATION": f"Bearer {PUBLISH_TOKEN}", "wsgi.input": Endless()}
    status, _, _ = call(StreamApp(site.instance), f"/pgbus/streams/{STREAM}", "POST", **headers)
    assert status == "201 Created"


@pytest.mark.parametrize("length", ["x", "-1", "+1", "1_0", "٥"])
def test_a_malformed_length_from_a_lax_server_is_400(length: str, site: Site) -> None:
    headers = {"HTTP_AUTHORIZATION": f"Bearer {PUBLISH_TOKEN}", "CONTENT_LENGTH": length}
    status, _, _ = call(StreamApp(site.instance), f"/pgbus/streams/{STREAM}", "POST", **headers)
    assert status == "400 Bad Request"


def test_a_server_that_fails_before_the_stream_begins_leaves_no_connection(site: Site) -> None:
    def start_response(*_: Any) -> Any:
        raise OSError("gone")

    environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": f"/pgbus/streams/{STREAM}"}
    setup_testing_defaults(environ)
    with pytest.raises(OSError, match="gone"):
        StreamApp(site.instance)(environ, start_response)
    assert len(site.instance.registry) == 0


@contextmanager
def plain_server(application: Any) -> Iterator[str]:
    """Run gevent's own server, as Bottle's ``server='gevent'`` does, and yield its URL."""
    server = WSGIServer(listen("127.0.0.1", 0), application, log=None, environ={"SERVER_NAME": "test"})
    server.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.stop(1.0)


def mounted(site: Site) -> bottle.Bottle:
    """A Bottle application with the streams and with one other route."""
    root = bottle.Bottle()
    root.mount("/pgbus/", StreamApp(site.instance))
    root.get("/own")(lambda: "own")

    @root.hook("after_request")  # type: ignore[untyped-decorator]
    def add_header() -> None:
        bottle.response.set_header("X-Own", "1")

    return root


@pytest.mark.parametrize("how", ["alone", "in Bottle"])
def test_a_stream_under_gevents_own_server_goes_through_the_body(how: str, site: Site) -> None:
    with plain_server(StreamApp(site.instance) if how == "alone" else mounted(site)) as url:
        with StreamClient(url, f"/pgbus/streams/{STREAM}") as client:
            client.next("pgbus:connected")
            assert client.response is not None
            headers = client.response.headers
            assert {name: headers[name] for name in STREAM_HEADERS} == STREAM_HEADERS
            site.bus.stream(STREAM).broadcast("through the body")
            assert client.next().data == "through the body"
        # Only a write shows it, and the first one does not yet.
        wait_for(
            lambda: site.bus.stream(STREAM).broadcast("who is there?") and not len(site.instance.registry),
            "the client left",
        )
        assert ask(int(url.rpartition(":")[2]), f"/pgbus/streams/{STREAM}", "HEAD").status == 200


def test_a_socket_under_bottle_is_taken_over_and_bottles_headers_are_kept(
    site: Site, app: Callable[[Any], None]
) -> None:
    app(mounted(site))
    answer = head_of_stream(site.port)
    assert answer.headers.keys() - {"date"} == STREAM_HEADERS.keys() | {"x-own", "transfer-encoding"}
    assert ask(site.port, "/own").body == b"own"
    wait_for(lambda: not site.server.pool, "no greenlet is held")


@pytest.mark.parametrize("name", ["demo:é", "demo:a/b", "demo:日本語", "demo:a//b/", "demo:%41", "demo:a%2Fb"])
def test_stream_names_are_the_same_under_bottle(name: str, site: Site, app: Callable[[Any], None]) -> None:
    app(mounted(site))
    with site.watch(quote(name, safe="")) as client:
        assert json.loads(client.next("pgbus:connected").data)["streams"][0]["name"] == name


def test_a_path_that_is_not_utf_8_is_400_under_bottle_and_not_another_stream(
    site: Site, app: Callable[[Any], None]
) -> None:
    app(mounted(site))
    assert site.get("/streams/demo:%FFa").status == 400
    assert site.get("/streams/unknown").status == 404
    assert site.get("/nothing").status == 404


@pytest.mark.parametrize(
    ("script_name", "path"),
    [("", "/pgbus/healthz"), ("/pgbus", "/healthz"), ("/outer", "/pgbus/healthz"), ("/outer/pgbus", "/healthz")],
)
def test_the_application_answers_at_the_root_and_mounted_at_its_prefix(script_name: str, path: str, site: Site) -> None:
    status, _, _ = call(StreamApp(site.instance), path, SCRIPT_NAME=script_name)
    assert status == "200 OK"


def test_a_stream_goes_on_under_a_middleware_that_iterates_the_body(site: Site, app: Callable[[Any], None]) -> None:
    inner = StreamApp(site.instance)

    def middleware(environ: Any, start_response: Any) -> Iterator[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(status, [*headers, ("X-Request-Id", "7")], exc_info)

        body = inner(environ, start)
        try:
            yield from body
        finally:
            getattr(body, "close", lambda: None)()

    app(middleware)
    with site.watch(STREAM) as client:
        client.next("pgbus:connected")
        assert client.response is not None and client.response.headers["x-request-id"] == "7"
        site.bus.stream(STREAM).broadcast("goes on")
        assert client.next().data == "goes on"
