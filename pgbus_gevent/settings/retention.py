"""How long messages are kept, and how many: one age for all streams, and rules for streams whose names match a pattern.

`Settings` casts the rules with `rules`. The pruner asks a `Retention` about each stream.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NoReturn

from .casting import Kind, duration, format_duration, json_list, parse_integer, presentable

_EVER = 1e10  # seconds; longer than the settings allow

MAX_COUNT = 1_000_000
"""The largest count of a rule. It is limited because each round counts the messages of every stream with a count."""


@dataclass(frozen=True)
class Rule:
    """The messages that are kept of the streams that match ``pattern``.

    They are at most ``age`` seconds old, and at most ``count`` in number (None: no limit). Patterns are those of `fnmatch`, with
    case: ``*`` is any text, ``?`` is one character, ``[abc]`` is one of these characters.
    """

    pattern: str
    age: float
    count: int | None = None

    def __str__(self) -> str:
        count = "" if self.count is None else f"/{self.count}"
        return f"{self.pattern}={format_duration(self.age)}{count}"


class Retention:
    """Says which messages of a stream are kept: by the first rule that matches its name, or else those of ``age`` seconds.

    ``forget_after`` is how long an empty stream is remembered, in seconds.
    """

    def __init__(self, age: float, rules: Iterable[Rule] = (), forget_after: float = 0.0) -> None:
        self._age = age
        self._rules = tuple(rules)
        self.forget_after = forget_after

    @classmethod
    def read(cls, statement: str) -> Retention:
        """Make a Retention from the text of :attr:`statement`. Raises ValueError for any other text."""
        found = json.loads(statement)
        if not isinstance(found, dict) or found.keys() != {"retention", "retention_patterns", "forget_after"}:
            _refuse()
        ages = [duration(0, _EVER).cast(found[name]) for name in ("retention", "forget_after")]
        return cls(ages[0], rules(0, _EVER).cast(json.dumps(found["retention_patterns"])), ages[1])

    @property
    def statement(self) -> str:
        """The retention as text for other processes. Two retentions are equal if their texts are."""
        facts = {
            "retention": format_duration(self._age),
            "retention_patterns": [str(rule) for rule in self._rules],
            "forget_after": format_duration(self.forget_after),
        }
        return json.dumps(facts, ensure_ascii=False)

    def __str__(self) -> str:
        patterns = f" retention_patterns={_as_text(self._rules)}" if self._rules else ""
        return f"retention={format_duration(self._age)}{patterns} forget_after={format_duration(self.forget_after)}"

    def keep(self, stream: str) -> tuple[float, int | None]:
        """Return the age in seconds for ``stream``, and the number of messages, or None if that is not limited."""
        for rule in self._rules:
            if fnmatchcase(stream, rule.pattern):
                return rule.age, rule.count
        return self._age, None


def keep_longest(retentions: Iterable[Retention], stream: str) -> tuple[float, int | None]:
    """Return the longest age and the highest number that one of ``retentions`` has for ``stream``; None is no limit."""
    kept = [retention.keep(stream) for retention in retentions]
    counts = [count for _, count in kept if count is not None]
    return max(age for age, _ in kept), max(counts) if len(counts) == len(kept) else None


def rules(low: float, high: float) -> Kind[tuple[Rule, ...]]:
    """Rules with ages from ``low`` to ``high`` seconds.

    As text, they are ``PATTERN=AGE`` or ``PATTERN=AGE/COUNT``, separated by commas, or a JSON array of such texts. In TOML and
    Python, they are a table from patterns to ages, to texts ``AGE/COUNT``, or to tables with ``age`` and ``count``. A pattern must
    not come twice.
    """
    age = duration(low, high).cast

    def cast(value: object) -> tuple[Rule, ...]:
        found = tuple(_rule(pattern, kept, age) for pattern, kept in _pairs(value))
        return found if len({rule.pattern for rule in found}) == len(found) else _refuse()

    allowed = (
        f"a table from patterns to ages from {format_duration(low)} to {format_duration(high)}, such as 7d, 1m/100 or"
        f" {{age = '1m', count = 100}}, with a count from 1 to {MAX_COUNT}; or a text PATTERN=AGE[/COUNT], separated by"
        " commas; each pattern once"
    )
    limits = f"each {format_duration(low)} to {format_duration(high)}"
    return Kind("PATTERN=AGE[/COUNT]", cast, allowed, limits, _as_text, _show)


def _pairs(value: object) -> list[tuple[object, object]]:
    if isinstance(value, str):
        # If a pattern contains a comma, the rules are a JSON array of texts.
        texts = json_list(value)
        if texts is None:
            texts = [text.strip() for text in value.split(",")] if value.strip() else []
        items = [text.rpartition("=") for text in texts]
        return [(pattern, kept) for pattern, _, kept in items]
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return [(rule.pattern, rule) for rule in value if isinstance(rule, Rule) or _refuse()]
    _refuse()


def _rule(pattern: object, kept: object, age: Callable[[object], float]) -> Rule:
    # Names of streams never contain these characters, so such a pattern would match nothing.
    if not isinstance(pattern, str) or not pattern or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in pattern):
        _refuse()
    if isinstance(kept, Rule):
        return Rule(pattern, age(kept.age), None if kept.count is None else _count(kept.count))
    if isinstance(kept, dict):
        if not kept.keys() <= {"age", "count"} or "age" not in kept:
            _refuse()
        return Rule(pattern, age(kept["age"]), _count(kept["count"]) if "count" in kept else None)
    if isinstance(kept, str) and "/" in kept:
        length, _, number = kept.partition("/")
        return Rule(pattern, age(length), _count(number))
    return Rule(pattern, age(kept))


def _count(value: object) -> int:
    number = parse_integer(value)
    return number if 1 <= number <= MAX_COUNT else _refuse()


def _as_text(value: tuple[Rule, ...]) -> str:
    return ",".join(map(str, value))


def _show(value: object) -> object:
    # A table is in its right place here. In a wrong place it may contain a password, so `presentable` would hide it.
    return value if isinstance(value, dict) else presentable(value)


def _refuse() -> NoReturn:
    raise ValueError
