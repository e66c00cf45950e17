"""The operations of a history: what is done to a world, each at its time."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from . import clock, database
from .database.locks import BELL
from .ledger import Message
from .loop import CLOCK
from .losses import FORGED
from .oracle import CALM_AFTER
from .visitors import Visitor
from .world import World

OPERATIONS: dict[str, Callable[..., None]] = {}

RECONNECT = 1.5
"""Seconds that a worker may need to recover from sessions that are cut: the pauses before it tries again."""

LISTEN_AGAIN = 0.8
"""Seconds in which a worker has another LISTEN session, and has asked the table what it missed."""


def operation(function: Callable[..., None]) -> Callable[..., None]:
    """Note an operation by its name."""
    OPERATIONS[function.__name__] = function
    return function


def after(seconds: float, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function later."""
    clock.loop().timer(seconds).start(function, *arguments)


# publishing


@operation
def publish(
    world: World, streams: list[str], kind: str, holds: float, fails: bool, label: str | None, size: int
) -> None:
    """Publish a message to each of some streams, in one transaction."""
    exclude = None
    if label is not None and label.startswith("exclude "):
        visitor = world.visitors.get(int(label[8:]))
        label, exclude = None, visitor.connection if visitor is not None else None
    messages = [world.message(stream, label, exclude, size) for stream in streams]
    # The locks of its streams are held until it ends, so others wait for it.
    world.spawn(partial(world.server.publish, messages, kind=kind, holds=holds, fails=fails))


@operation
def whisper(world: World, stream: str, label: str | None, large: bool) -> None:
    """Publish an ephemeral message."""
    world.spawn(world.server.whisper, world.message(stream, label, size=8000 if large else 0))


# clients


@operation
def join(
    world: World,
    number: int,
    streams: list[str],
    cursor: int | None,
    replay: int | None,
    labels: list[str],
    rights: list[str],
) -> None:
    """A client comes."""
    visitor = world.visitors[number] = Visitor(
        f"c{number}",
        tuple(streams),
        oracle=world.oracle,
        chance=world.chance,
        labels=frozenset(labels),
        rights=frozenset(rights),
        pick=world.pick,
        descriptor=world.network.descriptor,
    )
    visitor.cursors = [cursor] * len(streams)
    visitor.replay = replay
    visitor.come()


def _visitor(act: Callable[..., None]) -> Callable[..., None]:
    def found(world: World, number: int, *arguments: Any) -> None:
        visitor = world.visitors.get(number)
        if visitor is not None:
            act(visitor, *arguments)

    found.__name__ = act.__name__
    return operation(found)


@_visitor
def drop(visitor: Visitor, pieces: int, back: float) -> None:
    """A line is cut, and the client comes back."""
    visitor.leave(pieces=pieces, back=back)


@_visitor
def hop(visitor: Visitor, back: float) -> None:
    """A client changes to another worker as soon as it gets a message, of which that worker may not know yet."""
    visitor.hop(back)


@_visitor
def quit(visitor: Visitor) -> None:
    """A client leaves for good."""
    visitor.leave()
    visitor.gone = True


@_visitor
def stall(visitor: Visitor, room: int) -> None:
    """A client reads nothing any more."""
    visitor.stall(room)


@_visitor
def flow(visitor: Visitor) -> None:
    """It reads again."""
    visitor.flow()


@_visitor
def change(visitor: Visitor, label: str) -> None:
    """A filter gives it a right, or takes it."""
    visitor.change(label)


# notifications


@operation
def noise(world: World, lose: float, repeat: float, delay: float, late: float, seconds: float) -> None:
    """Notifications are lost, repeated and delayed for a while."""
    network = world.network
    network.lose, network.repeat, network.delay, network.late = lose, repeat, delay, late
    world.excuse(0.0, seconds + late + CALM_AFTER)

    def end() -> None:
        network.lose = network.repeat = network.delay = 0.0

    after(seconds, end)


@operation
def full(world: World, seconds: float) -> None:
    """The notification queue is full for a while."""
    world.server.can_notify = False
    world.excuse(0.0, seconds + CALM_AFTER)

    def end() -> None:
        world.server.can_notify = True

    after(seconds, end)


@operation
def forge(world: World, stream: str, ahead: int, named: bool) -> None:
    """Somebody forges a notification about a message that does not exist."""
    server = world.server
    head = server.head(stream, server.now(None))
    id = server.message_ids.last_value + ahead
    world.spawn(server.notify, server.channel(stream), _forgery(world, stream, id, head if named else None))


@operation
def impersonate(world: World, stream: str, count: int) -> None:
    """Somebody publishes messages, one after the other, and forges one with the id of each, of which the workers hear first."""
    messages = [world.message(stream) for _ in range(count)]
    world.spawn(world.server.impersonate, messages, partial(_forgery, world))


def _forgery(world: World, stream: str, id: int, prev_id: int | None) -> str:
    world.oracle.losses.forged(stream, id)
    return json.dumps(["message", stream, id, prev_id, CLOCK.time(), None, FORGED, None, None])


@operation
def squat(world: World, seconds: float) -> None:
    """A session holds the bells, so that no commit rings for a while."""
    session = world.server.session()
    session.begin()
    if session.transaction is not None:
        for bell in (0, 1):
            world.server.locks.take((BELL, bell), session.transaction)
    after(seconds, session.close)


# sessions


@operation
def cut(world: World, kind: str, worker: int) -> None:
    """Sessions are cut: those that listen, the others, or all, of one worker."""
    name = f"w{worker}"
    world.network.cut(
        lambda session: (
            session.worker == name and (kind == "all" or (kind == "listen") == (session.listener is not None))
        )
    )
    # After a lost LISTEN session the table is asked at once; if others are lost, there may be another steward.
    world.excuse(RECONNECT, LISTEN_AGAIN if kind == "listen" else RECONNECT + 2.5)


@operation
def hang(world: World, kind: str, worker: int, seconds: float) -> None:
    """Sessions that are open now answer nothing any more, and are cut later."""
    name = f"w{worker}"
    hung = [
        session
        for session in world.network.sessions.values()
        if session.worker == name and (kind == "all" or (kind == "listen") == (session.listener is not None))
    ]
    for session in hung:
        session.hung = True

    def end() -> None:
        for session in hung:
            session.cut()

    after(seconds, end)
    world.excuse(min(seconds, 9.0) + RECONNECT)


@operation
def hole(world: World, seconds: float) -> None:
    """Nothing is answered for a while: a black hole."""
    network = world.network
    network.hung = True

    def end() -> None:
        network.hung = False

    after(seconds, end)
    world.excuse(seconds + 5.0 + RECONNECT)


@operation
def slow(world: World, latency: float, seconds: float) -> None:
    """All answers are slow for a while."""
    network, before = world.network, world.history.scheduler["latency"]
    network.latency = latency

    def end() -> None:
        network.latency = before

    after(seconds, end)
    world.excuse(seconds + 20 * latency)


# the server


@operation
def restart(world: World, seconds: float, back: float) -> None:
    """The server restarts after a crash, and has lost the commits of the last ``back`` seconds."""
    world.network.away = True
    world.network.cut()
    _went_back(world, world.server.go_back(back, database.crash))

    def end() -> None:
        world.network.away = False

    after(seconds, end)
    world.excuse(seconds + 2.0 + RECONNECT)


@operation
def promote(world: World, seconds: float, back: float) -> None:
    """A standby is promoted that lacks the commits of the last ``back`` seconds.

    It takes new sessions at once. Nobody answers on the old ones any more, and after ``seconds`` they are cut.
    """
    network, server = world.network, world.server
    old = list(network.sessions.values())
    for session in old:
        session.hung = True
    _went_back(world, server.go_back(back, database.promote))

    def end() -> None:
        for session in old:
            session.cut()

    after(seconds, end)
    world.excuse(min(seconds, 9.0) + 2.0 + RECONNECT)


def _went_back(world: World, lost: list[Message]) -> None:
    if lost:
        world.oracle.went_back(lost, [seat for visitor in world.visitors.values() for seat in visitor.seats])


@operation
def sequence(world: World, back: int) -> None:
    """The sequence of the ids is set back."""
    world.excuse(0.0)
    world.server.message_ids.set(world.server.message_ids.last_value - back)


@operation
def prune(world: World, stream: str, keep: int) -> None:
    """Old messages are removed."""
    world.spawn(world.server.prune, stream, keep)


# workers


@operation
def kill(world: World, worker: int, seconds: float, kindly: bool) -> None:
    """A worker dies, or is stopped, and another one takes its place."""
    found = world.workers[worker]
    if not found.serves:
        return
    (found.stop if kindly else found.kill)()
    after(seconds, found.come_back)
    world.excuse(seconds + 3.0)


@operation
def wound(world: World, worker: int, task: str) -> None:
    """A greenlet of a worker is killed."""
    world.workers[worker].wound(task)


@operation
def strike(world: World, worker: int, sends: int) -> None:
    """A worker's dispatcher is killed in the middle of its work: after so many more sends to clients."""
    world.workers[worker].sends_left = sends
