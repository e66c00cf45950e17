"""What ``doctor URL`` finds on the path to a server: nothing if all is well, and each fault that a proxy can make."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gevent
import pytest
from cli_parts import Cli
from doctor_parts import check_line, checked
from faulty_proxy_parts import NGINX, FaultProxy, certificate, haproxy_with, nginx_with
from support import run, session

from pgbus_gevent.bus import Bus
from pgbus_gevent.commands import path_findings, path_idle
from pgbus_gevent.commands.doctor import DOCTOR
from pgbus_gevent.commands.finding import FAIL, OK, SKIP, WARN, Finding
from pgbus_gevent.commands.path_client import Address
from pgbus_gevent.commands.path_findings import PathChecks, Publish
from pgbus_gevent.core.sse import shutdown
from pgbus_gevent.errors import DatabaseUnavailable, InvalidArgument
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.testing.servers import SECRET, RunningServer
from pgbus_gevent.web.responses import stream_headers
from pgbus_gevent.web.stream_app import StreamApp

HEARTBEAT = 1.0
STREAM = "doctor:test"
ALL = {
    "front", "server", "http", "query", "headers", "upstream", "stream", "compression", "answer", "delivery", "replay", "cache",
    "heartbeat", "idle",
}  # fmt: skip

Look = Callable[..., dict[str, Finding]]


@pytest.fixture(scope="module")
def settings(pgbus_databases: TestDatabases) -> Settings:
    return Settings(
        database_url=pgbus_databases.make(), secret=(SECRET,), public=("demo:*",), heartbeat=HEARTBEAT, grace=1.0
    )


@pytest.fixture(scope="module")
def server(settings: Settings) -> Iterator[RunningServer]:
    instance = Instance(settings).start()
    server = RunningServer(StreamApp(instance), settings.prefix)
    yield server
    server.stop()
    instance.shutdown()


@pytest.fixture
def look(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Look]:
    """Try the path through a port, and return what was found, by the name of the check."""
    monkeypatch.setattr(path_findings, "PATIENCE", 4.0)
    monkeypatch.setattr(path_idle, "PATIENCE", 4.0)
    with Bus(settings=settings) as bus:

        def run(
            port: int,
            *,
            scheme: str = "http",
            path: str = "",
            watch: float = 0,
            publish: bool = True,
            broken: Publish | None = None,
        ) -> dict[str, Finding]:
            address = Address(f"{scheme}://127.0.0.1:{port}{path}", prefix=settings.prefix)
            stream = bus.stream(STREAM)
            publisher = (broken or stream.broadcast) if publish else None
            checks = PathChecks(address, bus.sign(STREAM), publisher, watch)
            return {found.check: checked(found) for found in checks.findings()}

        yield run


def problems(found: Mapping[str, Finding]) -> dict[str, str]:
    return {name: one.level for name, one in found.items() if one.level not in (OK, SKIP)}


# where all is well ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_a_proxy_there_is_no_problem_but_http_1(server: RunningServer, look: Look) -> None:
    found = look(server.port, watch=2.0)
    assert problems(found) == {"http": WARN}
    assert set(found) == ALL and "nothing shows itself" in found["front"].text
    assert "six connections" in found["http"].text
    assert all(one.todo for one in found.values() if one.level in (WARN, FAIL))


@pytest.mark.slow
def test_nginx_as_documented_is_no_problem(server: RunningServer, look: Look, tmp_path: Path) -> None:
    with nginx_with(tmp_path, server.port, NGINX) as port:
        found = look(port, watch=2.0)
    assert problems(found) == {"http": WARN}
    assert found["answer"].figures["x_accel_buffering"] is None  # nginx takes it for itself
    assert "nginx" in found["front"].text and found["http"].todo.count("\n") == 1 and "http2 on" in found["http"].todo


def test_haproxy_is_no_problem_and_is_known_by_its_own_answers(
    server: RunningServer, look: Look, tmp_path: Path
) -> None:
    with haproxy_with(tmp_path, server.port, "") as port:
        found = look(port)
    assert problems(found) == {"http": WARN}
    assert "HAProxy" in found["front"].text and "alpn h2" in found["http"].todo and "nginx" not in found["http"].todo


@pytest.mark.parametrize(("http_2", "level"), [(True, OK), (False, WARN)])
def test_over_tls_it_says_which_protocol_browsers_get(
    http_2: bool, level: str, server: RunningServer, look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, key = certificate(tmp_path)
    files = f"ssl_certificate {file}; ssl_certificate_key {key};"
    with nginx_with(tmp_path, server.port, NGINX, listen="ssl http2" if http_2 else "ssl", http=files) as port:
        untrusted = look(port, scheme="https")
        assert problems(untrusted) == {"address": FAIL} and "SSL_CERT_FILE" in untrusted["address"].todo
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        found = look(port, scheme="https")
    assert found["http"].level == level and ("HTTP/2" if http_2 else "HTTP/1.1") in found["http"].text
    assert problems(found) == ({} if http_2 else {"http": WARN})


# faults of nginx ------------------------------------------------------------------------------------------------------

_HTTP_1_0 = NGINX.replace("proxy_http_version 1.1", "proxy_http_version 1.0")
# Over HTTP/1.1 the answer has chunks, each of which nginx passes on at once even if it buffers.
_BUFFERING = _HTTP_1_0 + "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"
_GZIP = NGINX + "gzip on; gzip_types text/event-stream; gzip_min_length 0;"
_NO_QUERY = NGINX + "rewrite ^(.*)$ $1? break;"
_REWRITTEN = NGINX.replace("http://pgbus;", "http://pgbus/elsewhere/;")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("location", "problem", "level", "shown", "remedy"),
    [
        (_BUFFERING, "buffering", FAIL, "a buffer holds frames back", "proxy_buffering off;"),
        (_GZIP, "compression", WARN, "gzip", "gzip off;"),
        (NGINX + "proxy_set_header Last-Event-ID '';", "headers", FAIL, "Last-Event-ID does not", "proxy_set_header"),
        (NGINX + "proxy_set_header Accept text/html;", "headers", FAIL, "arrives as 'text/html'", "proxy_set_header"),
        (_HTTP_1_0, "upstream", WARN, "HTTP/1.0", "proxy_http_version 1.1;"),
        (_NO_QUERY, "query", FAIL, "the query does not arrive", "$is_args$args"),
        (_REWRITTEN, "server", FAIL, "not answered by pgbus-gevent: status 404", "without a path"),
        ("return 502;", "server", FAIL, "status 502", "check that the server runs"),
    ],
)
def test_a_fault_of_nginx_is_found_and_its_directive_named(
    location: str,
    problem: str,
    level: str,
    shown: str,
    remedy: str,
    server: RunningServer,
    look: Look,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if problem == "buffering":
        monkeypatch.setattr(path_findings, "AT_ONCE", 1.0)
    with nginx_with(tmp_path, server.port, location) as port:
        found = look(port)
    assert found[problem].level == level and shown in found[problem].text
    assert "nginx: " in found[problem].todo and remedy in found[problem].todo


def test_a_lost_last_event_id_is_seen_in_what_is_replayed_too(
    server: RunningServer, look: Look, tmp_path: Path
) -> None:
    with nginx_with(tmp_path, server.port, NGINX + "proxy_set_header Last-Event-ID '';") as port:
        found = look(port)
    assert problems(found) == {"http": WARN, "headers": FAIL, "replay": FAIL}
    assert "got 0 of them" in found["replay"].text


@pytest.mark.slow
def test_compression_that_holds_frames_back_is_named_too(
    server: RunningServer, look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_findings, "AT_ONCE", 1.0)
    with nginx_with(tmp_path, server.port, _GZIP + "proxy_ignore_headers X-Accel-Buffering;") as port:
        found = look(port)
    assert problems(found) == {"http": WARN, "compression": WARN, "buffering": FAIL}
    assert found["buffering"].figures["came"] and found["buffering"].figures["published_bytes"] > 0
    assert "gzip off;" in found["compression"].todo


@pytest.mark.slow
def test_a_read_timeout_below_the_heartbeat_cuts_streams_off(server: RunningServer, look: Look, tmp_path: Path) -> None:
    with nginx_with(tmp_path, server.port, NGINX.replace("60s", "400ms")) as port:
        found = look(port, watch=2.0)
    assert found["heartbeat"].level == FAIL and "cut off after" in found["heartbeat"].text
    assert "proxy_read_timeout" in found["heartbeat"].todo and found["idle"].level == WARN


@pytest.mark.slow
def test_a_read_timeout_below_three_heartbeats_is_warned_of(server: RunningServer, look: Look, tmp_path: Path) -> None:
    with nginx_with(tmp_path, server.port, NGINX.replace("60s", "2s")) as port:
        found = look(port, watch=3 * HEARTBEAT)
    assert problems(found) == {"http": WARN, "idle": WARN}
    assert "status 504" in found["idle"].text and "proxy_read_timeout" in found["idle"].todo


def test_answers_from_a_cache_are_found(server: RunningServer, look: Look, tmp_path: Path) -> None:
    cache = "proxy_cache one; proxy_cache_valid any 1m; proxy_ignore_headers Cache-Control Expires Vary;"
    with nginx_with(
        tmp_path, server.port, NGINX + cache, http=f"proxy_cache_path {tmp_path}/cache keys_zone=one:1m;"
    ) as port:
        found = look(port)
    assert found["cache"].level == FAIL and "proxy_cache off;" in found["cache"].todo


# faults of HAProxy ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "problem", "shown", "remedy"),
    [
        ("http-response wait-for-body time 60s at-least 100000", "buffering", "no frame", "wait-for-body"),
        ("http-request del-header last-event-id", "headers", "Last-Event-ID does not", "del-header"),
        ("http-request del-header accept", "headers", "Accept does not", "del-header"),
        ("http-request set-uri %[path]", "query", "the query does not arrive", "set-uri"),
        ("http-request replace-path /pgbus(.*) \\1", "server", "not answered by pgbus-gevent", "replace-path"),
    ],
)
def test_a_fault_of_haproxy_is_found_and_its_directive_named(
    backend: str,
    problem: str,
    shown: str,
    remedy: str,
    server: RunningServer,
    look: Look,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if problem == "buffering":
        monkeypatch.setattr(path_findings, "AT_ONCE", 1.0)
    with haproxy_with(tmp_path, server.port, backend) as port:
        found = look(port)
    assert found[problem].level == FAIL and shown in found[problem].text
    assert "HAProxy: " in found[problem].todo and remedy in found[problem].todo


@pytest.mark.slow
def test_a_short_timeout_of_haproxy_is_found(server: RunningServer, look: Look, tmp_path: Path) -> None:
    with haproxy_with(tmp_path, server.port, "", timeout="400ms") as port:
        found = look(port, watch=2.0)
    assert found["heartbeat"].level == FAIL and "timeout server" in found["heartbeat"].todo


def test_haproxy_without_no_delay_makes_each_message_late(server: RunningServer, look: Look, tmp_path: Path) -> None:
    with haproxy_with(tmp_path, server.port, "", more="") as port:
        found = look(port)
    assert problems(found) == {"http": WARN, "delivery": WARN}
    assert "none within 150 ms" in found["delivery"].text and "option http-no-delay" in found["delivery"].todo


def test_an_answer_that_caches_may_keep_is_warned_of(server: RunningServer, look: Look, tmp_path: Path) -> None:
    with haproxy_with(tmp_path, server.port, "http-response set-header cache-control public") as port:
        found = look(port)
    assert problems(found) == {"http": WARN, "answer": WARN} and "'public'" in found["answer"].text


def test_a_lost_header_for_nginx_is_warned_of(server: RunningServer, look: Look, tmp_path: Path) -> None:
    with haproxy_with(tmp_path, server.port, "http-response del-header x-accel-buffering") as port:
        found = look(port)
    assert problems(found) == {"http": WARN, "answer": WARN} and "an nginx further out" in found["answer"].text


# faults that these proxies cannot make --------------------------------------------------------------------------------


def test_a_stream_from_a_cache_is_found(server: RunningServer, look: Look) -> None:
    with FaultProxy(server.port, cache=True) as proxy:
        found = look(proxy.port)
    assert (found["cache"].level, found["replay"].level) == (FAIL, FAIL)


@pytest.mark.slow
def test_heartbeats_that_something_swallows_are_found(server: RunningServer, look: Look) -> None:
    def without_heartbeats(piece: bytes) -> bytes:
        return b"" if piece.startswith(b": heartbeat") else piece

    with FaultProxy(server.port, body=without_heartbeats) as proxy:
        found = look(proxy.port, watch=1.0)
    assert found["heartbeat"].level == FAIL and "no heartbeat came" in found["heartbeat"].text


@pytest.mark.slow
def test_messages_that_do_not_arrive_are_found(server: RunningServer, look: Look) -> None:
    def greeting_only(piece: bytes) -> bytes:
        return piece if b"pgbus:connected" in piece or piece.startswith((b"{", b"s")) else b""

    with FaultProxy(server.port, body=greeting_only) as proxy:
        found = look(proxy.port)
    assert found["delivery"].level == FAIL and "did not arrive" in found["delivery"].text
    assert "database URL of this command" in found["delivery"].todo


@pytest.mark.slow
@pytest.mark.parametrize(("late", "level"), [({1}, OK), ({1, 6}, WARN)])
def test_messages_that_come_late_are_found_if_some_do_twice(
    late: set[int], level: str, server: RunningServer, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five are sent, and five more if one of them was late, because the machine may have been busy."""
    monkeypatch.setattr(path_findings, "_SLOW", 2.0)
    count = 0

    def sometimes_late(piece: bytes) -> bytes:
        nonlocal count
        if piece.startswith(b"data: "):
            count += 1
            gevent.sleep(2.2 if count in late else 0.0)
        return piece

    with FaultProxy(server.port, body=sometimes_late) as proxy:
        found = look(proxy.port)
    assert found["delivery"].level == level and found["delivery"].figures["messages"] == 5
    assert ("(listen, database)" in found["delivery"].todo) == (level == WARN)
    assert (found["delivery"].figures["slowest_seconds"] > 2.0) == (level == WARN)


def test_a_stream_that_is_cut_off_by_a_message_is_found(server: RunningServer, look: Look) -> None:
    def cut(piece: bytes) -> bytes:
        if piece.startswith(b"data: "):
            raise OSError("cut off")
        return piece

    with FaultProxy(server.port, body=cut) as proxy:
        found = look(proxy.port)
    assert found["delivery"].level == FAIL and "ended before a message arrived" in found["delivery"].text


@pytest.mark.slow
def test_a_stream_that_begins_late_is_told_from_one_that_is_held_back(
    server: RunningServer, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins while messages are published, as if they had pushed it out of a buffer."""
    monkeypatch.setattr(path_findings, "AT_ONCE", 0.3)
    monkeypatch.setattr(path_findings, "_LATE", 0.3)

    def late(head: bytes) -> bytes:
        if b"text/event-stream" in head:
            gevent.sleep(1.0)
        return head

    with FaultProxy(server.port, head=late) as proxy:
        found = look(proxy.port)
    assert "buffering" not in found and found["stream"].level == WARN and "only after" in found["stream"].text
    assert found["stream"].figures["first_byte_seconds"] >= 1.0
    assert found["replay"].level == OK


@pytest.mark.slow
def test_a_stream_that_begins_late_once_is_no_problem(server: RunningServer, look: Look) -> None:
    heads: list[bytes] = []

    def late_at_first(head: bytes) -> bytes:
        if b"text/event-stream" in head:
            heads.append(head)
            gevent.sleep(2.2 if len(heads) == 1 else 0.0)
        return head

    with FaultProxy(server.port, head=late_at_first) as proxy:
        found = look(proxy.port)
    assert found["stream"].level == OK and 0 < found["stream"].figures["first_byte_seconds"] < 2.0


def test_messages_that_come_twice_are_found(server: RunningServer, look: Look) -> None:
    def twice(piece: bytes) -> bytes:
        return re.sub(rb"(data: [0-9a-f]{32}\nid: \d+\n\n)", rb"\1\1", piece)

    with FaultProxy(server.port, body=twice) as proxy:
        found = look(proxy.port)
    assert found["delivery"].level == FAIL and "came twice" in found["delivery"].text
    assert found["replay"].level == FAIL and "and 2 others" in found["replay"].text


def test_another_content_type_is_found(server: RunningServer, look: Look) -> None:
    def as_text(head: bytes) -> bytes:
        return head.replace(b"text/event-stream; charset=utf-8", b"text/plain")

    with FaultProxy(server.port, head=as_text) as proxy:
        found = look(proxy.port)
    assert found["stream"].level == FAIL and "text/plain" in found["stream"].text


@pytest.mark.parametrize(
    ("header", "front"),
    [
        (b"Server: cloudflare\r\nCF-RAY: 8f2-FRA\r\n", "Cloudflare"),
        (b"Server: Caddy\r\n", "Caddy"),
        (b"Server: Apache/2.4.65 (Debian)\r\n", "Apache"),
        (b"Set-Cookie: AWSALB=secret; Path=/\r\n", "AWS ALB"),
    ],
)
def test_what_stands_in_front_is_known_by_its_headers(
    header: bytes, front: str, server: RunningServer, look: Look
) -> None:
    def signed(head: bytes) -> bytes:
        return head.replace(b"\r\n", b"\r\n" + header, 1)

    with FaultProxy(server.port, head=signed) as proxy:
        found = look(proxy.port)
    assert front in found["front"].text and "secret" not in found["front"].text
    assert found["http"].todo.splitlines()[-1].startswith(f"{front}: ")


# what the server answers ----------------------------------------------------------------------------------------------


@pytest.fixture
def application(server: RunningServer) -> Iterator[Callable[[Any], None]]:
    """Put another application into the server for one test."""
    original = server.app

    def put(app: Any) -> None:
        server.app = app

    yield put
    server.app = original


def test_a_server_that_is_not_ready_is_a_failure(
    server: RunningServer, look: Look, application: Callable[[Any], None]
) -> None:
    original = server.app

    def unready(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/pgbus/readyz":
            start_response("503 Service Unavailable", [("content-type", "application/json")])
            return [b'{"status": "unready", "reason": "restart"}\n']
        return original(environ, start_response)

    application(unready)
    found = look(server.port)
    assert found["server"].level == FAIL and '"restart"' in found["server"].text and "stream" not in found


def test_a_hook_that_refuses_is_told_from_a_wrong_secret(
    server: RunningServer, look: Look, application: Callable[[Any], None]
) -> None:
    application(StreamApp(server.app.instance, authorize=lambda environ, stream: False))
    found = look(server.port)
    assert found["stream"].level == FAIL and "403" in found["stream"].text and "--header" in found["stream"].todo


def test_a_server_that_sends_clients_away_is_a_failure(
    server: RunningServer, look: Look, application: Callable[[Any], None]
) -> None:
    original = server.app

    def full(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"].startswith("/pgbus/streams/") and not environ["QUERY_STRING"]:
            start_response("200 OK", stream_headers(environ))
            return [shutdown("overloaded", 5.0)]
        return original(environ, start_response)

    application(full)
    found = look(server.port)
    assert found["stream"].level == FAIL and "overloaded" in found["stream"].text


def test_a_server_of_an_earlier_release_does_not_say_what_arrived(
    server: RunningServer, look: Look, application: Callable[[Any], None]
) -> None:
    original = server.app

    def earlier(environ: Any, start_response: Any) -> Any:
        return original({**environ, "QUERY_STRING": environ["QUERY_STRING"].replace("received", "")}, start_response)

    application(earlier)
    found = look(server.port)
    assert (found["headers"].level, found["cache"].level, found["replay"].level) == (SKIP, OK, OK)
    assert "upstream" not in found


def test_a_database_that_does_not_answer_is_a_failure_of_the_delivery(server: RunningServer, look: Look) -> None:
    def away(data: str) -> None:
        raise DatabaseUnavailable("no answer")

    found = look(server.port, broken=away)
    assert found["delivery"].level == FAIL and "could not publish: no answer" in found["delivery"].text


# what the caller gives ------------------------------------------------------------------------------------------------


def test_with_a_stream_of_somebody_else_nothing_is_published(
    server: RunningServer, look: Look, settings: Settings
) -> None:
    with Bus(settings=settings) as bus:
        before = bus.stream(STREAM).last_id()
        found = look(server.port, publish=False)
        assert bus.stream(STREAM).last_id() == before
    assert [found[name].level for name in ("delivery", "replay")] == [SKIP, SKIP]
    assert problems(found) == {"http": WARN}


def test_nobody_who_answers_is_a_failure(look: Look, server: RunningServer) -> None:
    with FaultProxy(server.port) as proxy:
        port = proxy.port
    found = look(port)
    assert problems(found) == {"address": FAIL}


def test_a_redirect_names_the_address_to_give(server: RunningServer, look: Look, tmp_path: Path) -> None:
    with nginx_with(tmp_path, server.port, "return 301 https://shop.example$request_uri;") as port:
        found = look(port)
    assert found["server"].level == FAIL and "redirects to https://shop.example/pgbus" in found["server"].text


def test_the_command_publishes_to_a_stream_of_its_own(
    server: RunningServer, settings: Settings, tmp_path: Path
) -> None:
    cli = Cli(tmp_path, str(settings.database_url))
    lines = cli.ok("doctor", server.url, "--json", "--watch", "0", PGBUS_SECRET=SECRET).splitlines()
    found = {entry["check"]: entry for entry in map(check_line, map(json.loads, lines))}
    assert set(found) == ALL - {"idle"} and found["replay"]["level"] == OK
    figures = {name: one["figures"] for name, one in found.items()}
    assert figures["http"] == {"version": "HTTP/1.1", "connections_per_origin": 6}
    assert (figures["delivery"]["messages"], figures["replay"]["replayed"]) == (5, 2)
    assert figures["stream"]["first_byte_seconds"] > 0
    # The times may be 0: a message may arrive before its publisher hears of the commit.
    fastest, median, slowest = (figures["delivery"][f"{name}_seconds"] for name in ("fastest", "median", "slowest"))
    assert 0 <= fastest <= median <= slowest < 60
    with session(str(settings.database_url)) as connection:
        left = run(
            connection,
            "select count(*) from pgbus.messages where starts_with(stream, 'doctor:') and stream <> 'doctor:test'",
        )
    assert left == [(0,)]
    text = cli.ok("doctor", f"{server.url}/pgbus", "--stream", "demo:hello", "--watch", "0")
    assert "\nskip delivery " in text and "\nok   stream " in text and "\n                    → nginx: " in text


def test_the_command_ends_with_1_if_the_secret_is_another_one(
    server: RunningServer, settings: Settings, tmp_path: Path
) -> None:
    cli = Cli(tmp_path, str(settings.database_url))
    status, out, err = cli.run("doctor", server.url, PGBUS_SECRET="another secret of 16")
    assert (status, err) == (1, "") and "fail stream " in out and "PGBUS_SECRET" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ftp://example.org",), "not an address such as"),
        (("http://example.org",), "--stream"),
        (("--stream", "x"), "give its URL"),
        (("http://example.org", "--stream", "x", "--header", "nonsense"), "--header is a name"),
        (("http://example.org", "--stream", "x", "--watch", "-1"), "--watch is a number"),
        (("http://example.org", "--rights", "server"), "--rights"),
    ],
)
def test_wrong_usage_is_refused(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    parser = ArgumentParser()
    DOCTOR.add_arguments(parser)
    with pytest.raises(InvalidArgument, match=re.escape(said)):
        DOCTOR.run(parser.parse_args(arguments), Settings(data_dir=str(tmp_path)))


def test_the_command_ends_with_2_for_wrong_usage(tmp_path: Path) -> None:
    assert "--stream" in Cli(tmp_path).fails(2, "doctor", "http://example.org")
