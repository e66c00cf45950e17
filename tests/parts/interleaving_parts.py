"""Random steps over the streamer's parts, with as many switches between greenlets as a test asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import strategies as st
from streamer_parts import FakeClient, Parts

from pgbus_gevent.streamer import dispatcher, ephemeral_passes, reader, turns

CLIENT = st.integers(0, 20)
"""A number that picks one of the clients."""

BREATHS = st.sampled_from([0, 1, 1, 2, 3, 5, 8, 20])
"""How often other greenlets run after a step."""


def grain_finely(monkeypatch: pytest.MonkeyPatch, *, chunk_bytes: int = 20) -> None:
    """Make turns, chunks and pauses as small as possible, so that every interleaving can happen."""
    monkeypatch.setattr(dispatcher, "SLICE", 2)
    monkeypatch.setattr(dispatcher, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(ephemeral_passes, "EPHEMERAL_BYTES", 50)
    monkeypatch.setattr(ephemeral_passes, "SLICE", 2)
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(dispatcher, "_CACHED_CURSORS", 2)
    monkeypatch.setattr(reader, "_PAUSES", (0.0, 0.0))


def breathe(times: int) -> None:
    """Let the other greenlets run so many times."""
    for _ in range(times):
        turns.breathe()


class Run:
    """One interleaving. A step is the name of a method, without ``do_``, and its arguments.

    ``open`` has the clients that have not left.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.open: list[FakeClient] = []

    def take(self, steps: Iterable[tuple[Any, int]]) -> None:
        """Take the steps, each with a number of breaths after it."""
        for step, breaths in steps:
            self.do(*step)
            breathe(breaths)

    def do(self, step: str, *arguments: Any) -> None:
        getattr(self, f"do_{step.replace(' ', '_')}")(*arguments)

    def since(self, stream: str, start: str) -> int | None:
        """Return the cursor for a start at the "oldest", "middle" or "newest" message of a stream, and None for any other start."""
        ids = self.parts.table.ids(stream)
        starts = {"oldest": 0, "middle": ids[len(ids) // 2] if ids else 0, "newest": self.parts.table.head(stream)}
        return starts.get(start)

    def do_jam(self, pick: int) -> None:
        if self.open:
            self.open[pick % len(self.open)].jammed = True

    def do_unblock(self, pick: int) -> None:
        if self.open:
            self.open[pick % len(self.open)].unblock()

    def do_leave(self, pick: int) -> None:
        if self.open:
            self.parts.leave(self.open.pop(pick % len(self.open)))

    def do_look(self, stream: str = "orders") -> None:
        self.parts.look(stream)

    def do_forget_the_ring(self, stream: str = "orders") -> None:
        log = self.parts.registry.log(stream)
        if log is not None:
            log.clear_ring()

    def do_kill(self, which: int) -> None:
        self.parts.restart(which)
