"""``Bus`` and ``Stream`` for asyncio, with the methods of :mod:`pgbus_gevent.bus` as coroutines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import time
from typing import TYPE_CHECKING, Any

from psycopg.pq import TransactionStatus

from ..core.client import Subscriber
from ..core.cursor import parse_cursor, parse_replay
from ..core.markup import Html
from ..core.names import check_data, check_ephemeral, check_keys, check_name, check_owner, check_texts, expiry
from ..core.table_tail import Gap
from ..core.tags import Tags
from ..database import statements
from ..database.session_settings import OWN_SEARCH_PATH
from ..database.traces import SET_TRACE, traced
from ..errors import InvalidArgument, RolledBack
from ..messages import Message
from ..publishing.observed import NOW, ON_COMMIT, Observer, tracing_of
from ..settings.options import chosen
from ..settings.table import Settings
from .ear import Ear
from .sessions import Cursor, Sessions, run_in
from .tail import Tail

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..settings.options import Options

_ISOLATION = ("read committed", "repeatable read", "serializable")


class Bus:
    """The streams of one database, for asyncio.

    ``Bus()`` reads the database URL and all other settings from the environment. Pass single settings by keyword, or all of them
    as ``settings`` (:class:`Settings`). The schema must be there: ``pgbus-gevent migrate`` and ``serve`` make it.
    Use a Bus in one event loop at a time, as ``async with Bus() as bus``, or call :meth:`close` in the end.

    Raises :class:`InvalidSetting` for a setting that is not allowed, :class:`MissingSetting` without a ``database_url``, and
    :class:`InvalidArgument` for ``settings`` together with single settings.
    """

    def __init__(
        self, database_url: str | None = None, *, settings: Settings | None = None, **options: Unpack[Options]
    ) -> None:
        self.settings = chosen("Bus", settings, {"database_url": database_url, **options})
        self._tags = Tags(self.settings.prefix, self.settings.secret, self.settings.public)
        self._sessions = Sessions(self.settings)
        self._ear = Ear(self._sessions)
        self.observer = Observer(tracing=tracing_of(self.settings.tracing))
        self.events = self.observer.events
        """The events of this Bus: :class:`pgbus_gevent.core.events.Published` for each broadcast."""

    def stream(self, name: str) -> Stream:
        """Return the stream with this name; it need not have messages yet. Raises :class:`InvalidName`."""
        return Stream(self, check_name(name))

    def sign(self, name: str, *, expires_in: float | None = None, expires_at: float | None = None) -> str:
        """Return a signed stream name for a URL. It is valid for ever, or for ``expires_in`` seconds, or until ``expires_at``.

        ``expires_at`` is in Unix seconds. Names that are made with the same one are equal, so that pages and caches can share them.
        Raises :class:`InvalidName`, and :class:`InvalidArgument` if there is no secret, or for a time that is not allowed.
        """
        return self._tags.signer.sign(name, expiry(expires_in, expires_at, time()))

    def stream_path(self, name: str, *, expires_in: float | None = None, expires_at: float | None = None) -> str:
        """Return the path of a stream on its server. Without a secret, the path of a public stream has the bare name."""
        return self._tags.path(name, expiry(expires_in, expires_at, time()))

    async def stream_tag(
        self,
        *names: str,
        expires_in: float | None = None,
        expires_at: float | None = None,
        using: object | None = None,
        subscriber: Subscriber | None = None,
    ) -> Html:
        """Return the HTML element that connects a page to one stream or several, as :meth:`pgbus_gevent.Bus.stream_tag` does.

        With ``using``, the watermarks are those of the snapshot of that transaction (see :class:`Stream`). ``subscriber`` is what
        the authorize hook of the server answers for the user of the page.
        """
        if not names:
            raise InvalidArgument("stream_tag takes the names of one or more streams, but was given none")
        at = expiry(expires_in, expires_at, time())
        watermarks = await self._watermarks(names, using)
        if len(names) == 1:
            return self._tags.of_one(names[0], watermarks[0], at, subscriber)
        return self._tags.of_several(names, watermarks, at, [subscriber] * len(names))

    async def stream_tags(
        self,
        *names: str,
        expires_in: float | None = None,
        expires_at: float | None = None,
        using: object | None = None,
        subscriber: Subscriber | None = None,
    ) -> list[Html]:
        """Return one element for each stream, as :meth:`stream_tag` does. One query reads all watermarks."""
        at = expiry(expires_in, expires_at, time())
        watermarks = await self._watermarks(names, using) if names else []
        return [self._tags.of_one(*each, at, subscriber) for each in zip(names, watermarks, strict=True)]

    async def _watermarks(self, names: Sequence[str], using: object | None) -> list[int]:
        for name in names:
            check_name(name)
        rows = await self._run(using, statements.last_ids(len(names)), names)
        return [int(id) for (id,) in rows]

    async def _run(self, using: object | None, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        if using is None:
            return await self._sessions.rows(statement, parameters)
        return await run_in(using, statement, parameters)

    @asynccontextmanager
    async def transaction(self, isolation: str | None = None) -> AsyncIterator[Cursor]:
        """Open a transaction, and yield a cursor of psycopg 3 in it that can be passed as ``using=``.

        The end of the block commits it; an exception rolls it back. ``isolation`` is an isolation level such as
        ``"repeatable read"``; the default is READ COMMITTED. Raises :class:`RolledBack` if a statement in it had failed whose error
        was caught.
        """
        if isolation is not None and isolation.lower() not in _ISOLATION:
            raise InvalidArgument(
                f"isolation={isolation!r:.80} is not allowed: expected one of {', '.join(_ISOLATION)}"
            )
        async with self._sessions.cursor() as cursor, cursor.connection.transaction():
            if isolation is not None:
                await cursor.execute(f"set transaction isolation level {isolation}")  # type: ignore[arg-type, unused-ignore]
            await cursor.execute(OWN_SEARCH_PATH, (None,))
            yield cursor
            if cursor.connection.info.transaction_status is TransactionStatus.INERROR:
                raise RolledBack()

    async def disconnect(self, owner: str, *, using: object | None = None) -> None:
        """Close every connection of ``owner`` on every worker, with reason ``revoked``, as :meth:`pgbus_gevent.Bus.disconnect`."""
        await self._run(using, statements.DISCONNECT, (check_owner(owner),))

    async def close(self) -> None:
        """Close the database connections, and end the loops over tails, after the messages that they have read already.

        Closing twice is allowed, and the next use opens new connections.
        """
        await self._ear.close()
        await self._sessions.close()

    async def __aenter__(self) -> Bus:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class Stream:
    """One stream of a :class:`Bus`, returned by :meth:`Bus.stream`.

    All methods raise :class:`InvalidArgument` for an argument that is not allowed, and :class:`DatabaseError` if the database
    refuses a statement or cannot be reached.

    ``using`` runs the statement in the caller's transaction. It takes an AsyncConnection or AsyncCursor of psycopg 3, or an
    AsyncSession or AsyncConnection of SQLAlchemy on psycopg 3. Errors of the database are then raised as the driver's own.
    """

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self.name = name

    def __repr__(self) -> str:
        return f"<Stream {self.name!r}>"

    async def broadcast(
        self,
        data: str,
        *,
        event: str | None = None,
        visible_to: str | None = None,
        exclude: str | None = None,
        key: str | None = None,
        ephemeral: bool = False,
        using: object | None = None,
    ) -> int | None:
        """Publish one message with the text ``data``, and return its id.

        With ``using``, the message is published at the commit of that transaction, and with ``ephemeral`` it is not stored; both
        return None. The other arguments are those of :meth:`pgbus_gevent.Stream.broadcast`.
        """
        arguments = (self.name, check_data(data), *statements.publication(event, visible_to, exclude, key))
        check_ephemeral(ephemeral, key)
        with self._bus.observer.broadcast(self.name, NOW if using is None else ON_COMMIT) as trace:
            if ephemeral:
                await self._bus._run(using, statements.BROADCAST_EPHEMERAL, arguments[:5])
            elif using is not None:
                await run_in(using, *traced(statements.BROADCAST_ON_COMMIT, arguments, trace))
            else:
                rows = await self._bus._run(None, *traced(statements.BROADCAST, arguments, trace))
                return int(rows[0][0])
        return None

    async def broadcast_many(
        self,
        data: Sequence[str],
        *,
        event: str | None = None,
        visible_to: str | None = None,
        exclude: str | None = None,
        keys: Sequence[str | None] | None = None,
        using: object | None = None,
    ) -> int | None:
        """Publish several messages in one transaction, and return the id of the last one, or None if ``data`` is empty.

        With ``using``, they are published at the commit of that transaction, and the call returns None. The other arguments are
        those of :meth:`pgbus_gevent.Stream.broadcast_many`.
        """
        publication = statements.publication(event, visible_to, exclude)
        texts = check_texts(data)
        keys = check_keys(keys, len(texts))
        kind = NOW if using is None else ON_COMMIT
        with self._bus.observer.broadcast(self.name, kind, messages=len(texts)) as trace:
            if using is None:
                arguments = (self.name, texts, *publication[:3], keys)
                rows = await self._bus._run(None, *traced(statements.BROADCAST_MANY, arguments, trace))
                return None if rows[0][0] is None else int(rows[0][0])
            if trace is not None:
                await run_in(using, SET_TRACE, (trace,))
            await run_in(using, *statements.many_on_commit(self.name, texts, publication, keys))
        return None

    async def last_id(self, *, using: object | None = None) -> int:
        """Return the watermark: the id of the newest message, or 0 if there was never one.

        With ``using``, it is the newest id in the snapshot of that transaction.
        """
        return (await self._bus._watermarks([self.name], using))[0]

    async def read_after(self, cursor: int, limit: int = 500) -> list[Message]:
        """Return at most ``limit`` messages with ids above ``cursor``, oldest first."""
        rows = await self._bus._run(None, statements.READ_AFTER, (self.name, cursor, limit))
        return [Message(self.name, *row) for row in rows]

    def tail(
        self,
        *,
        since: int | str | None = None,
        replay: int | None = None,
        on_gap: Callable[[Gap], object] | None = None,
    ) -> Tail:
        """Return an asynchronous iterator over the stream's messages: ``async for message in orders.tail(): …``.

        Args:
            since: A cursor: the id of the last message that the caller has seen, as a number or as text from a client. 0 asks for
                all messages that are retained.
            replay: Start with the last so many messages instead. Without ``since`` and ``replay``, only new messages come.
            on_gap: Is called with a :class:`Gap` if messages are gone. Without it, the iterator raises :class:`GapDetected`.

        All messages come, also those that only some clients may see; ephemeral messages do not. Raises :class:`InvalidCursor`.
        """
        if since is not None and replay is not None:
            raise InvalidArgument("tail takes since= or replay=, but was given both")
        start = None if since is None else parse_cursor(str(since))
        count = None if replay is None else parse_replay(str(replay))
        return Tail(self._bus._sessions, self._bus._ear, self.name, since=start, replay=count, on_gap=on_gap)
