"""Histories at random, for the comparison of the model of the database with the real one.

Each history has a theme, which says how often each step is taken, so that rare things meet: a savepoint and a lock, a snapshot and
a pruned message, three transactions and two bells.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from model_parts import SESSIONS, ModelSide, Step

STREAMS = 4
READS = (
    "last_ids",
    "read_after",
    "moved",
    "inventory",
    "tail",
    "pages",
    "openings",
    "ephemerals",
    "wakes",
    "revocations",
    "ids",
)

_ALL = {
    "begin": 6, "commit": 5, "rollback": 2, "savepoint": 2, "rollback_to": 2, "release": 1, "immediate": 1, "now": 12,
    "commit later": 5, "many": 4, "ephemeral": 2, "ask": 12, "prune": 2, "forget": 1, "age": 1, "lose": 1, "jumped": 1,
    "disconnect": 1, "impatient": 1, "bad": 1, "cancel": 1, "kill": 1, "ring": 2,
}  # fmt: skip
"""How often each step is taken in a history of no theme."""

THEMES: dict[str, dict[str, int]] = {
    "all": _ALL,
    "locks": {"begin": 8, "now": 16, "savepoint": 5, "rollback_to": 5, "release": 2, "commit": 4, "rollback": 3, "many": 2,
              "commit later": 3, "impatient": 2, "cancel": 1, "bad": 2, "kill": 1, "ask": 1},
    "bells": {"begin": 8, "now": 10, "commit later": 8, "immediate": 5, "commit": 5, "rollback": 2, "savepoint": 3,
              "rollback_to": 3, "ephemeral": 4, "many": 2, "ring": 2},
    "snapshots": {"begin": 6, "now": 8, "many": 3, "commit": 3, "rollback": 1, "prune": 3, "ask": 16, "commit later": 2, "age": 1},
    "keys": {"begin": 5, "now": 14, "many": 8, "commit": 5, "rollback": 2, "commit later": 5, "prune": 1, "ask": 2, "age": 1},
    "retention": {"begin": 1, "commit": 2, "now": 12, "many": 3, "prune": 8, "age": 5, "forget": 4, "ask": 12, "rollback": 1},
    "ids": {"begin": 3, "now": 14, "many": 4, "commit": 4, "rollback": 3, "lose": 4, "jumped": 2, "commit later": 3, "ask": 3},
    "reads": {"now": 10, "many": 4, "ask": 24, "prune": 1, "ephemeral": 1, "begin": 1, "commit": 2},
    "steward": {"begin": 5, "now": 8, "commit": 4, "rollback": 1, "disconnect": 4, "ask": 14, "ring": 3},
}  # fmt: skip

_ISOLATIONS = {
    "snapshots": ["repeatable read", "repeatable read", "serializable", "read committed"],
    "keys": ["read committed", "repeatable read"],
}
_KINDS = {
    "steward": ("ids", "revocations", "wakes", "last_ids"),
    "retention": ("last_ids", "pages", "openings", "inventory", "moved"),
}
_BAD: list[dict[str, Any]] = [
    {"stream": ""}, {"stream": "a\n"}, {"event": "pgbus:x"}, {"event": "a\nb"}, {"visible_to": ""}, {"exclude": ""},
    {"key": ""}, {"key": "k" * 1001},
]  # fmt: skip


class Histories:
    """Draws the steps of one history. The model says what is possible."""

    def __init__(self, seed: int, theme: str) -> None:
        self._chance = Random(f"{seed} {theme}")
        self._theme = theme
        self._weights = THEMES[theme]

    def steps(self, model: ModelSide, size: int) -> Iterator[Step]:
        """Return ``size`` steps; the model takes each one before the next is drawn."""
        names, weights = list(self._weights), list(self._weights.values())
        drawn = 0
        for _ in range(size * 20):
            step = self._step(self._chance.choices(names, weights)[0])
            if model.is_possible(step):
                yield step
                drawn += 1
            if drawn == size:
                return

    def _step(self, name: str) -> Step:
        chance = self._chance
        session = chance.randrange(SESSIONS)
        stream = chance.choice([0, 0, 1, 2, 3])
        small = chance.randrange(7)
        keys = [None, "k", "l"] if self._theme == "keys" else [None, None, None, None, "k"]
        if name == "begin":
            default = ["read committed", "read committed", "repeatable read", "serializable"]
            return (name, session, chance.choice(_ISOLATIONS.get(self._theme, default)))
        if name in ("savepoint", "rollback_to", "release"):
            return (name, session, chance.choice("sst"))
        if name in ("now", "commit later"):
            size = chance.choice(["small"] * 5 + ["middle", "quoted", "large"])
            label = chance.choice([None, None, "label"])
            return (
                "broadcast",
                session,
                "now" if name == "now" else "commit",
                stream,
                size,
                chance.choice(keys),
                label,
            )
        if name == "many":
            size_of_batch = chance.randrange(4)
            given = [chance.choice(keys) for _ in range(size_of_batch)] if chance.random() < 0.5 else None
            return (name, session, stream, given, size_of_batch)
        if name == "ephemeral":
            return (name, session, stream, chance.choice(["small", "middle", "large"]))
        if name == "ask":
            return (
                name,
                session,
                chance.choice(_KINDS.get(self._theme, READS)),
                *(chance.randrange(7) for _ in range(3)),
            )
        if name == "prune":
            counts = [chance.choice([None, None, 1, 2, 3]) for _ in range(STREAMS)]
            return (name, session, chance.choice([1800.0, 7200.0, 1e6]), counts, chance.choice([1, 3, 100]))
        if name == "forget":
            return (name, session, chance.choice([1800.0, 7200.0]), chance.choice([1, 100]))
        if name == "ring":
            kind = chance.choice(["ring_for", "ring_everybody", "ring_control"])
            return (kind, session, small) if kind == "ring_for" else (kind, session)
        arguments = {"lose": (stream, small), "disconnect": (chance.choice(["ada", "bob"]),), "impatient": (stream,)}
        return (name, session, chance.choice(_BAD)) if name == "bad" else (name, session, *arguments.get(name, ()))


def _now(session: int, stream: int, key: str | None = None) -> Step:
    return ("broadcast", session, "now", stream, "small", key, None)


def _later(session: int, stream: int) -> Step:
    return ("broadcast", session, "commit", stream, "small", None, None)


def _begin(*sessions: int) -> list[Step]:
    return [("begin", session, "read committed") for session in sessions]


_NO_COUNTS = [None] * STREAMS

SCENARIOS: dict[str, list[Step]] = {
    "what a savepoint takes back": [
        *_begin(0), ("savepoint", 0, "s"), _now(0, 0), ("ephemeral", 0, 0, "small"), ("rollback_to", 0, "s"), _now(1, 0),
        _now(0, 1), _now(2, 1), ("commit", 0), _now(1, 0),
    ],
    "three transactions and two bells": [
        *_begin(0, 1, 2), _now(0, 0), _now(1, 1), _now(2, 2), ("immediate", 0), ("immediate", 1), ("immediate", 2), _now(0, 0),
        _now(0, 0), _now(1, 1), ("commit", 1), ("commit", 2), ("commit", 0), _now(3, 1),
    ],
    "what was queued, and triggers that run at once": [
        *_begin(0), _later(0, 0), _later(0, 1), _now(0, 2), _now(0, 0), ("immediate", 0), _later(0, 0), _now(0, 1), ("commit", 0),
    ],
    "a stream is pruned, forgotten and used again": [
        _now(0, 0), _now(0, 0), _now(0, 1), ("age", 0), _now(0, 1), ("prune", 0, 1800.0, _NO_COUNTS, 100), ("ask", 0, "last_ids"),
        ("age", 0), ("forget", 0, 1800.0, 100), ("ask", 0, "pages", 0, 1, 5), _now(0, 0), ("ask", 0, "pages", 0, 1, 5), _now(0, 1),
        ("prune", 0, 1800.0, _NO_COUNTS, 100), _now(0, 1), ("ask", 0, "openings", 1, 2, 5),
    ],
    "a pruned stream goes on": [
        ("many", 0, 0, None, 3), ("age", 0), ("prune", 0, 1800.0, _NO_COUNTS, 100), ("ask", 0, "last_ids"), _now(0, 0),
        ("many", 0, 0, None, 2), ("prune", 0, 1e6, [1, None, None, None], 100), ("ask", 0, "openings", 1, 1, 5),
    ],
    "the sequence goes back, and the epoch is lost": [
        ("many", 0, 0, None, 3), ("lose", 0, 0, 3), _now(0, 0), _now(1, 1), ("jumped", 0), _now(0, 1), _now(0, 0),
    ],
    "the sequence goes back to ids that an old snapshot does not show": [
        ("begin", 0, "repeatable read"), ("ask", 0, "last_ids"), ("many", 1, 0, None, 3), ("many", 1, 1, None, 2),
        ("lose", 1, 0, 2), _now(0, 0), ("commit", 0), ("lose", 1, 1, 1), _now(1, 2), _now(1, 0),
    ],
    "a rollback": [*_begin(0), _now(0, 0), _later(0, 1), ("rollback", 0), _now(1, 0), _now(1, 1)],
    "streams are locked in one order": [
        *_begin(0, 1), *(_later(0, stream) for stream in range(STREAMS)), *(_later(1, stream) for stream in (3, 2, 1, 0)),
        ("commit", 0), ("commit", 1), ("ask", 0, "tail", 0, 0, 6),
    ],
    "two removals": [
        ("many", 0, 0, None, 3), *_begin(0), ("prune", 0, 1e6, [2, *_NO_COUNTS[1:]], 100),
        ("prune", 1, 1e6, [1, *_NO_COUNTS[1:]], 1),
        ("commit", 0), ("ask", 0, "inventory", 0, 1, 0),
    ],
    "an old snapshot, and what was pruned since": [
        ("many", 0, 0, None, 3), ("begin", 0, "repeatable read"), ("ask", 0, "last_ids"),
        ("prune", 1, 1e6, [1, *_NO_COUNTS[1:]], 100),
        ("ask", 0, "read_after", 0, 0, 6), ("ask", 0, "pages", 0, 3, 5), ("ask", 1, "read_after", 0, 0, 6), ("commit", 0),
    ],
    "a key that an old snapshot does not show": [
        ("begin", 0, "repeatable read"), ("ask", 0, "last_ids"), _now(1, 0, "k"), _now(0, 0, "k"), ("rollback", 0), _now(2, 0, "k"),
    ],
    "the bounds of reads": [
        *(("many", 0, stream, None, 3) for stream in range(STREAMS)),
        ("ask", 0, "openings", 1, 2, 5), ("ask", 0, "openings", 2, 1, 5),
        ("ask", 0, "inventory", 2, 1, 0), ("ask", 0, "inventory", 3, 1, 0), ("ask", 0, "tail", 0, 0, 5),
        ("ask", 0, "tail", 6, 2, 1),
        ("ask", 0, "pages", 1, 2, 0), ("ask", 0, "pages", 3, 0, 5), ("ask", 0, "moved", 1, 1, 1),
    ],
    "an opposite order, and the end of a circle": [
        *_begin(0, 1), _now(0, 0), _now(1, 1), _now(0, 1), _now(1, 0), ("rollback", 0), ("rollback", 1), _now(2, 0), _now(2, 1),
    ],
}  # fmt: skip
"""Short histories of what seldom meets at random."""
