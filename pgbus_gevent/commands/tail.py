"""The command ``tail``: follows streams as a browser does, with the same parts, but without HTTP.

Each stream has a follower, a greenlet that reads from an Instance of this process, and keeps the cursor. All followers give their
lines to one :class:`Output`, whose greenlet alone writes to stdout.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gevent
from gevent.event import AsyncResult

from ..core.client import Place, StreamRequest
from ..core.cursor import parse_cursor, parse_replay
from ..core.filters import Filters
from ..core.names import CONTROL_PREFIX, check_name
from ..core.sse_parser import ParsedFrame, Parser
from ..database import Database
from ..database.checks import Checks
from ..errors import DatabaseError, PgbusError
from ..settings.table import Settings
from ..streamer.instance import Instance
from .output import Output, as_json, as_text
from .program import INTERRUPTED, Command, add_json, database_settings, say, schema_expected

_ABOUT = """\
Print the messages of streams as they are published, one per line: id, stream (if there are several), event and data. A line
that begins with a space continues the data of the message above. A dash (-) means no id (an ephemeral message) or no event.

It starts with the next message, unless --since or --replay is given, and runs until it is interrupted or its output is closed.
The database must be reachable at the start. If it goes away later, tail waits, and continues where it was: no message is lost
or repeated. It also prints messages that only some clients may see (--visible-to)."""

_EXAMPLES = """\
examples:
  pgbus-gevent tail orders
  pgbus-gevent tail orders invoices --replay 10
  pgbus-gevent tail orders --since 0 --json | jq -r .data
  pgbus-gevent tail orders | head -1"""

_RECONNECT = 1.0
"""About how many seconds a follower waits before it connects again, if the Instance has sent it away."""

_Renderer = Callable[[str, ParsedFrame], str]


def _add_tail(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("streams", metavar="STREAM", nargs="+", help="the name of a stream")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--since", metavar="ID", help="start with the first message after this id; 0 is the oldest retained message"
    )
    start.add_argument("--replay", metavar="N", help="start with the last N messages of each stream")
    add_json(parser, "stream, id, event (both may be null) and data")


def _tail(arguments: argparse.Namespace, settings: Settings) -> int:
    names = list(dict.fromkeys(map(check_name, arguments.streams)))
    since = None if arguments.since is None else parse_cursor(arguments.since, "--since")
    replay = None if arguments.replay is None else parse_replay(arguments.replay, "--replay")
    render: _Renderer = as_json if arguments.json else as_text(names)
    with _stopped_by_signals() as end, database_settings(settings) as settings:
        # This command only reads, so it does not migrate. The limits of connections and of their age do not apply to it.
        limits = max(settings.max_connections, len(names))
        settings = replace(settings, migrate=False, max_age=0.0, max_connections=limits)
        database = Database(settings, read_only=True)
        with schema_expected():
            heads = {name: database.queries.last_id(name) for name in names}
            _check_rights(database)
        # Each follower has a cursor from the start, because the database may go away before the Instance has asked it.
        starts = {name: None if replay is not None else _start(since, name, heads) for name in names}
        foreign = len(names) > 1
        places = [Place(name, since=starts[name], replay=replay, foreign=foreign) for name in names]
        instance = Instance(
            settings,
            database=database,
            filters=Filters(default=lambda context, stream: True),
            read_only=True,
            on_failure=lambda part: end.set_exception(PgbusError(f"{part} has failed for good")),
        )
        _follow(instance, places, render, end)
    return end.get() or 0


TAIL = Command(
    "tail",
    "print messages as they are published",
    _ABOUT,
    _EXAMPLES,
    ("database_url", "data_dir", "listen_url", "wake"),
    _add_tail,
    _tail,
)


def _check_rights(database: Database) -> None:
    """Raise DatabaseError if this role lacks a right that is needed. Without this, the Instance would retry for ever."""
    needed = {f"select on pgbus.{table}" for table in ("messages", "horizons", "revocations")}
    if database.settings.wake != "poll":
        needed.add("execute on pgbus.channels()")
    missing = needed.intersection(Checks(database.pool).missing_rights("server"))
    if missing:
        raise DatabaseError(f"this role lacks the right {', '.join(sorted(missing))}", "42501")


def _start(since: int | None, name: str, heads: dict[str, int]) -> int:
    """The first cursor for the stream ``name``.

    All streams take their ids from one sequence, so an id of one stream is a point in time for the others too. If it is beyond the
    head of this stream, but not beyond those of all streams, the stream starts at its head.
    """
    head = heads[name]
    if since is None:
        return head
    return since if since > max(heads.values()) else min(since, head)


@contextmanager
def _stopped_by_signals() -> Iterator[AsyncResult[int]]:
    """Yield the result that ends the program: its exit status, or an exception. A second signal ends the process at once."""
    end: AsyncResult[int] = AsyncResult()
    watchers: list[Any] = []

    def stop(status: int) -> None:
        for watcher in watchers:
            watcher.cancel()
        end.set(status)

    for number, status in ((signal.SIGINT, INTERRUPTED), (signal.SIGTERM, 0), (signal.SIGHUP, 0)):
        # A signal that is already ignored, as by nohup, stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            watchers.append(gevent.signal_handler(number, stop, status))
    try:
        yield end
    finally:
        for watcher in watchers:
            watcher.cancel()


def _follow(instance: Instance, places: Iterable[Place], render: _Renderer, end: AsyncResult[int]) -> None:
    """Follow the places until ``end`` is set. Raises its exception if it is set to one."""

    def failed(greenlet: gevent.Greenlet[..., None]) -> None:
        assert greenlet.exception is not None
        end.set_exception(greenlet.exception)

    output = Output(on_error=end.set_exception)
    workers = [output.run, *(Follower(instance, place, output, render).run for place in places)]
    running: list[gevent.Greenlet[..., None]] = []
    try:
        instance.start()
        for worker in workers:
            running.append(gevent.spawn(worker))
            running[-1].link_exception(failed)
        end.get()
    finally:
        gevent.killall(running, timeout=1.0)
        instance.shutdown(2.0)


class Follower:
    """Reads one stream as a browser does: from a cursor, and if the connection ends, again from the last cursor."""

    def __init__(self, instance: Instance, place: Place, output: Output, render: _Renderer) -> None:
        self._instance = instance
        self._place = place
        self._output = output
        self._render = render

    def run(self) -> None:
        """Follow the stream until the greenlet is killed."""
        while True:
            try:
                self._output.wait_for_room()
                self._connect()
                gevent.sleep(_RECONNECT * random.uniform(0.5, 1.5))
            except BrokenPipeError:
                # The Instance raises it here, in any wait, if this client takes nothing for too long. No message is lost,
                # because the cursor is that of the last message that the output has.
                pass

    def _connect(self) -> None:
        body = self._instance.clients.body(StreamRequest((self._place,)))
        parser = Parser()
        try:
            for chunk in body:
                for frame in parser.feed(chunk):
                    self._output.wait_for_room()
                    self._take(frame)
        finally:
            body.close()

    def _take(self, frame: ParsedFrame) -> None:
        """Print a frame, and move the cursor. It never yields, so output and cursor agree when the greenlet is interrupted."""
        if frame.dispatches and frame.event.startswith(CONTROL_PREFIX):
            self._control(frame)
        elif frame.dispatches:
            self._output.put(self._render(self._place.stream, frame))
        if frame.id is not None:
            # The first frame has an id too. Without it, --replay would start with the last N messages at each connection.
            self._place = self._place._replace(since=int(frame.id), replay=None)

    def _control(self, frame: ParsedFrame) -> None:
        if frame.event == CONTROL_PREFIX + "gap-detected":
            say(_gap(json.loads(frame.data)))


def _gap(facts: dict[str, Any]) -> str:
    stream, requested = facts["stream"], facts["requestedId"]
    if facts["reason"] == "ahead":
        return f"{stream}: {requested} is above the last id, {facts['lastId']}; all retained messages follow"
    oldest = facts["oldestId"]
    return f"{stream}: the messages after {requested} and before {oldest} are no longer retained; the rest follows"
