"""The code in README.md under "Use it" and in docs/serving.md under "In your own process" runs unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import pytest
from page_parts import block_of
from program_parts import PATIENCE, SECRET, program, tag_in

from pgbus_gevent.bus import Bus
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient

PUBLISH, RENDER = block_of("README.md", "publish"), block_of("README.md", "render")


@pytest.mark.parametrize("connect", [psycopg2.connect, psycopg.connect], ids=["psycopg2", "psycopg 3"])
def test_a_page_gets_the_messages_after_its_watermark_and_none_twice(
    connect: Callable[[str], Any], pgbus_database: str
) -> None:
    """Publishing and rendering are two transactions, because ``using=`` publishes only after the watermark was read."""
    connection = connect(pgbus_database)
    names: dict[str, Any] = {"connection": connection}
    try:
        with connection.cursor() as cursor:
            cursor.execute("create table orders (id int primary key, paid boolean not null default false)")
            cursor.execute("insert into orders values (7)")
        connection.commit()
        exec(PUBLISH.replace("postgresql://…", pgbus_database), names)
        exec(RENDER, names)
        assert names["rows"] == [(7, True)]
        orders, (path, since) = names["orders"], tag_in(names["tag"])
        first, second = orders.read_after(0)
        assert (first.data, second.data, second.event, second.id) == ("<p>paid</p>", "<p>paid</p>", "order.paid", since)
        assert path == names["bus"].stream_path("orders")
    finally:
        names["bus"].close()
        connection.close()


USERS = """
from types import SimpleNamespace

ada = SimpleNamespace(name="ada", may_watch=lambda stream: stream == "orders")


def user_of(environ):
    return ada if environ.get("HTTP_COOKIE") == "user=ada" else None
"""


def test_the_server_in_the_users_own_process_runs(tmp_path: Path, pgbus_settings: Settings, pgbus_bus: Bus) -> None:
    code = block_of("docs/serving.md", "own-process").replace("def authorize", f"{USERS}\n\ndef authorize", 1)
    code = code.replace("8080", 'int(__import__("os").environ["PORT"])')
    (tmp_path / "own.py").write_text(code)
    with program("own.py", database_url=str(pgbus_settings.database_url), cwd=tmp_path) as own:
        names = Bus(secret=SECRET)
        path, other = names.stream_path("orders"), names.stream_path("others")
        ada = {"Cookie": "user=ada"}
        assert own.head_status(path) == 403 and own.head_status(other, **ada) == 403
        with StreamClient(own.url, path, headers=ada) as client:
            client.next("pgbus:connected", PATIENCE)
            pgbus_bus.stream("orders").broadcast("paid")
            assert client.next(timeout=PATIENCE).data == "paid"
            assert own.stop() == 0
            client.next("pgbus:shutdown", PATIENCE)
