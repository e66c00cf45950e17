"""The parts of a worker with Redis, made from its settings."""

from __future__ import annotations

from typing import Protocol

from ..core.board import Board
from ..core.rows import MessageReads
from ..core.wake_source import WakeSource
from . import caps, leases, relay, roll
from .caps import RedisCaps
from .keys import Names
from .leases import RedisLeases
from .reads import RedisReads
from .relay import Relay
from .roll import RedisRoll
from .urls import parse
from .wakes import RedisWakes


class Fleet(Names, roll.Fleet, Protocol):
    """The statements about the fleet; :class:`pgbus_gevent.database.fleet.Fleet` has them."""


class Database(WakeSource, Protocol):
    """What they need of the database; :class:`pgbus_gevent.database.Database` has it."""

    @property
    def caps(self) -> caps.Queries: ...
    @property
    def presence(self) -> leases.Presence: ...
    @property
    def fleet(self) -> Fleet: ...
    @property
    def stewardship(self) -> relay.Messages: ...
    @property
    def queries(self) -> relay.Ephemerals: ...


class RedisParts:
    """Where wakes come from, where recent messages are read, and where workers report.

    ``relay`` publishes while this worker is the steward.

    ``wake`` is the setting, ``source`` what is asked if Redis does not know an answer. Raises :class:`InvalidSetting`.
    """

    def __init__(self, wake: str, database: Database, source: MessageReads, board: Board, duty: relay.Duty) -> None:
        url = parse(wake)
        self.wakes = RedisWakes(url, database, database.fleet, board)
        self.reads = RedisReads(url, source, self.wakes, board)
        self.roll = RedisRoll(url, database.fleet, self.wakes)
        self.caps = RedisCaps(url, database.caps, self.wakes)
        self.leases = RedisLeases(url, database.presence, self.wakes)
        self.relay = Relay(url, database.fleet, database.stewardship, database.queries, duty)

    def close(self) -> None:
        """Close the connections that no greenlet owns. Idempotent."""
        self.wakes.close()
        self.reads.discard_idle()
        self.caps.close()
