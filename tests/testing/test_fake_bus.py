"""The common behaviour of the fake Bus and the real one, with the same cases for both, and the extras of the fake one."""

from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import Any

import pytest

from pgbus_gevent import Bus
from pgbus_gevent.core.names import Signer
from pgbus_gevent.errors import BadToken, InvalidArgument, InvalidEvent, InvalidName, TokenExpired
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing import FakeBus

Case = Callable[[Bus], Any]


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.database)])
def bus(request: pytest.FixtureRequest) -> Bus:
    found: Bus = FakeBus() if request.param == "fake" else request.getfixturevalue("pgbus_bus")
    return found


def seen(bus: Bus, stream: str = "s") -> list[tuple[str | None, str, str | None, str | None]]:
    """The stored messages without ids and times."""
    return [(one.event, one.data, one.visible_to, one.exclude) for one in bus.stream(stream)]


# publishing


def test_ids_rise_and_are_the_watermark(bus: Bus) -> None:
    s = bus.stream("s")
    assert s.last_id() == 0
    first = s.broadcast("one")
    second = s.broadcast("two")
    assert isinstance(first, int) and isinstance(second, int) and 0 < first < second < 2**53
    assert s.last_id() == second


def test_a_message_is_whole(bus: Bus) -> None:
    id = bus.stream("s").broadcast("líne\r\none", event="order.paid", visible_to="admins", exclude="a1", key="k")
    (message,) = bus.stream("s").read_after(0)
    assert message._replace(created_at=None) == ("s", id, None, "order.paid", "líne\r\none", "admins", "a1")
    assert message.created_at is not None and message.created_at.tzinfo is not None
    assert abs(message.created_at.timestamp() - time()) < 60


@pytest.mark.parametrize("ephemeral", [False, True])
@pytest.mark.parametrize("using", [False, True])
def test_an_empty_event_is_none(bus: Bus, ephemeral: bool, using: bool) -> None:
    with bus.transaction() as cursor:
        bus.stream("s").broadcast("", event="", ephemeral=ephemeral, using=cursor if using else None)
    assert seen(bus) == ([] if ephemeral else [(None, "", None, None)])


def test_many_at_once(bus: Bus) -> None:
    s = bus.stream("s")
    assert s.broadcast_many([]) is None and s.last_id() == 0
    last = s.broadcast_many(["one", "two"], event="e", visible_to="v", exclude="x")
    assert s.broadcast_many(("three",)) == s.last_id()
    assert last is not None and last < s.last_id()
    assert seen(bus) == [("e", "one", "v", "x"), ("e", "two", "v", "x"), (None, "three", None, None)]


def test_many_with_keys(bus: Bus) -> None:
    s = bus.stream("s")
    first = s.broadcast("a", key="a")
    last = s.broadcast_many(["a again", "b", "b again", "c"], keys=["a", "b", "b", None])
    assert [text for _, text, _, _ in seen(bus)] == ["a", "b", "c"] and last == s.last_id()
    assert s.broadcast_many(["c again", "a again"], keys=[None, "a"]) == first
    assert s.broadcast_many([], keys=[]) is None
    for keys in (["k"], "kk", [7, None], ["a\0b", None]):
        with pytest.raises(InvalidArgument):
            s.broadcast_many(["x", "y"], keys=keys)  # type: ignore[arg-type]


def test_ephemeral_is_not_stored(bus: Bus) -> None:
    s = bus.stream("s")
    assert s.broadcast("hint", ephemeral=True) is None
    assert s.last_id() == 0 and s.read_after(0) == [] and list(s) == []


def test_streams_are_apart(bus: Bus) -> None:
    """Names are never normalised."""
    for name in ("a:b", "a_b", "A:b", "é", "e\u0301"):
        bus.stream(name).broadcast(name)
    for name in ("a:b", "a_b", "A:b", "é", "e\u0301"):
        assert seen(bus, name) == [(None, name, None, None)]


# keys


def test_a_key_counts_once(bus: Bus) -> None:
    s = bus.stream("s")
    first = s.broadcast("one", key="k")
    assert s.broadcast("another", key="k", event="e") == first
    assert s.broadcast("three", key="l") != first
    assert bus.stream("t").broadcast("elsewhere", key="k") != first
    with bus.transaction() as cursor:
        s.broadcast("four", key="k", using=cursor)
        s.broadcast("five", key="m", using=cursor)
        s.broadcast("six", key="m", using=cursor)
    assert [one.data for one in s] == ["one", "three", "five"]


@pytest.mark.parametrize("key", ["k" * 1000, "é" * 500, " "])
def test_keys_of_any_text(bus: Bus, key: str) -> None:
    assert bus.stream("s").broadcast("one", key=key) == bus.stream("s").broadcast("two", key=key)


# held back


def test_coalescing(bus: Bus) -> None:
    """The last message to each target, audience and event is published, in the order of the last writes."""
    s = bus.stream("s")
    for data, target in (("a1", "a"), ("b1", "b"), ("a2", "a")):
        assert s.broadcast(data, coalesce=30, target=target, event="e", visible_to="v", exclude="x") is None
    s.broadcast("another event", coalesce=30, target="a", visible_to="v", exclude="x")
    s.broadcast("no target", coalesce=60)
    s.broadcast("no target, later", coalesce=30.5)
    s.broadcast("hint", coalesce=30, ephemeral=True)
    assert s.last_id() == 0 and bus.coalescer.counts == (7, 2, 0, 0, 0, 5)
    bus.coalescer.flush()
    assert bus.coalescer.counts == (7, 2, 5, 0, 0, 0)
    assert seen(bus) == [
        ("e", "b1", "v", "x"),
        ("e", "a2", "v", "x"),
        (None, "another event", "v", "x"),
        (None, "no target, later", None, None),
    ]


def test_closing_publishes_the_messages_that_were_held_back(bus: Bus) -> None:
    bus.stream("s").broadcast("one", coalesce=30, target="t")
    bus.close()
    assert seen(bus) == [(None, "one", None, None)]


# reading


def test_reading_in_pages(bus: Bus) -> None:
    s = bus.stream("s")
    ids = [s.broadcast(str(n)) for n in range(5)]
    assert [one.id for one in s.read_after(0, 2)] == ids[:2]
    assert [one.id for one in s.read_after(ids[1] or 0)] == ids[2:]
    assert s.read_after(ids[-1] or 0) == [] and s.read_after(2**53 - 1) == []
    assert bus.stream("nobody").read_after(0) == []


# transactions


def test_using_commits_with_the_block(bus: Bus) -> None:
    s = bus.stream("s")
    with bus.transaction() as cursor:
        assert s.broadcast("queued", event="e", visible_to="v", exclude="x", using=cursor) is None
        assert s.broadcast("hint", ephemeral=True, using=cursor) is None
        assert s.last_id() == 0 and s.last_id(using=cursor) == 0
        s.broadcast("at once")
    assert seen(bus) == [(None, "at once", None, None), ("e", "queued", "v", "x")]


def test_using_rolls_back(bus: Bus) -> None:
    s = bus.stream("s")
    with pytest.raises(KeyError), bus.transaction() as cursor:
        s.broadcast("never", using=cursor)
        raise KeyError
    assert s.last_id() == 0
    with bus.transaction() as cursor:
        s.broadcast("later", using=cursor)
    assert seen(bus) == [(None, "later", None, None)]


def test_many_with_using_commit_with_the_block(bus: Bus) -> None:
    s = bus.stream("s")
    s.broadcast("a", key="a")
    with bus.transaction() as cursor:
        texts = ["two", "{3}", 'fo"ur\\', "fünf\n", ""]
        assert s.broadcast_many(texts, event="e", visible_to="v", exclude="x", using=cursor) is None
        assert s.broadcast_many(["a again", "b", "b again"], keys=["a", "b", "b"], using=cursor) is None
        assert s.broadcast_many([], using=cursor) is None
        assert [text for _, text, _, _ in seen(bus)] == ["a"]
    assert seen(bus) == [(None, "a", None, None), *(("e", text, "v", "x") for text in texts), (None, "b", None, None)]
    with pytest.raises(KeyError), bus.transaction() as cursor:
        s.broadcast_many(["never"], using=cursor)
        raise KeyError
    assert len(seen(bus)) == 7


def test_an_exception_that_is_an_answer_commits(bus: Bus) -> None:
    bus.is_answer = lambda error: isinstance(error, KeyError)
    with pytest.raises(KeyError), bus.transaction() as cursor:
        bus.stream("s").broadcast("stays", using=cursor)
        raise KeyError
    with pytest.raises(IndexError), bus.transaction() as cursor:
        bus.stream("s").broadcast("never", using=cursor)
        raise IndexError
    assert seen(bus) == [(None, "stays", None, None)]


def test_the_watermark_of_a_snapshot(bus: Bus) -> None:
    """In a transaction with one snapshot, the watermark stays; in others, it is the present one."""
    s = bus.stream("s")
    first = s.broadcast("one")
    with bus.transaction("repeatable read") as fixed, bus.transaction() as moving:
        assert s.last_id(using=fixed) == s.last_id(using=moving) == first
        second = s.broadcast("two")
        assert s.last_id(using=fixed) == first
        assert s.last_id(using=moving) == second


def test_rows_of_a_watermark(bus: Bus) -> None:
    """Each answer is returned once."""
    with bus.transaction() as cursor:
        cursor.execute("select pgbus.last_id(%s)", ("s",))
        assert cursor.fetchall() == [(0,)]
        assert cursor.fetchone() is None


# names, tags, the rest


def test_signing(bus: Bus) -> None:
    signer = Signer(bus.settings.secret)
    assert signer.verify(bus.sign("a b/ü"), time()) == ("a b/ü", None)
    name, expires_at = signer.verify(bus.sign("s", expires_in=60), time())
    assert name == "s" and expires_at is not None and 50 < expires_at - time() <= 60
    with pytest.raises(TokenExpired):
        signer.verify(bus.sign("s", expires_in=60), time() + 61)
    with pytest.raises(BadToken):
        Signer(["another secret altogether"]).verify(bus.sign("s"), time())


def test_names_with_one_expiry_are_equal(bus: Bus) -> None:
    at = int(time()) + 60
    token = bus.sign("s", expires_at=at)
    assert token == bus.sign("s", expires_at=float(at)) and token != bus.sign("s", expires_at=at + 1)
    assert Signer(bus.settings.secret).verify(token, time()) == ("s", at)
    assert bus.stream_path("s", expires_at=at) == f"/pgbus/streams/{token}"
    assert f"/streams/{token}" in bus.stream_tag("s", expires_at=at)
    assert f"stream={token}&amp;" in bus.stream_tag("s", "t", expires_at=at)
    assert [token in tag for tag in bus.stream_tags("s", "t", expires_at=at)] == [True, False]
    assert bus.stream_tag("s", expires_in=60) != bus.stream_tag("s")
    for bad in ({"expires_at": -1}, {"expires_at": "soon"}, {"expires_in": 5, "expires_at": at}):
        for call in (bus.sign, bus.stream_path, bus.stream_tag, bus.stream_tags):
            with pytest.raises(InvalidArgument):
                call("s", **bad)  # type: ignore[operator]


def test_the_tag(bus: Bus) -> None:
    id = bus.stream("s").broadcast("one")
    with bus.transaction("repeatable read") as cursor:
        tag = bus.stream_tag("s", using=cursor)
        bus.stream("s").broadcast("two")
        assert bus.stream_tag("s", using=cursor) == tag
    path = f"/pgbus/streams/{bus.sign('s')}"
    assert tag == f'<pgbus-stream-source src="{path}" since-id="{id}"></pgbus-stream-source>'
    assert tag.__html__() == tag and bus.stream_path("s") == path


def test_a_filter_can_be_registered(bus: Bus) -> None:
    bus.filters.register("admins", lambda context, stream: True)


def test_closing_twice(bus: Bus) -> None:
    bus.stream("s").broadcast("one")
    bus.close()
    bus.close()
    assert seen(bus) == [(None, "one", None, None)]  # opens again
    with bus as entered:
        assert entered is bus


# errors

REFUSED: list[tuple[str, Case, type[Exception]]] = [
    ("no name", lambda bus: bus.stream(""), InvalidName),
    ("a long name", lambda bus: bus.stream("é" * 128), InvalidName),
    ("a control character", lambda bus: bus.stream("a\nb"), InvalidName),
    ("a name that is none", lambda bus: bus.stream(7), InvalidName),  # type: ignore[arg-type]
    ("a control event", lambda bus: bus.stream("s").broadcast("x", event="pgbus:x"), InvalidEvent),
    ("a line break", lambda bus: bus.stream("s").broadcast("x", event="a\rb"), InvalidEvent),
    ("a line break in many", lambda bus: bus.stream("s").broadcast_many(["x"], event="a\nb"), InvalidEvent),
    ("data that is no text", lambda bus: bus.stream("s").broadcast(b"x"), InvalidArgument),  # type: ignore[arg-type]
    ("no data", lambda bus: bus.stream("s").broadcast(None), InvalidArgument),  # type: ignore[arg-type]
    ("NUL", lambda bus: bus.stream("s").broadcast("a\0b"), InvalidArgument),
    ("a lone surrogate", lambda bus: bus.stream("s").broadcast("\ud800"), InvalidArgument),
    ("one text for many", lambda bus: bus.stream("s").broadcast_many("ab"), InvalidArgument),
    ("NUL in many", lambda bus: bus.stream("s").broadcast_many(["fine", "a\0b"]), InvalidArgument),
    ("an ephemeral key", lambda bus: bus.stream("s").broadcast("x", ephemeral=True, key="k"), InvalidArgument),
    ("an empty key", lambda bus: bus.stream("s").broadcast("x", key=""), InvalidArgument),
    ("a long key", lambda bus: bus.stream("s").broadcast("x", key="k" * 1001), InvalidArgument),
    ("no window", lambda bus: bus.stream("s").broadcast("x", coalesce=0), InvalidArgument),
    ("a window below 0", lambda bus: bus.stream("s").broadcast("x", coalesce=-0.05), InvalidArgument),
    ("a long window", lambda bus: bus.stream("s").broadcast("x", coalesce=60.1), InvalidArgument),
    ("an endless window", lambda bus: bus.stream("s").broadcast("x", coalesce=float("inf")), InvalidArgument),
    ("a window of nan", lambda bus: bus.stream("s").broadcast("x", coalesce=float("nan")), InvalidArgument),
    ("a window of True", lambda bus: bus.stream("s").broadcast("x", coalesce=True), InvalidArgument),
    ("a window of text", lambda bus: bus.stream("s").broadcast("x", coalesce="1"), InvalidArgument),  # type: ignore[arg-type]
    ("a target alone", lambda bus: bus.stream("s").broadcast("x", target="t"), InvalidArgument),
    ("a target of bytes", lambda bus: bus.stream("s").broadcast("x", coalesce=1, target=b"t"), InvalidArgument),  # type: ignore[arg-type]
    ("a coalesced key", lambda bus: bus.stream("s").broadcast("x", coalesce=1, key="k"), InvalidArgument),
    ("a coalesced bad event", lambda bus: bus.stream("s").broadcast("x", coalesce=1, event="a\nb"), InvalidEvent),
    ("coalesced bytes", lambda bus: bus.stream("s").broadcast(b"x", coalesce=1), InvalidArgument),  # type: ignore[arg-type]
    (
        "coalescing in a transaction",
        lambda bus: bus.stream("s").broadcast("x", coalesce=1, using=object()),  # type: ignore[arg-type]
        InvalidArgument,
    ),
    ("a cursor below 0", lambda bus: bus.stream("s").read_after(-1), InvalidArgument),
    ("no limit", lambda bus: bus.stream("s").read_after(0, 0), InvalidArgument),
    ("a bad name to sign", lambda bus: bus.sign("a\0"), InvalidName),
    ("a bad name in a tag", lambda bus: bus.stream_tag(""), InvalidName),
    ("a nameless filter", lambda bus: bus.filters.register("", lambda context, stream: True), InvalidArgument),
]


@pytest.mark.parametrize(("what", "case", "error"), REFUSED, ids=[what for what, _, _ in REFUSED])
def test_bad_arguments_are_refused(bus: Bus, what: str, case: Case, error: type[Exception]) -> None:
    with pytest.raises(error) as failure:
        case(bus)
    assert type(failure.value) is error and str(failure.value)
    assert bus.stream("s").last_id() == 0


def test_a_bad_key_in_a_transaction(bus: Bus) -> None:
    """Both undo the whole call: the real one raises psycopg2's error for the statement, the fake one a ValueError."""
    s = bus.stream("s")
    with pytest.raises(Exception, match="bad key of 1001 bytes"), bus.transaction() as cursor:
        s.broadcast("fine", using=cursor)
        s.broadcast("not", key="k" * 1001, using=cursor)
    assert s.last_id() == 0


def test_messages_of_bad_arguments_are_the_same(pgbus_bus: Bus) -> None:
    for what, case, _ in REFUSED:
        said = []
        for bus in (pgbus_bus, FakeBus()):
            with pytest.raises(InvalidArgument) as failure:
                case(bus)
            said.append(str(failure.value))
        assert said[0] == said[1], what


def test_settings_or_single_ones() -> None:
    """The fake one takes settings like the real one, but needs none."""
    assert FakeBus(prefix="/live").stream_path("s").startswith("/live/streams/")
    settings = Settings(database_url="postgresql:///x", public=("demo:*",))
    assert FakeBus(settings=settings).stream_path("demo:a") == "/pgbus/streams/demo%3Aa"
    with pytest.raises(InvalidArgument):
        FakeBus(settings=settings, prefix="/live")


# extras of the fake one


def test_sent() -> None:
    """``sent`` has all messages in the order of the commits, also ephemeral ones."""
    bus = FakeBus()
    s = bus.stream("s")
    with bus.transaction() as cursor:
        s.broadcast("queued", using=cursor)
        s.broadcast("hint", event="e", ephemeral=True, using=cursor)
        s.broadcast("at once")
        assert [message.data for message in bus.sent] == ["at once"]
    assert [(message.data, message.id is None) for message in bus.sent] == [
        ("at once", False),
        ("queued", False),
        ("hint", True),
    ]
    bus.sent.clear()  # a copy
    assert len(bus.sent) == 3


def test_an_application_s_own_statements() -> None:
    """An application's statements are recorded, and get the rows that a test has prepared."""
    bus = FakeBus()
    bus.answers.extend([[(1, "a"), (2, "b")], []])
    with bus.transaction() as cursor:
        cursor.execute("select id, item from orders")
        bus.stream("s").last_id()
        assert cursor.fetchone() == (1, "a")
        assert list(cursor) == [(2, "b")] and cursor.rowcount == 2
        cursor.execute("update orders set item = %s returning id", ("c",))
        assert cursor.fetchall() == [] and cursor.rowcount == 0
        cursor.execute("select 1")
        assert cursor.fetchone() is None
    assert bus.statements == [
        ("select id, item from orders", None),
        ("update orders set item = %s returning id", ("c",)),
        ("select 1", None),
    ]


def test_a_cursor_of_one_s_own_commits_and_rolls_back() -> None:
    bus = FakeBus()
    with bus.transaction() as cursor:
        bus.stream("s").broadcast("never", using=cursor)
        cursor.rollback()
        bus.stream("s").broadcast("now", using=cursor)
        cursor.commit()
        assert [message.data for message in bus.sent] == ["now"]
    assert len(bus.sent) == 1
