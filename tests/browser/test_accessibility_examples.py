"""Everybody can use the pages of the examples, as test_accessibility.py says of the pages of the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from accessibility_parts import Subject, cookie_of, faults_of, written
from browser_parts import Browser, Profile, missing
from program_parts import ROOT, Program, program

from pgbus_gevent.bus import Bus

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.slow]

LIVE = "document.querySelector('pgbus-stream-source')?.getAttribute('state') === 'open'"
numbers = count()


def wall(example: Program, bus: Bus) -> Subject:
    return Subject("/", LIVE, lambda: example.post("/", text="hello"))


def chat(example: Program, bus: Bus) -> Subject:
    """Bob writes in a room, and nobody waits for the page's own visitor."""

    def say() -> None:
        said = {"key": f"key-{next(numbers)}", "name": "Bob", "text": "Is anybody here?"}
        bus.stream("chat:garden").broadcast(json.dumps(said), event="said")

    return Subject("/garden", LIVE, say)


def assistant(example: Program, bus: Bus) -> Subject:
    """An answer grows, a word at a time."""
    stream = bus.stream("conversation:of-the-test")
    question = stream.broadcast("Why live in the woods?", event="question")
    text = ""

    def write() -> None:
        nonlocal text
        word = f"word{next(numbers)} "
        stream.broadcast(json.dumps({"answer": question, "at": len(text), "text": word}), event="word")
        text += word

    return Subject("/c/of-the-test", LIVE, write)


def table(example: Program, bus: Bus) -> Subject:
    return Subject("/", LIVE, lambda: example.post("/run/raise"))


def orders(example: Program, bus: Bus) -> Subject:
    return Subject("/", LIVE, lambda: example.post("/orders", item="cake"))


def shop(example: Program, bus: Bus) -> Subject:
    """The shop in Flask, for a customer."""
    cookie = cookie_of(example.post("/login", name="ada"))
    return Subject("/", LIVE, lambda: bus.stream("orders").broadcast("cake", event="order"), cookie)


SUBJECTS: dict[str, Callable[[Program, Bus], Subject]] = {
    "assistant": assistant,
    "bottle_app": wall,
    "bottle_orders": orders,
    "chat": chat,
    "flask_orders": shop,
    "orders_turbo": orders,
    "table_feed": table,
}
ELSEWHERE = {
    "departures": "it serves the page of the demo",
    "test_bottle_orders": "it has no page",
    "django_orders": "its page is that of flask_orders",
    "fastapi_orders": "its page is that of flask_orders",
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_everybody_can_use_the_page(
    name: str, browser: Browser, pgbus_database: str, pgbus_bus: Any, tmp_path: Path
) -> None:
    project = ROOT / "examples" / name
    command = ["-m", "pgbus_gevent.serve", "shop:app"] if project.is_dir() else [f"{project}.py"]
    path = {"PYTHONPATH": f"{ROOT}:{project}"}
    with program(*command, database_url=pgbus_database, cwd=tmp_path, **path) as example:
        tabs = Profile(browser, example.url)
        try:
            faults = faults_of(tabs, SUBJECTS[name](example, pgbus_bus))
            assert not faults, written(faults)
            assert tabs.errors == []
        finally:
            tabs.close()


def test_no_example_is_left_out() -> None:
    examples = {
        path.stem for path in (ROOT / "examples").iterdir() if path.suffix in ("", ".py") and path.stem[0] != "_"
    }
    assert examples - {"images"} == SUBJECTS.keys() | ELSEWHERE.keys()
