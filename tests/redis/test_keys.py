"""Names that cannot be guessed, and seals that cannot be forged."""

from __future__ import annotations

from pgbus_gevent.redis.keys import SHARDS, Keys


def test_databases_and_generations_share_no_log() -> None:
    one = Keys("secret", "g1", sharded=False)
    assert one.log("s") == Keys("secret", "g1", sharded=False).log("s")
    assert (
        len(
            {
                one.log("s"),
                one.log("t"),
                Keys("secret", "g2", sharded=False).log("s"),
                Keys("x", "g1", sharded=False).log("s"),
            }
        )
        == 4
    )
    assert one.channel("s") == Keys("secret", "g2", sharded=False).channel("s")  # hints may come from any generation
    assert one.channel("s") != Keys("x", "g1", sharded=False).channel("s")


def test_in_a_cluster_a_streams_names_have_one_hash_tag() -> None:
    keys = Keys("secret", "g", sharded=True)
    for stream in ("orders", "é", "a:b{c}d"):
        tag = f"{{{keys.shard(stream)}}}"
        assert 0 <= keys.shard(stream) < SHARDS
        assert tag in keys.channel(stream) and tag in keys.log(stream) and tag in keys.reign(keys.shard(stream), "r")


def test_the_streams_spread_over_all_shards() -> None:
    keys = Keys("secret", "g", sharded=True)
    assert {keys.shard(f"stream-{n}") for n in range(5000)} == set(range(SHARDS))
    assert len(set(keys.all_channels())) == SHARDS


def test_only_a_seal_of_the_database_is_opened() -> None:
    keys = Keys("secret", "g", sharded=True)
    sealed = keys.seal("reign", 7, '["message","é",1]')
    assert keys.open(sealed) == ("reign", 7, '["message","é",1]')
    for forged in (
        b"",
        b"x",
        sealed[:-1],
        sealed.replace(b" 7 ", b" 8 "),
        Keys("other", "g", sharded=True).seal("reign", 7, "x"),
    ):
        assert keys.open(forged) is None
