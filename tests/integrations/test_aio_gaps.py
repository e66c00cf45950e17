"""From any cursor, a tail of asyncio brings the messages and the gaps that a browser gets from there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgbus_gevent.bus import Bus
from pgbus_gevent.testing.client import StreamClient

PROGRAM = Path(__file__).with_name("aio_follow.py")


def of_a_browser(client: StreamClient, last: int) -> list[Any]:
    """All that comes until the message ``last``."""
    while client.next().id != str(last):
        pass
    frames = [frame for frame in client.frames if frame.dispatches and frame.event in ("message", "pgbus:gap-detected")]
    return [frame.data if frame.event == "message" else json.loads(frame.data) for frame in frames]


@pytest.mark.program
def test_a_tail_brings_what_a_browser_gets(pgbus_bus: Bus, pgbus_client: Callable[..., StreamClient]) -> None:
    orders, others = pgbus_bus.stream("orders"), pgbus_bus.stream("others")
    ids: list[int] = []
    between: list[int] = []
    for n in range(9):
        ids.append(orders.broadcast(str(n)) or 0)
        between.append(others.broadcast("another stream") or 0)
    with pgbus_bus.transaction() as cursor:
        cursor.execute("insert into pgbus.horizons (stream, msg_id) values ('orders', %s)", (ids[2],))
        cursor.execute("delete from pgbus.messages where stream = 'orders' and msg_id <= %s", (ids[2],))
        cursor.execute("delete from pgbus.messages where msg_id = %s", (ids[5],))  # by hand
    cursors = {
        "everything": 0,
        "no id of any message": 5,
        "pruned": ids[0],
        "the last that was pruned": ids[2],
        "of another stream, below the oldest": between[2],
        "the oldest": ids[3],
        "the one before the hole": ids[4],
        "the hole": ids[5],
        "of another stream, above the hole": between[5],
        "the one after the hole": ids[6],
        "of another stream, in the middle": between[6],
        "the one before the newest": ids[7],
        "ahead": ids[8] + 10**6,
    }
    arguments = [str(pgbus_bus.settings.database_url), "orders", str(ids[8]), *map(str, cursors.values())]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    of_tails = dict(zip(cursors, map(json.loads, done.stdout.splitlines()), strict=True))
    of_browsers = {}
    for name, cursor in cursors.items():
        with pgbus_client("orders", since=cursor) as client:
            of_browsers[name] = of_a_browser(client, ids[8])
    names = {"requested": "requestedId", "oldest": "oldestId", "last": "lastId"}
    same = {
        name: [
            {names.get(key, key): value for key, value in one.items()} if isinstance(one, dict) else one
            for one in found
        ]
        for name, found in of_tails.items()
    }
    assert same == of_browsers
    without = {name for name, found in same.items() if all(isinstance(one, str) for one in found)}
    assert without == {"the hole", "the one after the hole", "the one before the newest"}
