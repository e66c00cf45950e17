"""Every example, run as its reader would, with one round trip through each."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from program_parts import ROOT, Program, program, tag_in

from pgbus_gevent.bus import Bus
from pgbus_gevent.config import Settings

EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if not path.name.startswith("test_"))


def orders(example: Program, bus: Bus) -> None:
    """A page that was on its way while the shop went on is brought up to date, and then kept so."""
    evil = "</script><b>tea</b>"
    assert example.post("/orders", item=evil).status == 303
    slow = gevent.spawn(example.page, "/?slow=0.5")
    count = 1
    while not slow.ready():
        assert example.post("/orders", item="cake").status == 303
        count += 1
    page = slow.get()
    assert evil not in page
    on_page = json.loads(re.findall(r"const order of (\[.*\])\) show", page, re.DOTALL)[0])
    assert on_page[0] == {"id": 1, "item": evil, "state": "open"}
    with example.watch(*tag_in(page)) as client:
        streamed = [json.loads(client.next("order").data) for _ in range(count - len(on_page))]
        assert streamed and [order["id"] for order in on_page + streamed] == [*range(1, count + 1)]

        assert example.post("/orders/1/pay").status == 303
        assert json.loads(client.next("order").data) == {"id": 1, "item": evil, "state": "paid"}
        # What fails is neither done nor told.
        assert example.post(f"/orders/{count + 1}/pay").status == 404
        assert example.post("/orders", item=" ").status == 400
        assert example.post("/orders", item="milk").status == 303
        assert json.loads(client.next("order").data)["item"] == "milk"


def departures(example: Program, bus: Bus) -> None:
    """The board is there, and whoever publishes to a demo stream is heard."""
    assert "Departures" in example.page()
    with example.watch("/pgbus/streams/demo:hello") as client:
        id = bus.stream("demo:hello").broadcast("hello")
        frame = client.next()
        assert (frame.id, frame.data) == (str(id), "hello")


ROUND_TRIPS: dict[str, Callable[[Program, Bus], None]] = {"bottle_orders.py": orders, "departures.py": departures}


def test_each_example_has_its_round_trip() -> None:
    assert {path.name for path in EXAMPLES} == ROUND_TRIPS.keys()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_example_runs_makes_its_round_trip_and_ends_when_told_to(
    path: Path, pgbus_settings: Settings, pgbus_bus: Bus, tmp_path: Path
) -> None:
    with program(str(path), database_url=str(pgbus_settings.database_url), cwd=tmp_path) as example:
        ROUND_TRIPS[path.name](example, pgbus_bus)
        assert example.stop(signal.SIGINT) == 0
        assert "Traceback" not in example.log


def test_the_shop_fits_on_two_screens() -> None:
    assert len((ROOT / "examples/bottle_orders.py").read_text().splitlines()) < 100
