"""``Bus`` and ``Stream``: the Python interface for applications, to publish messages and to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Protocol, cast

from .core.client import Subscriber, checked_answer
from .core.filters import Filters
from .core.markup import Html
from .core.names import (
    check_data,
    check_ephemeral,
    check_keys,
    check_label,
    check_name,
    check_owner,
    check_texts,
    expiry,
)
from .core.tags import Tags
from .database import Database, queries
from .database import using as statements
from .database.batch import Outgoing
from .database.statements import publication as _publication
from .errors import InvalidArgument
from .messages import Message
from .publishing.coalescer import Coalescer, check_window
from .publishing.observed import NOW, ON_COMMIT, Observer, tracing_of
from .publishing.presence import Presence
from .settings.options import chosen
from .settings.table import Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .settings.options import Options

__all__ = ["Bus", "Cursor", "Html", "Stream"]


class Cursor(Protocol):
    """What type checkers know of the database cursor that :meth:`Bus.transaction` yields: psycopg2's, or the testing kit's."""

    def execute(self, query: Any, parameters: Any = ..., /) -> Any: ...
    def fetchone(self) -> tuple[Any, ...] | Any: ...  # Any spares its callers a check for None
    def fetchall(self) -> list[tuple[Any, ...]]: ...
    def __iter__(self) -> Iterator[tuple[Any, ...]]: ...
    @property
    def rowcount(self) -> int: ...


class Bus:
    """The streams of one database.

    ``Bus()`` reads the database URL and all other settings from the environment. Pass single settings by keyword, as in
    ``Bus("postgresql://…", secret="…")``, or all of them as ``settings`` (:class:`Settings`). The first use brings the schema up to
    date, unless ``migrate=False``. A Bus works in any process, with greenlets, with threads, or with neither.

    Raises :class:`InvalidSetting` for a setting that is not allowed, and :class:`InvalidArgument` for ``settings`` together with
    single settings. A Bus is a context manager that closes itself.
    """

    def __init__(
        self, database_url: str | None = None, *, settings: Settings | None = None, **options: Unpack[Options]
    ) -> None:
        self.settings = chosen("Bus", settings, {"database_url": database_url, **options})
        self.filters = Filters(monotonic)
        """The filters that ``visible_to`` names: ``bus.filters.register("admins", lambda context, stream: …)``."""
        self._tags = Tags(self.settings.prefix, self.settings.secret, self.settings.public)
        self.signer = self._tags.signer
        self.subscriber_of: Callable[[str], Subscriber | None] = lambda stream: None
        """Returns the :class:`Subscriber` for a stream name: the user of the page that is being rendered, None if unknown.
        The Bottle plugin sets it."""
        self.is_answer: Callable[[Exception], bool] = lambda error: False
        """Whether an exception is an answer to a request, with which :meth:`transaction` commits. The Bottle plugin sets it, for
        ``redirect``."""
        self.coalescer = Coalescer(lambda messages: self.database.queries.broadcast_batch(messages))
        """Holds messages that are broadcast with ``coalesce``. Its ``counts`` say how many were published, replaced or dropped."""
        self.observer = Observer(tracing=tracing_of(self.settings.tracing))
        self.events = self.observer.events
        """The events of this Bus: :class:`pgbus_gevent.core.events.Published` for each broadcast without ``coalesce``."""

    @property
    def database(self) -> Database:
        """The database, with its schema up to date.

        Raises :class:`MissingSetting` without a ``database_url``, and :class:`DatabaseError` if the schema cannot be migrated.
        """
        found: Database | None = self.__dict__.get("database")
        if found is None:
            database = Database(self.settings)
            if self.settings.migrate:
                database.migrate()
            # Others may come meanwhile. All get the first one, as close() closes no other. A cached_property would keep it twice.
            found = self.__dict__.setdefault("database", database)
        return found

    def stream(self, name: str) -> Stream:
        """Return the stream with this name; it need not have messages yet. Raises :class:`InvalidName`."""
        return Stream(self, check_name(name))

    def sign(self, name: str, *, expires_in: float | None = None, expires_at: float | None = None) -> str:
        """Return a signed stream name for a URL. It is valid for ever, or for ``expires_in`` seconds, or until ``expires_at``.

        ``expires_at`` is in Unix seconds. Names that are made with the same one are equal, so that pages and caches can share them.
        If it has passed, so has the name.
        Raises :class:`InvalidName`, and :class:`InvalidArgument` if there is no secret, or for a time that is not allowed.
        """
        return self.signer.sign(name, expiry(expires_in, expires_at, time()))

    def stream_path(self, name: str, *, expires_in: float | None = None, expires_at: float | None = None) -> str:
        """Return the path of a stream on its server. Without a secret, the path of a public stream has the bare name.

        ``expires_in``, ``expires_at`` and the errors are those of :meth:`sign`.
        """
        return self._tags.path(name, expiry(expires_in, expires_at, time()))

    def stream_tag(
        self,
        *names: str,
        expires_in: float | None = None,
        expires_at: float | None = None,
        using: object | None = None,
        subscriber: Subscriber | None = None,
    ) -> Html:
        """Return the HTML element ``<pgbus-stream-source>`` that connects a page to one stream or several.

        It contains the path and the watermark of each stream, so the page gets every message after the watermark. ``using`` takes
        the watermark from the snapshot of that transaction (see :class:`Stream`): read the page's content in it, and the page and
        the stream match exactly. ``expires_in`` and ``expires_at`` are those of :meth:`sign`.

        ``subscriber`` is what the authorize hook answers for the user of the page. Tabs share a connection only if their
        subscribers are equal, and the element stops if the browser is logged in as somebody else by then. The Bottle plugin
        provides it; without a subscriber the browser asks the server.

        Templates that support ``__html__`` (Jinja2) insert the tag without escaping. In Bottle's SimpleTemplate, write ``{{!…}}``.

        Raises :class:`InvalidArgument` without a name, :class:`InvalidName`, and :class:`DatabaseError`.
        """
        if len(names) == 1:
            expires_at = expiry(expires_in, expires_at, time())
            return self.stream_tags(*names, expires_at=expires_at, using=using, subscriber=subscriber)[0]
        if not names:
            raise InvalidArgument("stream_tag takes the names of one or more streams, but was given none")
        subscribers, at = self._subscribers(names, subscriber), expiry(expires_in, expires_at, time())
        return self._tags.of_several(names, self._watermarks(names, using), at, subscribers)

    def stream_tags(
        self,
        *names: str,
        expires_in: float | None = None,
        expires_at: float | None = None,
        using: object | None = None,
        subscriber: Subscriber | None = None,
    ) -> list[Html]:
        """Return one element for each stream, as :meth:`stream_tag` does. One query reads all watermarks."""
        at = expiry(expires_in, expires_at, time())
        places = zip(names, self._watermarks(names, using), self._subscribers(names, subscriber), strict=True)
        return [self._tags.of_one(name, watermark, at, each) for name, watermark, each in places]

    def _subscribers(self, names: Sequence[str], subscriber: Subscriber | None) -> list[Subscriber | None]:
        given = checked_answer(subscriber)
        return [given if given is not None else checked_answer(self.subscriber_of(name)) for name in names]

    def _watermarks(self, names: Sequence[str], using: object | None) -> list[int]:
        for name in names:
            check_name(name)
        return self.database.queries.last_ids(names) if using is None else statements.last_ids(using, names)

    @contextmanager
    def transaction(self, isolation: str | None = None) -> Iterator[Cursor]:
        """Open a transaction, and yield a psycopg2 cursor in it that can be passed as ``using=``.

        The end of the block commits it; an exception rolls it back, unless :attr:`is_answer` says that it is an answer. Raises
        :class:`RolledBack` if a statement in it had failed whose error was caught, and :class:`DatabaseError`.
        ``isolation`` is an isolation level such as ``"repeatable read"``; the default is READ COMMITTED.
        """
        answer: BaseException | None = None
        with self.database.queries.transaction(isolation) as database_cursor:
            try:
                yield cast(Cursor, database_cursor)
            except Exception as error:
                if not self.is_answer(error):
                    raise
                answer = error
        if answer is not None:
            raise answer

    def disconnect(self, owner: str, *, using: object | None = None) -> None:
        """Close every connection of ``owner`` on every worker, with reason ``revoked``.

        ``owner`` is the name that the authorize hook gave in its :class:`Subscriber`. Revoke the user's rights first, because the
        clients reconnect, and the hook then decides again. With ``using`` the call is part of the caller's transaction, and takes
        effect at COMMIT. Raises :class:`InvalidArgument`, and :class:`DatabaseError`.
        """
        check_owner(owner)
        if using is None:
            self.database.queries.disconnect(owner)
        else:
            statements.disconnect(using, owner)

    def close(self) -> None:
        """Publish the messages that ``coalesce`` still holds, and close the database connections.

        Closing twice is allowed, and the next use opens new connections.
        """
        self.coalescer.close()
        database = self.__dict__.pop("database", None)
        if database is not None:
            database.close()

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Stream:
    """One stream of a :class:`Bus`, returned by :meth:`Bus.stream`. Iterating over it yields all retained messages, oldest first.

    All methods raise :class:`InvalidArgument` for an argument that is not allowed, and :class:`DatabaseError` if the database
    refuses a statement or cannot be reached.

    ``using`` runs the statement in the caller's transaction. It takes a cursor or a connection of psycopg2 or psycopg 3, a Session
    or a Connection of SQLAlchemy on one of these drivers, or Django's connection. Errors of the database are then raised as the
    driver's own exceptions.
    """

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self.name = name

    def __repr__(self) -> str:
        return f"<Stream {self.name!r}>"

    @property
    def presence(self) -> Presence:
        """The members that are present at this stream."""
        return Presence(self.name, lambda: self._bus.database.presence, ttl=self._bus.settings.presence_ttl)

    def broadcast(
        self,
        data: str,
        *,
        event: str | None = None,
        visible_to: str | None = None,
        exclude: str | None = None,
        key: str | None = None,
        ephemeral: bool = False,
        using: object | None = None,
        coalesce: float | None = None,
        target: str | None = None,
    ) -> int | None:
        """Publish one message with the text ``data``, and return its id.

        Args:
            event: The event name for the browser; without one, the message reaches ``EventSource.onmessage``.
            visible_to: The label of a registered filter. Only the connections that it permits get the message.
            exclude: The id of a connection that does not get the message, such as the sender's own.
            key: An idempotency key. A second broadcast with this key within the retention adds nothing, and returns the first id.
            ephemeral: Send the message only to the clients that are connected, and do not store it. Returns None.
            using: Publish in the caller's transaction (see :class:`Stream`). The message gets its id at COMMIT. Returns None.
            coalesce: Hold the message for at most this many seconds (up to 60), and return None at once. A later message with the
                same ``target``, event and audience replaces it. Errors of the database are then logged, and counted in
                :attr:`Bus.coalescer`.
            target: The subject of the coalesced message, such as the id of a page element.
        """
        publication = _publication(event, visible_to, exclude, key)
        check_data(data)
        check_ephemeral(ephemeral, key)
        if coalesce is not None:
            _check_coalesce(using, key)
            message = Outgoing(self.name, data, *publication[:3], ephemeral)
            self._bus.coalescer.write(message, check_label(target, "target"), check_window(coalesce))
            return None
        if target is not None:
            raise InvalidArgument("target= has a meaning only with coalesce=: give both, or neither")
        with self._bus.observer.broadcast(self.name, NOW if using is None else ON_COMMIT) as trace:
            if ephemeral and using is None:
                self._queries.broadcast_ephemeral(self.name, data, publication)
            elif ephemeral:
                statements.broadcast_ephemeral(using, self.name, data, publication)
            elif using is not None:
                statements.broadcast_on_commit(using, self.name, data, publication, trace)
            else:
                return self._queries.broadcast(self.name, data, publication, trace)
        return None

    def broadcast_many(
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

        ``keys`` are idempotency keys, one (or None) for each message. A message whose key the stream already has is skipped.
        ``event``, ``visible_to`` and ``exclude`` apply to all messages, and are as in :meth:`broadcast`. With ``using``, the
        messages are published at the COMMIT of the caller's transaction (see :class:`Stream`), and the call returns None.
        """
        publication, texts = _publication(event, visible_to, exclude), check_texts(data)
        arguments = self.name, texts, publication, check_keys(keys, len(texts))
        kind = NOW if using is None else ON_COMMIT
        with self._bus.observer.broadcast(self.name, kind, messages=len(texts)) as trace:
            if using is None:
                return self._queries.broadcast_many(*arguments, trace)
            statements.broadcast_many_on_commit(using, *arguments, trace)
        return None

    def last_id(self, *, using: object | None = None) -> int:
        """Return the watermark: the id of the newest message, or 0 if there was never one.

        With ``using``, it is the newest id in the snapshot of that transaction.
        """
        return self._bus._watermarks([self.name], using)[0]

    def read_after(self, cursor: int, limit: int = 500) -> list[Message]:
        """Return at most ``limit`` messages with ids above ``cursor``, oldest first."""
        return self._queries.read_after(self.name, cursor, limit)

    def __iter__(self) -> Iterator[Message]:
        """Yield all retained messages, oldest first, and read them in pages."""
        cursor = 0
        while page := self.read_after(cursor):
            yield from page
            cursor = page[-1].id or cursor

    @property
    def _queries(self) -> queries.Queries:
        return self._bus.database.queries


def _check_coalesce(using: object | None, key: str | None) -> None:
    if using is not None:
        raise InvalidArgument(
            "coalesce= cannot hold back a message of your own transaction (using=), which publishes it at COMMIT:"
            " leave out one of the two"
        )
    if key is not None:
        raise InvalidArgument(
            "a coalesced message may be replaced by a later one, so it cannot have a key: leave out key="
        )
