"""Buckets: the numbers of the doorbell's channels. Every stream belongs to one, by the hash of its name."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

BUCKETS = 64
"""How many buckets there are. ``pgbus._bucket`` in the database computes the same numbers."""

ALL_BUCKETS = frozenset(range(BUCKETS))


def bucket_of(stream: str) -> int:
    """Return the bucket of a stream: a number from 0 to 63."""
    return sha256(stream.encode()).digest()[0] % BUCKETS


def buckets_of(streams: Iterable[str]) -> frozenset[int]:
    """Return the buckets of some streams. Of many streams, only so many are looked at until every bucket is found."""
    found: set[int] = set()
    for stream in streams:
        found.add(bucket_of(stream))
        if len(found) == BUCKETS:
            return ALL_BUCKETS
    return frozenset(found)


def channel(doorbell: str, bucket: int) -> str:
    """Return the name of the channel of a bucket."""
    return f"{doorbell}_{bucket}"
