"""The log of connections: one line when one opens, one when it closes, and nothing secret in either."""

from __future__ import annotations

import json
import logging
import re

import pytest
from page_parts import block_of
from site_parts import SECRETS, Site, running_site
from support import until

from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.events import Connected, Disconnected, Events
from pgbus_gevent.hosts.logs import JsonFormatter, TextFormatter
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web.connection_log import FIELDS, ConnectionLog
from pgbus_gevent.web.stream_app import StreamApp

NAME = "pgbus_gevent.connections"


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == NAME]


def told(record: logging.LogRecord) -> dict[str, object]:
    return dict(getattr(record, FIELDS))


def visit(site: Site, caplog: pytest.LogCaptureFixture, token: str) -> tuple[logging.LogRecord, logging.LogRecord]:
    """Connect with a signed name, get two messages, leave, and return the two lines."""
    with site.watch(token) as client:
        client.next("pgbus:connected")
        for data in ("one", "two"):
            site.bus.stream("orders").broadcast(data)
            client.next("message")
    until(lambda: len(lines(caplog)) == 2, "both lines are there")
    opened, closed = lines(caplog)
    return opened, closed


def test_a_visit_is_two_lines_with_what_was_sent(
    pgbus_databases: TestDatabases, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with running_site(pgbus_databases.make(), log_connections="on") as site:
        token = site.sign("orders")
        opened, closed = visit(site, caplog, token)
        last = site.bus.stream("orders").last_id()
    first, second = told(opened), told(closed)
    where = {"streams": ["orders"], "address": "127.0.0.1"}
    assert first == {"event": "opened", "connection": first["connection"], **where}
    seconds, size = second.pop("seconds"), second.pop("bytes")
    assert isinstance(seconds, float) and 0 < seconds < 180 and isinstance(size, int) and size > 100
    assert second == {
        "event": "closed",
        "connection": first["connection"],
        "reason": "client left",
        "messages": 2,
        "last_ids": [last],
        **where,
    }
    for record in (opened, closed):
        for formatter in (TextFormatter("%(message)s"), JsonFormatter()):
            line = formatter.format(record)
            assert "\n" not in line and token not in line and not any(secret in line for secret in SECRETS)
    assert json.loads(JsonFormatter().format(closed)).items() >= {"event": "closed", "messages": 2}.items()
    told_last = f'messages=2, bytes={size}, last_ids=[{last}], streams=["orders"], address="127.0.0.1"'
    assert closed.getMessage().endswith(told_last)


def test_the_documented_lines_have_the_form_of_real_ones(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    events = Events()
    ConnectionLog(events, owners=False)
    last_ids = (1795547890113946,)
    events.emit(Disconnected("5d0b6f", ("orders",), None, "client left", 61.204, 17, 5120, last_ids, "203.0.113.7"))
    [record] = lines(caplog)
    record.process, record.created = 71, 1796011200.0
    configured = TextFormatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    assert block_of("docs/operations/monitoring.md", "text").strip() == configured.format(record)
    shown = json.loads(block_of("docs/operations/monitoring.md", "json"))
    real = json.loads(JsonFormatter().format(record))
    assert re.fullmatch(shown.pop("message").replace("…", ".*"), real.pop("message"))
    assert shown == real and list(shown) == list(real)


@pytest.mark.parametrize(("setting", "owner"), [("on", None), ("owners", "ada@example.com")])
def test_the_owner_is_named_only_if_the_setting_says_so(
    setting: str, owner: str | None, pgbus_databases: TestDatabases, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with running_site(pgbus_databases.make(), log_connections=setting) as site:
        site.app = StreamApp(site.instance, lambda environ, stream: Subscriber(owner="ada@example.com"))
        for record in visit(site, caplog, site.sign("orders")):
            assert told(record).get("owner") == owner
            assert ("ada@example.com" in record.getMessage()) is (owner is not None)


def test_it_is_off_by_default(pgbus_databases: TestDatabases, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with running_site(pgbus_databases.make()) as site:
        with site.watch("demo:x") as client:
            client.next("pgbus:connected")
        until(lambda: not site.instance.registry.clients(), "it has left")
    assert lines(caplog) == []


def test_only_what_a_client_may_see_counts_as_sent(
    pgbus_databases: TestDatabases, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with running_site(pgbus_databases.make(), log_connections="on") as site:
        with site.watch("demo:x") as plain, site.watch("demo:x") as other:
            for client in (plain, other):
                client.next("pgbus:connected")
            stream = site.bus.stream("demo:x")
            stream.broadcast_many(["secret"] * 5, visible_to="nobody")
            stream.broadcast_many(["open", "open"])
            stream.broadcast("hint", ephemeral=True)
            for client in (plain, other):
                # An ephemeral message may overtake stored ones that are read from the table.
                assert sorted(client.next("message").data for _ in range(3)) == ["hint", "open", "open"]
        until(lambda: len(lines(caplog)) == 4, "all lines are there")
    assert [told(record)["messages"] for record in lines(caplog) if told(record)["event"] == "closed"] == [3, 3]


def test_a_name_with_control_characters_stays_on_its_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    events = Events()
    ConnectionLog(events, owners=True)
    events.emit(Connected("c1", ("é\u2028",), "eve\nINFO forged", "::1%\x85\u202e"))
    events.emit(Disconnected("c1", ("é\u2028",), "eve\x1b[31m", "left\r\x9b", 1.0, 0, 0, (None,), "\x7f"))
    for record in lines(caplog):
        assert record.getMessage().isprintable()  # for the formatters of other programs
        for formatter in (TextFormatter("%(message)s"), JsonFormatter()):
            assert formatter.format(record).isprintable()


def test_nothing_is_made_for_a_log_that_drops_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, NAME)
    events = Events()
    ConnectionLog(events, owners=True)
    events.emit(Connected("c1", ("orders",), None))
    events.emit(Disconnected("c1", ("orders",), None, "client left", 1.0))
    assert lines(caplog) == []
