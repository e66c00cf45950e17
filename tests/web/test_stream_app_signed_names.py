"""The stream that a client gets for a name in the URL."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from raw_http import ask
from site_parts import SECRETS, Site, running_site

from pgbus_gevent.core.names import Signer
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases

FOREIGN = ("a secret of another site",)


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_site(pgbus_databases.make()) as site:
        yield site


@pytest.fixture(scope="module")
def open_site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    """A site where every name is public, and which checks its connections often."""
    with running_site(pgbus_databases.make(), public=("*",), heartbeat=0.4) as site:
        yield site


def stream_of(client: StreamClient) -> str:
    """Return the name of the stream that a client follows."""
    (stream,) = json.loads(client.next("pgbus:connected").data)["streams"]
    return str(stream["name"])


def encoded(name: str) -> str:
    return quote(name, safe="")


# public names --------------------------------------------------------------------------------------------------------

NAMES = [
    "demo:a/b",
    "demo:a%2Fb",
    "demo: spaces and\u00a0more ",
    "demo:ünïcødé:日本語:🚀",
    "demo:a+b&c=d?e#f;g",
    "demo:..",
    "demo:../../healthz",
    "demo://",
    'demo:"quoted"\\back',
    "demo:e\u0301",
    "demo:\u2028",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_percent_encoded_name_is_the_stream_byte_for_byte(name: str, site: Site) -> None:
    with site.watch(encoded(name)) as client:
        assert stream_of(client) == name
        site.bus.stream(name).broadcast("here")
        assert client.next().data == "here"


@pytest.mark.parametrize("name", NAMES)
def test_the_query_form_takes_the_same_names(name: str, site: Site) -> None:
    with StreamClient(site.url, f"/pgbus/streams?stream={encoded(name)}") as client:
        assert stream_of(client) == name


@pytest.mark.parametrize("written", ["demo:a/b", "demo:a%2fb", "%64emo%3aa%2Fb"])
def test_every_encoding_of_a_name_is_the_same_stream(written: str, site: Site) -> None:
    with site.watch(written) as client:
        assert stream_of(client) == "demo:a/b"


def test_a_plus_is_a_plus_in_the_path_and_a_space_in_the_query(site: Site) -> None:
    with site.watch("demo:a+b") as client:
        assert stream_of(client) == "demo:a+b"
    with StreamClient(site.url, "/pgbus/streams?stream=demo:a+b") as client:
        assert stream_of(client) == "demo:a b"


def test_bytes_that_are_not_percent_encoded_are_taken_as_utf_8(site: Site) -> None:
    with StreamClient(site.url, "/pgbus/streams/demo:é") as client:
        assert stream_of(client) == "demo:é"
    with StreamClient(site.url, "/pgbus/streams?stream=demo:é") as client:
        assert stream_of(client) == "demo:é"


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/streams/", "a stream name has 1 to 255 bytes in UTF-8, this one has 0"),
        ("/streams?stream=", "a stream name has 1 to 255 bytes in UTF-8, this one has 0"),
        ("/streams/demo:" + "a" * 251, "a stream name has 1 to 255 bytes in UTF-8, this one has 256"),
        ("/streams/demo:" + "%C3%A9" * 126, "a stream name has 1 to 255 bytes in UTF-8, this one has 257"),
        ("/streams/demo:%FF", "the path is not UTF-8"),
        ("/streams/demo:%C3", "the path is not UTF-8"),
        ("/streams/demo:%ED%A0%80", "the path is not UTF-8"),
        ("/streams/demo:%C0%AF", "the path is not UTF-8"),
        ("/streams?stream=demo:%FF", "the query is not UTF-8"),
        ("/streams/demo:%00", "a stream name has no control characters: 'demo:\\x00'"),
        ("/streams/demo:%0Aevent:%20x", "a stream name has no control characters: 'demo:\\nevent: x'"),
        ("/streams/demo:%C2%85", "a stream name has no control characters: 'demo:\\x85'"),
        ("/streams", "name a stream: /streams?stream=…"),
        ("/streams?since=5", "name a stream: /streams?stream=…"),
        ("/streams?" + "&".join(["stream=demo:a"] * 33), "too many streams: at most 32 on one connection, not 33"),
    ],
)
def test_an_invalid_name_is_400_and_the_body_says_why(path: str, complaint: str, site: Site) -> None:
    answer = site.get(path)
    assert (answer.status, answer.line) == (400, complaint)


def test_a_name_of_255_bytes_is_a_stream(site: Site) -> None:
    name = "demo:" + "é" * 125
    with site.watch(encoded(name)) as client:
        assert stream_of(client) == name


@pytest.mark.parametrize("name", ["public", "demo:", "Case:1", "Caze:1", "d", "daemon"])
def test_a_name_that_a_pattern_matches_is_public(name: str, site: Site) -> None:
    with site.watch(encoded(name)) as client:
        assert client.wait_for_response().status == 200


@pytest.mark.parametrize(
    "name", ["Public", "publi", "public ", "DEMO:a", "case:1", "Case:12", "Case:", "Cate:1", "x", "*"]
)
def test_patterns_are_case_sensitive_and_match_the_whole_name(name: str, site: Site) -> None:
    assert site.get(f"/streams/{encoded(name)}").status == 404


# signed names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["orders", "a/b c", "日本語", "x" * 255, "aaaa" * 60])
def test_a_signed_name_opens_its_stream_and_is_safe_in_a_url(name: str, site: Site) -> None:
    token = site.bus.sign(name)
    assert quote(token, safe="") == token
    with site.watch(token) as client:
        assert stream_of(client) == name
    with StreamClient(site.url, f"/pgbus/streams?stream={token}") as client:
        assert stream_of(client) == name


@pytest.mark.parametrize("secret", SECRETS)
def test_names_signed_with_the_old_secret_verify_too(secret: str, site: Site) -> None:
    with site.watch(site.sign("orders", secrets=(secret,))) as client:
        assert stream_of(client) == "orders"


def test_an_expired_signed_name_is_403(site: Site) -> None:
    with site.watch(site.sign("orders", expires_in=60)) as client:
        assert stream_of(client) == "orders"
    answer = site.get(f"/streams/{site.sign('orders', expires_in=-1)}")
    assert (answer.status, answer.line) == (
        403,
        "the signed stream name has expired; render the page again to get a new one",
    )


def test_a_connection_ends_when_its_signed_name_expires(open_site: Site) -> None:
    # Late enough that the connection is open by then, even on a busy machine.
    with open_site.watch(open_site.sign("orders", expires_in=4)) as client:
        assert json.loads(client.next("pgbus:shutdown").data) == {"reason": "expired"}
        client.wait_closed()


def test_a_public_stream_can_be_signed_too(site: Site) -> None:
    with site.watch(site.sign("demo:a")) as client:
        assert stream_of(client) == "demo:a"


def tampered() -> dict[str, str]:
    good = Signer(SECRETS).sign("orders")
    payload, _, signature = good.rpartition(".")
    other = base64.urlsafe_b64encode(b'["others"]').decode().rstrip("=")
    return {
        "an unknown name": "orders",
        "another unknown name": "a-much-longer-name-that-does-not-exist-either",
        "signed by another site": Signer(FOREIGN).sign("orders"),
        "signed by another site, and expired": Signer(FOREIGN).sign("orders", 1.0),
        "compressed and signed by another site": Signer(FOREIGN).sign("a" * 200),
        "another payload": f"{other}.{signature}",
        "one character off": good[:-1] + ("A" if good[-1] != "A" else "B"),
        "cut off": good[:-1],
        "no signature": payload,
        "an empty signature": f"{payload}.",
        "a signature alone": f".{signature}",
        "another salt": _other_salt("orders"),
        "a payload that is no list": _signed({"name": "orders"}),
        "an empty list": _signed([]),
        "a name that is no text": _signed([7]),
        "a name that is none": _signed(["a\nb"]),
        "an expiry that is no number": _signed(["orders", "never"]),
        "dots": "...",
    }


def _signed(value: object) -> str:
    return str(Signer(SECRETS)._serializer.dumps(value))  # type: ignore[union-attr]


def _other_salt(name: str) -> str:
    from itsdangerous import URLSafeSerializer

    return str(URLSafeSerializer(SECRETS[1], salt="another").dumps([name]))


TAMPERED = tampered()


@pytest.mark.parametrize("written", TAMPERED.values(), ids=list(TAMPERED))
def test_every_name_that_does_not_verify_gets_the_same_404(written: str, site: Site) -> None:
    unknown = ask(site.port, "/pgbus/streams/unknown")
    answer = site.get(f"/streams/{written}")
    assert answer.status == unknown.status == 404
    assert answer.body == unknown.body
    assert {name for name in answer.headers if name != "date"} == {name for name in unknown.headers if name != "date"}


NOT_NAMES = [
    Signer(FOREIGN).sign("orders"),
    Signer(FOREIGN).sign("orders", 2e9),
    Signer(FOREIGN).sign("orders", 1.0),
    Signer(FOREIGN).sign("a" * 200),
    Signer(FOREIGN).sign("日本語"),
    Signer(FOREIGN).sign("\\quoted"),
    Signer(FOREIGN).sign("x"),
    TAMPERED["one character off"],
    TAMPERED["another payload"],
]


@pytest.mark.parametrize("written", NOT_NAMES)
def test_a_foreign_token_is_not_a_stream_even_if_every_name_is_public(written: str, open_site: Site) -> None:
    assert open_site.get(f"/streams/{written}").status == 404


def test_an_expired_token_is_403_even_if_every_name_is_public(open_site: Site) -> None:
    assert open_site.get(f"/streams/{open_site.sign('orders', expires_in=-1)}").status == 403


@pytest.mark.parametrize("name", ["WyLight.x", "Wy", ".eJ.x", "orders.2DqrZQvUHVCfWm2DAP0gTBQdAn5"])
def test_a_name_with_dots_is_not_taken_for_a_token(name: str, open_site: Site) -> None:
    with open_site.watch(encoded(name)) as client:
        assert stream_of(client) == name


def test_without_a_secret_public_names_are_served_and_tokens_are_404(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make(), secret=()) as site:
        with site.watch("demo:a") as client:
            assert stream_of(client) == "demo:a"
        assert site.get(f"/streams/{Signer(SECRETS).sign('orders')}").status == 404


def test_no_log_line_contains_a_signed_name(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    good, expired = site.sign("orders"), site.sign("orders", expires_in=-1)
    with site.watch(good) as client:
        client.next("pgbus:connected")
    site.get(f"/streams/{expired}")
    site.get(f"/streams?stream={expired}")
    site.get(f"/streams/{TAMPERED['signed by another site']}")
    assert '"GET /pgbus/streams/<signed>" 403' in caplog.text
    for token in (good, expired, TAMPERED["signed by another site"]):
        assert token not in caplog.text and token.partition(".")[0] not in caplog.text
