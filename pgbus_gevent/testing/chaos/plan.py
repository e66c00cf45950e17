"""Who watches what: the clients of a run, as the conductor plans them and the program of the clients makes them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from .faulty import KINDS
from .hooks import ROOM
from .publishing import AUDIENCE, COALESCED, EPHEMERAL, EXCLUDING, PLAIN, SHORT, TABLE

BROWSER = "browser"


class Place(NamedTuple):
    """A client: its number, the user as whom it logs in, and its streams.

    ``kind`` is empty, :data:`BROWSER` for a page in Chromium, or what a :mod:`faulty <.faulty>` client does.
    """

    number: int
    user: int
    streams: list[str]
    kind: str = ""


def make_plan(chance: random.Random, clients: int, browsers: int) -> list[Place]:
    """Return this many clients, of which the last are browsers, and after them the faulty ones."""
    return [*_sound(chance, clients, browsers), *_faulty(clients)]


def _sound(chance: random.Random, clients: int, browsers: int) -> Iterator[Place]:
    others = [*AUDIENCE, *EXCLUDING, *SHORT, *TABLE, *COALESCED, *EPHEMERAL, ROOM, *AUDIENCE]
    for number in range(clients):
        if number >= clients - browsers:
            yield Place(number, number, [PLAIN[number % len(PLAIN)]], BROWSER)
        elif number % 5 in (0, 1):
            yield Place(number, number, [others[(number // 2) % len(others)]])
        elif number % 5 == 2:
            yield Place(number, number, chance.sample([*PLAIN, *AUDIENCE, *SHORT, *TABLE], 3))
        else:
            yield Place(number, number, [PLAIN[number % len(PLAIN)]])


def _faulty(first: int) -> Iterator[Place]:
    for number, kind in enumerate(KINDS, first):
        if kind == "forbidden":
            yield Place(number, number | 1, [*AUDIENCE], kind)  # odd, because the filter permits odd users more
        else:
            yield Place(number, number, [PLAIN[number % len(PLAIN)]], kind)
