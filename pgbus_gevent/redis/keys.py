"""The names of channels and keys in Redis, and the seal of what is published there.

Both come from a secret of the database. So two databases on one Redis do not mix, and a program that can only reach Redis can
neither guess the names nor forge a message. It can repeat a message; workers ignore ids that they know.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple, Protocol

SHARDS = 256
"""In a cluster, the streams are spread over so many channels, each with its log keys on one node."""

CHANGED = "PostgreSQL was restarted or has failed over, so the names in Redis change"
"""Why a relay, or a session of a worker, ends if the generation has changed."""

_SEAL = 22  # characters of base16, 88 bits


class Sealed(NamedTuple):
    """A text that a relay published. ``reign`` names the relay's reign, and ``number`` counts the texts of one shard in it."""

    reign: str
    number: int
    payload: str


class Names(Protocol):
    """The statement that asks for a secret of the database and its generation."""

    def redis_names(self) -> tuple[str, str]: ...


class Keys:
    """The names for one database. ``generation`` changes when the database may have lost messages, so its logs begin anew.

    With ``sharded``, the streams of a shard share one channel; otherwise each stream has its own.
    """

    def __init__(self, secret: str, generation: str, *, sharded: bool) -> None:
        self.sharded = sharded
        self.generation = generation
        self._secret = hmac.digest(secret.encode(), b"redis", "sha256")
        self.prefix = "pgbus:" + self._digest("prefix")[:16]
        self._era = self._digest(f"era {generation}")[:12]
        self.control = f"{self.prefix}:control"
        """The channel that everybody hears, with the beacons of all shards that have no channel of their own."""
        self.roll = f"{self.prefix}:{{roll}}:reports"
        self.answers = f"{self.prefix}:{{roll}}:answers"
        self.cap_reports = f"{self.prefix}:{{caps}}:reports"
        self.cap_sum = f"{self.prefix}:{{caps}}:sum"
        self.cap_turn = f"{self.prefix}:{{caps}}:turn"
        self.leases = f"{self.prefix}:{{leases}}:requests"

    def _digest(self, text: str) -> str:
        return hmac.digest(self._secret, text.encode(), "sha256").hex()

    def lease_answer(self, worker: str) -> str:
        """Return the key of the answer to a worker that asked to have its leases renewed."""
        return f"{self.prefix}:{{leases}}:answer:{worker}"

    def shard(self, stream: str) -> int:
        """Return the number of a stream's shard."""
        return hashlib.sha256(stream.encode()).digest()[1]  # not the byte that gives the bucket of a doorbell

    def channel(self, stream: str) -> str:
        """Return the channel on which a stream's wakes come."""
        return self.shard_channel(self.shard(stream)) if self.sharded else f"{self.prefix}:{self._digest(stream)[:24]}"

    def shard_channel(self, shard: int) -> str:
        """Return the channel of a shard."""
        return f"{self.prefix}:{{{shard}}}"

    def all_channels(self) -> list[str]:
        """Return the channels of all shards."""
        return [self.shard_channel(shard) for shard in range(SHARDS)]

    def pattern(self) -> str:
        """Return the pattern of all channels that are not sharded."""
        return f"{self.prefix}:*"

    def log(self, stream: str) -> str:
        """Return the key of a stream's log."""
        return f"{self.shard_channel(self.shard(stream))}:{self._era}:{self._digest(stream)[:24]}"

    def reign(self, shard: int, reign: str) -> str:
        """Return the key that exists while a reign lasts. If it is gone, Redis has lost what the relay wrote."""
        return f"{self.shard_channel(shard)}:reign:{reign}"

    def seal(self, reign: str, number: int, payload: str, *, place: str = "") -> bytes:
        """Return a text to publish, with the proof that a relay of this database made it.

        ``place`` is empty for wakes; otherwise it is the key for which the text was made. It proves nothing anywhere else.
        """
        text = f"{reign} {number} {payload}".encode()
        return self._proof(place, text) + b" " + text

    def open(self, data: bytes, *, place: str = "") -> Sealed | None:
        """Return what was sealed, or None if no relay of this database made it for this ``place``."""
        seal, text = data[:_SEAL], data[_SEAL + 1 :]
        if not hmac.compare_digest(seal, self._proof(place, text)):
            return None
        reign, number, payload = text.split(b" ", 2)
        return Sealed(reign.decode(), int(number), payload.decode())

    def _proof(self, place: str, text: bytes) -> bytes:
        return hmac.digest(self._secret, place.encode() + b" " + text, "sha256").hex()[:_SEAL].encode()
