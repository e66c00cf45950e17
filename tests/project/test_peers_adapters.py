"""The adapters of benchmarks/peers: what each needs, publishes, and reads. No peer is installed for these tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.__main__ import parse
from benchmarks.peers.adapters import PEERS
from benchmarks.peers.adapters.base import KEY, Message, Peer
from benchmarks.peers.chart import chart
from benchmarks.peers.environment import DEBIAN, HERE, PACKAGES, REQUIREMENTS, Environment
from benchmarks.peers.faults import FAULTS
from benchmarks.peers.report import PARTS, page, percent, table
from benchmarks.peers.scenario import applies

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[2]
MESSAGE = Message("s0/a/1", "s0", "s0/a/1 xxx")
EVENT_STREAMS = [peer for peer in PEERS.values() if peer.name != "socket.io"]
NAMES = [peer.name for peer in EVENT_STREAMS]


class Recorder:
    """A cursor of a database and a client of HTTP that record what they are told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> Recorder:
        self.told.append(" ".join(map(str, values)))
        return self

    def post(self, url: str, *, content: str, headers: object = None) -> Any:
        self.told.append(content)
        return SimpleNamespace(raise_for_status=lambda: None)


def told(peer: Peer) -> tuple[list[str], list[str]]:
    """Return what a peer is told in the transaction and after it."""
    inside, after = Recorder(), Recorder()
    site: Any = SimpleNamespace(url=lambda path: f"http://127.0.0.1:1{path}")
    http: Any = after
    peer.publish(inside, MESSAGE)
    peer.publish_after(site, http, MESSAGE)
    return inside.told, after.told


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_each_message_is_published_once_either_in_the_transaction_or_after_it(peer: Peer) -> None:
    inside, after = told(peer)
    assert len(inside) + len(after) == 1
    assert MESSAGE.text in (inside + after)[0]
    if peer.store == "itself":
        assert after, "a store in the server's process cannot take part in a transaction"


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_each_adapter_says_what_it_runs_and_how(peer: Peer) -> None:
    assert PEERS[peer.name] is peer
    assert peer.package and peer.use and peer.says
    assert peer.store in ("postgresql", "redis", "itself")
    assert set(peer.needs) <= {"python", "npm", *DEBIAN}


@pytest.mark.parametrize("peer", EVENT_STREAMS, ids=NAMES)
def test_a_client_resumes_with_the_cursor_that_it_has(peer: Peer) -> None:
    first = peer.request("s0", None)
    path, headers = peer.request("s0", "1:7")
    assert first != (path, headers) and "1:7" in path + str(headers)
    assert first[0].startswith("/") and "s0" in first[0]


@pytest.mark.parametrize("peer", EVENT_STREAMS, ids=NAMES)
def test_a_message_is_read_with_its_key(peer: Peer) -> None:
    assert list(peer.read("data" if peer.name == "durable-streams" else "message", MESSAGE.text, "").keys) == ["s0/a/1"]


def test_the_cursor_is_the_id_of_an_event_or_what_the_protocol_says() -> None:
    assert PEERS["pgbus_gevent"].read("message", MESSAGE.text, "9").cursor == "9"
    control = PEERS["durable-streams"].read("control", json.dumps({"streamNextOffset": "0_9"}), "")
    assert control.cursor == "0_9" and not control.keys
    assert PEERS["listen-fanout"].read("message", MESSAGE.text, "").cursor is None


def test_what_tells_of_a_gap_is_known() -> None:
    assert PEERS["pgbus_gevent"].read("pgbus:gap-detected", "{}", "9").gap
    assert PEERS["django-eventstream"].read("stream-reset", "{}", "s0:9").gap
    assert not any(peer.read("message", MESSAGE.text, "9").gap for peer in PEERS.values())


def test_a_client_of_socketio_is_told_when_its_state_was_not_recovered() -> None:
    client = PEERS["socket.io"].client("s0")
    client.take({"client": 0, "connected": True, "lost": False})
    client.take({"client": 0, "text": MESSAGE.text})
    assert (client.received.keys, client.received.told) == (["s0/a/1"], False)
    client.take({"client": 0, "connected": True, "lost": True})
    assert (client.connects, client.received.told) == (2, True)


def test_our_greeting_is_no_message() -> None:
    greeting = PEERS["pgbus_gevent"].read("pgbus:connected", '{"connectionId":"s0/a/1"}', "4")
    assert (greeting.keys, greeting.cursor) == ([], "4")


def test_packages_are_pinned_and_name_no_host() -> None:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert lines and all("==" in line for line in lines)
    package, lock = (json.loads(path.read_text()) for path in PACKAGES)
    assert all(version[0].isdigit() for version in package["dependencies"].values())
    assert not any("resolved" in entry for entry in lock["packages"].values())
    assert "://" not in json.dumps([entry.get("dependencies") for entry in lock["packages"].values()])


def test_what_is_missing_is_named_with_its_package(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    assert environment.missing([]) is None
    assert "python" in str(environment.missing(["python"]))


def test_a_store_in_the_process_does_not_restart_by_itself() -> None:
    assert not applies(PEERS["nchan"], FAULTS["store"])
    assert applies(PEERS["nchan"], FAULTS["server"]) and applies(PEERS["pgbus_gevent"], FAULTS["store"])


def test_the_command_runs_everything_unless_it_is_told_less() -> None:
    options = parse([])
    assert (options.peers, options.faults) == (list(PEERS), list(FAULTS))
    assert parse(["--peers", "nchan", "--faults", "cuts"]).peers == ["nchan"]


def test_only_a_hundred_is_shown_as_a_hundred() -> None:
    assert [percent({"percent": value}) for value in (100.0, 99.9999, 99.5, 12.34)] == ["100", "99.99", "99.50", "12.3"]
    assert (percent(None), percent({"failed": "why"})) == ("–", "failed")


def test_the_page_is_that_of_the_kept_figures() -> None:
    found = json.loads((ROOT / "docs/peers.json").read_text())
    text = (ROOT / "docs/peers.md").read_text()
    assert all(f"<!-- {name} -->" in text and f"<!-- /{name} -->" in text for name in PARTS)
    assert all(make(found) in text for make in PARTS.values())
    assert page(text, found) == text, "run: python -m benchmarks.peers --from docs/peers.json --write"
    assert "pgbus_gevent" in table(found)


def test_the_chart_is_that_of_the_kept_figures() -> None:
    found = json.loads((ROOT / "docs/peers.json").read_text())
    drawn = (ROOT / "docs/images/peers.svg").read_text()
    assert chart(found) == drawn, "run: python -m benchmarks.peers --from docs/peers.json --write"
    texts = [text.text for text in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {*found["runs"], "100"} <= set(texts)


def test_keys_are_found_in_any_encoding() -> None:
    assert KEY.findall('["s0/a/1 xx","s3/b/22 xx"]') == ["s0/a/1", "s3/b/22"]
    assert (HERE / "servers").is_dir()
