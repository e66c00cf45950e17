"""The buckets of streams."""

from __future__ import annotations

from pgbus_gevent.core.buckets import ALL_BUCKETS, BUCKETS, bucket_of, buckets_of, channel


def test_the_bucket_of_a_stream_never_changes() -> None:
    """Workers of two releases, and the database, must agree."""
    assert [bucket_of(name) for name in ("orders", "é", "日本", "a" * 255)] == [28, 10, 15, 48]


def test_streams_spread_over_all_buckets() -> None:
    sizes = [0] * BUCKETS
    for n in range(6400):
        sizes[bucket_of(f"user:{n}")] += 1
    assert min(sizes) > 60 and max(sizes) < 150


def test_of_many_streams_only_some_are_looked_at() -> None:
    names = (f"user:{n}" for n in range(10**6))
    assert buckets_of(names) == ALL_BUCKETS
    assert int(next(names).removeprefix("user:")) < 3000
    assert buckets_of(["orders"]) == {28}
    assert buckets_of([]) == frozenset()


def test_a_bucket_names_its_channel() -> None:
    assert channel("pgbus_0f", 7) == "pgbus_0f_7"
