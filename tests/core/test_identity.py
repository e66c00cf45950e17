"""Identities: equal for connections that are sent the same, on every worker and after every restart."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from types import MappingProxyType, SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from pgbus_gevent.core.client import ANYBODY, Subscriber
from pgbus_gevent.core.identity import Identities

SECRET = "a secret of sixteen characters"
IDENTITIES = Identities([SECRET])


@dataclass
class User:
    id: int
    admin: bool = False
    loaded_at: float = field(default=0.0, compare=False)


class Role(Enum):
    ADMIN = 1
    GUEST = 2


class Level(IntEnum):
    ONE = 1


class Plain:
    def __init__(self, id: int) -> None:
        self.id = id


class Telling(Plain):
    def __pgbus_identity__(self) -> list[Any]:
        return [self.id]


Point = namedtuple("Point", "x y")


def of(context: Any = None, **others: Any) -> str | None:
    return IDENTITIES.of(Subscriber(context=context, **others))


DISTINCT = [
    None, True, False, 1, 1.0, "1", b"1", "", 0, 2**70, Decimal("1"), [], (), [1], (1,), [[1]], {}, {"a": 1}, {"a": "1"}, {1: 1},
    {"1": 1}, {"a": 1, "b": 2}, set(), {1}, frozenset({1}), User(1), User(2), User(1, True), Role.ADMIN, Role.GUEST, Level.ONE,
    Telling(1), Telling(2), Point(1, 2), datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1), UUID(int=1),
    SimpleNamespace(a=1), ["a", "b"], ["ab"], "\ud800", float("nan"), OrderedDict(a=1),
]  # fmt: skip


def test_different_subscribers_have_different_identities() -> None:
    found = [of(value) for value in DISTINCT]
    assert None not in found
    assert len({*found}) == len(DISTINCT)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}),
        (User(1, loaded_at=1.0), User(1, loaded_at=2.0)),
        ({"x", "y", "z"}, {"z", "y", "x"}),
        (Telling(1), Telling(1)),
        (MappingProxyType({"a": 1}), MappingProxyType({"a": 1})),
    ],
)
def test_equal_subscribers_have_equal_identities(one: Any, other: Any) -> None:
    assert of(one) == of(other) is not None


def test_owner_context_and_member_make_it_and_the_expiry_does_not() -> None:
    subscribers = [
        ANYBODY,
        Subscriber(owner="ada"),
        Subscriber(member="ada"),
        Subscriber(context="ada"),
        Subscriber(owner="ada", member="ada"),
        Subscriber(owner="ada", context="ada"),
    ]
    assert len({IDENTITIES.of(each) for each in subscribers}) == len(subscribers)
    for each in subscribers:
        assert IDENTITIES.of(each._replace(expires_at=1e9)) == IDENTITIES.of(each)


def test_labels_make_it_too_in_any_order() -> None:
    assert of(labels=["a", "b"]) == of(labels=["b", "a"])
    assert len({of(), of(labels=["a"]), of(labels=["b"]), of(labels=["a", "b"]), of(["a"])}) == 5
    assert Identities([]).of(Subscriber(labels=["a"])) is None


def test_owner_and_member_are_a_part_of_their_own_which_is_empty_for_anonymous_clients() -> None:
    def who(subscriber: Subscriber) -> str:
        return (IDENTITIES.of(subscriber) or "").split(".")[1]

    assert who(Subscriber(owner="ada", context=1)) == who(Subscriber(owner="ada", context=2)) != ""
    assert who(Subscriber(owner="ada")) != who(Subscriber(owner="bob"))
    assert who(ANYBODY) == who(Subscriber(context=User(1))) == ""


class Broken:
    def __pgbus_identity__(self) -> None:
        raise RuntimeError("gone")


def endless() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    "context", [Plain(1), object(), {"user": Plain(1)}, {Plain}, Broken(), endless(), User, range(3)]
)
def test_a_context_that_another_process_could_not_recognise_leaves_the_last_part_empty(context: Any) -> None:
    assert (of(context) or "").endswith("..")
    ada = IDENTITIES.of(Subscriber("ada", context)) or ""
    assert ada == ".".join([*(IDENTITIES.of(Subscriber("ada")) or "").split(".")[:2], ""])
    assert (IDENTITIES.of(ANYBODY, Subscriber(context=context)) or "").endswith("..")


def test_a_context_that_cannot_be_compared_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    identities = Identities([SECRET])
    for number in range(3):
        identities.of(Subscriber(context=Plain(number)))
    (record,) = caplog.records
    assert "Plain" in record.getMessage() and "__pgbus_identity__" in record.getMessage()


def test_streams_with_the_same_subscriber_are_one_and_with_several_another_one() -> None:
    ada, bob = Subscriber(owner="ada"), Subscriber(owner="bob")
    assert IDENTITIES.of(ada, Subscriber(owner="ada")) == IDENTITIES.of(ada)
    mixed = {IDENTITIES.of(ada, bob), IDENTITIES.of(bob, ada), IDENTITIES.of(ada, ada, bob), IDENTITIES.of(ada)}
    assert len(mixed) == 4


def test_another_secret_makes_another_one_and_the_newest_counts() -> None:
    other = Identities(["another secret of a site"])
    assert other.of(ANYBODY) != IDENTITIES.of(ANYBODY)
    assert Identities(["another secret of a site", SECRET]).of(ANYBODY) == IDENTITIES.of(ANYBODY)


def test_an_identity_reveals_nothing() -> None:
    identity = of({"user": "ada"}, owner="ada") or ""
    assert "ada" not in identity
    assert len(identity) == 6 + 1 + 16 + 1 + 16


def test_only_anonymous_subscribers_have_an_identity_without_a_secret() -> None:
    without = Identities(())
    assert without.of(ANYBODY) == Identities(()).of(ANYBODY, ANYBODY) is not None
    assert without.of(Subscriber(owner="ada")) is None


def test_another_process_makes_the_same_identity() -> None:
    code = (
        "from pgbus_gevent.core.identity import Identities; from pgbus_gevent import Subscriber;"
        f"print(Identities([{SECRET!r}]).of(Subscriber('ada', {{'roles': {{'a', 'b', 'c', 'd'}}, 'n': 1.5}}, 'm')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == IDENTITIES.of(Subscriber("ada", {"n": 1.5, "roles": {"d", "c", "b", "a"}}, "m"))
