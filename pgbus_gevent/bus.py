"""Publishing and asking, from Python: what an application holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from html import escape
from time import monotonic, time
from typing import Any, Protocol
from urllib.parse import quote

import gevent

from .core.client import Subscriber
from .core.filters import Filters
from .core.identity import Identities
from .core.markup import Html
from .core.names import (
    PublicNames,
    Signer,
    check_data,
    check_event,
    check_key,
    check_keys,
    check_label,
    check_lifetime,
    check_name,
    check_owner,
)
from .database import Database, queries
from .database import using as statements
from .database.batch import Outgoing
from .database.queries import Publication
from .errors import InvalidArgument
from .messages import Message
from .publishing.coalescer import Coalescer, check_window
from .publishing.presence import Presence
from .settings.table import Settings

__all__ = ["Bus", "Cursor", "Html", "Stream"]


class Cursor(Protocol):
    """What :meth:`Bus.transaction` gives: a cursor of psycopg2, or the one of the testing kit."""

    def execute(self, query: str, parameters: Any = ..., /) -> Any: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> Any: ...


class Bus:
    """One database's streams.

    ``Bus()`` takes the URL and all else from the environment; settings can be given by keyword, as in
    ``Bus("postgresql://…", secret="…")``, or all at once as ``settings``. The schema is brought up to date at the first use,
    unless ``migrate=False``. Works in any process: greenlets, threads, or neither.
    """

    def __init__(self, database_url: str | None = None, *, settings: Settings | None = None, **options: Any) -> None:
        if settings is not None and (options or database_url is not None):
            raise InvalidArgument("give settings, or single ones by keyword, not both")
        self.settings = settings or Settings.load(database_url=database_url, **options)
        self.filters = Filters(monotonic, catch=(Exception, gevent.Timeout))
        self.signer = Signer(self.settings.secret)
        self.subscriber_of: Callable[[str], Subscriber | None] = lambda stream: None
        """Who looks at the page that is being made, as the authorize hook would answer for a stream; None where that is not known.
        The Bottle plugin sets it."""
        self.coalescer = Coalescer(lambda messages: self.database.queries.broadcast_batch(messages))
        """What holds back messages that are broadcast with ``coalesce``; its ``counts`` tell what became of them."""

    @cached_property
    def database(self) -> Database:
        """The database; its schema is up to date when this returns. Raises :class:`DatabaseError` where it cannot be."""
        database = Database(self.settings)
        if self.settings.migrate:
            database.migrate()
        return database

    def stream(self, name: str) -> Stream:
        """A stream by name. Raises :class:`InvalidName`."""
        return Stream(self, check_name(name))

    def sign(self, name: str, *, expires_in: float | None = None) -> str:
        """A signed stream name for a URL; ``expires_in`` seconds, for ever where it is None.

        Raises :class:`InvalidName`, and :class:`InvalidArgument` without a secret, or for a time that is none.
        """
        return self.signer.sign(name, None if expires_in is None else time() + check_lifetime(expires_in, "expires_in"))

    def stream_path(self, name: str, *, expires_in: float | None = None) -> str:
        """The path of a stream on the server that serves it: signed, or bare where there is no secret and the name is public."""
        return f"{self.settings.prefix}/streams/{self._written(name, expires_in)}"

    def _written(self, name: str, expires_in: float | None) -> str:
        if not self.settings.secret and name in PublicNames(self.settings.public):
            return quote(check_name(name), safe="")
        return self.sign(name, expires_in=expires_in)

    def stream_tag(
        self,
        *names: str,
        expires_in: float | None = None,
        using: object | None = None,
        subscriber: Subscriber | None = None,
    ) -> Html:
        """The element that follows a stream, or several, from the moment of the page: path and watermark of each, as HTML.

        With ``using`` the watermark is that of the transaction in which the page's contents are read, so that page and stream agree
        exactly. ``subscriber`` is what the authorize hook answers for who looks at the page: tabs of different subscribers share
        nothing, and the element ends if the browser's login is another one by then. In a Bottle application with the plugin it is
        known; without it the browser asks. Templates that know ``__html__`` (Jinja2) take the tag as it is; in Bottle's
        SimpleTemplate write ``{{!…}}``.
        """
        if len(names) == 1:
            return self.stream_tags(*names, expires_in=expires_in, using=using, subscriber=subscriber)[0]
        if not names:
            raise InvalidArgument("stream_tag takes the names of one stream or more")
        places = zip(names, self._watermarks(names, using), strict=True)
        query = "&".join(f"stream={self._written(name, expires_in)}&since={watermark}" for name, watermark in places)
        return self._tag(f"{self.settings.prefix}/streams?{query}", self._identity(names, subscriber))

    def stream_tags(
        self,
        *names: str,
        expires_in: float | None = None,
        using: object | None = None,
        subscriber: Subscriber | None = None,
    ) -> list[Html]:
        """An element for each of these streams, with their watermarks of one moment and one query."""
        return [
            self._tag(
                self.stream_path(name, expires_in=expires_in),
                f' since-id="{watermark}"' + self._identity([name], subscriber),
            )
            for name, watermark in zip(names, self._watermarks(names, using), strict=True)
        ]

    def _identity(self, names: Sequence[str], subscriber: Subscriber | None) -> str:
        """The attribute that tells for whom the element was made; empty where that is not known."""
        subscribers = [subscriber or self.subscriber_of(name) for name in names]
        known = [each for each in subscribers if each is not None]
        identity = (
            Identities(self.settings.secret, catch=(Exception, gevent.Timeout)).of(*known)
            if len(known) == len(names)
            else None
        )
        return "" if identity is None else f' identity="{identity}"'

    def _watermarks(self, names: Sequence[str], using: object | None) -> list[int]:
        for name in names:
            check_name(name)
        return self.database.queries.last_ids(names) if using is None else statements.last_ids(using, names)

    def _tag(self, source: str, more: str) -> Html:
        return Html(f'<pgbus-stream-source src="{escape(source, quote=True)}"{more}></pgbus-stream-source>')

    def transaction(self, isolation: str | None = None) -> AbstractContextManager[Any]:
        """A psycopg2 cursor in a transaction of its own, for ``using=``: committed at the end of the block, or rolled back.

        It is READ COMMITTED, unless ``isolation`` says for example ``"repeatable read"``.
        """
        return self.database.queries.transaction(isolation)

    def disconnect(self, owner: str, *, using: object | None = None) -> None:
        """End every connection of ``owner``, as the authorize hook named it, on every worker, with reason ``revoked``.

        Take the right back first: who connects again is asked anew. With ``using``, in the caller's transaction, at its COMMIT.
        """
        check_owner(owner)
        if using is None:
            self.database.queries.disconnect(owner)
        else:
            statements.disconnect(using, owner)

    def close(self) -> None:
        """Publish what is held back, and close the connections. May be called again; the next use opens new ones."""
        self.coalescer.close()
        database = self.__dict__.pop("database", None)
        if database is not None:
            database.close()

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Stream:
    """One stream of a :class:`Bus`; get it from :meth:`Bus.stream`.

    Everything raises :class:`InvalidArgument` for a value that makes no sense, and :class:`DatabaseError` when the database
    refuses or cannot be reached. With ``using=`` the statement runs in the caller's transaction and the driver's own exceptions
    come through; it takes a cursor or connection of psycopg2 or psycopg 3, a Session or Connection of SQLAlchemy on one of
    these, or Django's connection, and refuses anything else.
    """

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self.name = name

    def __repr__(self) -> str:
        return f"<Stream {self.name!r}>"

    @property
    def presence(self) -> Presence:
        """Who is there."""
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
        """Publish one message; its id.

        With ``using`` it is queued in the caller's transaction and gets its id at COMMIT, so None is returned; it rolls back
        with the transaction. ``ephemeral`` reaches who is connected and is not stored: None too. ``key`` makes it idempotent
        within the retention. ``exclude`` is a connection id that is passed over, ``visible_to`` a registered filter.

        ``coalesce`` holds it back for at most so many seconds (up to 60), in which a later one to the same ``target``, with the
        same event and audience, takes its place; None is returned at once. What the database then has to say is logged and
        counted in :attr:`Bus.coalescer`.
        """
        publication = _publication(event, visible_to, exclude, key)
        check_data(data)
        if ephemeral not in (True, False):  # "no" would be true
            raise InvalidArgument(f"ephemeral={ephemeral!r:.80} is neither True nor False")
        if ephemeral and key is not None:
            raise InvalidArgument("an ephemeral message is not stored, so it cannot have a key")
        if coalesce is not None:
            _check_coalesce(using, key)
            message = Outgoing(self.name, data, *publication[:3], ephemeral)
            self._bus.coalescer.write(message, check_label(target, "target"), check_window(coalesce))
            return None
        if target is not None:
            raise InvalidArgument("target is for coalesce: give both, or neither")
        if using is not None:
            send = statements.broadcast_ephemeral if ephemeral else statements.broadcast_on_commit
            send(using, self.name, data, publication)
            return None
        if ephemeral:
            self._queries.broadcast_ephemeral(self.name, data, publication)
            return None
        return self._queries.broadcast(self.name, data, publication)

    def broadcast_many(
        self,
        data: Sequence[str],
        *,
        event: str | None = None,
        visible_to: str | None = None,
        exclude: str | None = None,
        keys: Sequence[str | None] | None = None,
    ) -> int | None:
        """Publish several messages in one transaction; the last one's id, None for no data.

        ``keys`` are idempotency keys, one for each message: those that the stream has already are passed over.
        """
        if isinstance(data, str):
            raise InvalidArgument("broadcast_many takes a list of texts; for one text there is broadcast")
        publication = _publication(event, visible_to, exclude)
        texts = [check_data(text) for text in data]
        return self._queries.broadcast_many(self.name, texts, publication, check_keys(keys, len(texts)))

    def last_id(self, *, using: object | None = None) -> int:
        """The watermark: the newest id, 0 where nobody has published. With ``using``, in that transaction's snapshot."""
        return self._bus._watermarks([self.name], using)[0]

    def read_after(self, cursor: int, limit: int = 500) -> list[Message]:
        """At most ``limit`` messages above ``cursor``, oldest first."""
        return self._queries.read_after(self.name, cursor, limit)

    def __iter__(self) -> Iterator[Message]:
        """All retained messages, oldest first, read in pages."""
        cursor = 0
        while page := self.read_after(cursor):
            yield from page
            cursor = page[-1].id or cursor

    @property
    def _queries(self) -> queries.Queries:
        return self._bus.database.queries


def _publication(event: str | None, visible_to: str | None, exclude: str | None, key: str | None = None) -> Publication:
    return Publication(
        check_event(event),
        check_label(visible_to, "visible_to"),
        check_label(exclude, "exclude"),
        check_key(key),
    )


def _check_coalesce(using: object | None, key: str | None) -> None:
    if using is not None:
        raise InvalidArgument(
            "a message in your own transaction (using=) goes with its commit, so coalesce cannot hold it back"
        )
    if key is not None:
        raise InvalidArgument("a coalesced message may be replaced by the next, so it cannot have a key")
