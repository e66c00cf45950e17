"""What an adapter says of its peer: how it is started, how an application publishes, and how a client resumes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from ..site import Site

KEY = re.compile(r"s\d+/\w+/\d+")
"""The key of a message, at the beginning of its data: stream, publisher and number."""


@dataclass(frozen=True)
class Message:
    """A message that an application publishes. ``text`` begins with the key."""

    key: str
    stream: str
    text: str


@dataclass(frozen=True)
class Reading:
    """What an event of the stream brings: keys of messages, the new cursor if there is one, and whether it tells of a gap."""

    keys: Sequence[str] = ()
    cursor: str | None = None
    gap: bool = False


class Peer:
    """An adapter. The methods that are not overridden suit a server that sends ``id`` and understands ``Last-Event-ID``."""

    name = ""
    """Its name on the command line and in the tables."""

    package = ""
    """What is installed, for the table of versions."""

    needs: Sequence[str] = ()
    """The parts of the environment: ``python``, ``npm``, or the names of programs."""

    store = "postgresql"
    """Where the messages are: ``postgresql``, ``redis``, or ``itself`` for a store in the server's own process."""

    patience = 7.0
    """The seconds without a message after which a run ends. They are longer than the peer's documented time to find missed ones."""

    use = ""
    """How it is used here, for the page."""

    says = ""
    """What it documents about faults, for the page."""

    def prepare(self, site: Site) -> None:
        """Make what the peer needs before its server starts: tables, files."""

    def command(self, site: Site) -> list[str]:
        """Return the command that starts the server."""
        raise NotImplementedError

    def variables(self, site: Site) -> Mapping[str, str]:
        """Return further environment variables of the server."""
        return {}

    def open(self, site: Site, http: httpx.Client, streams: Sequence[str]) -> None:
        """Do what must be done once the server runs, before the first client."""

    def publish(self, cursor: Any, message: Message) -> None:
        """Publish in the application's transaction. ``cursor`` is one of psycopg 3."""

    def publish_after(self, site: Site, http: httpx.Client, message: Message) -> None:
        """Publish after the application's COMMIT. Raises ``httpx.HTTPError`` if it did not succeed; the caller tries again."""

    def client(self, stream: str) -> Any:
        """Return a client of the peer's own library, which has the interface of :class:`~benchmarks.peers.clients.Client`.

        None means a client of an event stream.
        """
        return None

    def request(self, stream: str, cursor: str | None) -> tuple[str, Mapping[str, str]]:
        """Return the path and the headers of a client's request. The cursor is that of the last :class:`Reading`, or of a page."""
        return f"/{stream}", {} if cursor is None else {"Last-Event-ID": cursor}

    def read(self, event: str, data: str, event_id: str) -> Reading:
        """Read an event of the stream."""
        return Reading(KEY.findall(data), event_id or None)

    def page(self, site: Site, http: httpx.Client, cursor: Any, stream: str) -> str | None:
        """Return the cursor of a page that is being rendered, or None if the peer has none.

        ``cursor`` is in a REPEATABLE READ transaction, which also reads the rows of the page after this call.
        """
        return None
