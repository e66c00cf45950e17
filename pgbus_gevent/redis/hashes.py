"""Reads of the hashes that all workers write: reports for the roll and for caps, and requests to renew leases.

Every program that reaches this Redis can write there too. Without a bound, a million fields or one huge value would fill the
memory of the worker that reads them, and its clients would wait meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import RedisUnavailable
from .links import Command, Pipes

FIELDS = 20_000
"""The most fields of a hash that is read; each worker has one."""

SIZE = 128 * 1024 * 1024
"""The most bytes of a hash that is read, as Redis counts its memory."""

AT_ONCE = 1000
"""The most fields that one command removes."""


def read(pipes: Pipes, name: str, *commands: Command) -> tuple[list[bytes], list[list[bytes]]]:
    """Return the names and values of a hash by turns, and the answers to other ``commands`` for its server, which run just before.

    Raises :class:`RedisUnavailable` if the hash is larger than workers make it. It is removed then, and within seconds the
    workers write again what is theirs.
    """
    (fields,) = pipes.ask(name, ("HLEN", name))
    # Only if there are not too many, because Redis looks at each field for the size.
    size = pipes.ask(name, ("MEMORY", "USAGE", name, "SAMPLES", 0))[0] if fields <= FIELDS else None
    if fields > FIELDS or (size or 0) > SIZE:
        pipes.ask(name, ("UNLINK", name))
        extent = f"{fields} fields" if size is None else f"{size} bytes"
        raise RedisUnavailable(f"another program wrote to {name} in Redis, which had {extent} and was removed")
    *answers, found = pipes.ask(name, *commands, ("HGETALL", name))
    return found, answers


def removal(name: str, fields: Sequence[bytes]) -> list[Command]:
    """Return the commands that remove fields of a hash."""
    return [("HDEL", name, *fields[n : n + AT_ONCE]) for n in range(0, len(fields), AT_ONCE)]
