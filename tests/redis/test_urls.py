"""The addresses of Redis, as users write them."""

from __future__ import annotations

import pytest

from pgbus_gevent.errors import InvalidSetting
from pgbus_gevent.redis.urls import RedisURL, parse
from pgbus_gevent.settings.wake import hide


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost", RedisURL("single", (("localhost", 6379),))),
        ("redis://h:7000/2", RedisURL("single", (("h", 7000),), db=2)),
        ("rediss://u:p%40w@h", RedisURL("single", (("h", 6379),), username="u", password="p@w", tls=True)),
        ("redis://:pw@[::1]:7000", RedisURL("single", (("::1", 7000),), password="pw")),
        ("redis+cluster://a,b:7001", RedisURL("cluster", (("a", 6379), ("b", 7001)))),
        ("rediss+cluster://a?ca_file=/c.pem", RedisURL("cluster", (("a", 6379),), tls=True, ca_file="/c.pem")),
        (
            "redis+sentinel://:x@a,b/main?sentinel_password=y",
            RedisURL("sentinel", (("a", 26379), ("b", 26379)), "main", password="x", sentinel_password="y"),
        ),
    ],
)
def test_a_url_names_servers(url: str, expected: RedisURL) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "", "redis", "http://h", "redis://", "redis://a,b", "redis://h/x", "redis://h:0", "redis://h:70000", "redis://h?x=1",
        "redis+sentinel://h", "redis+cluster://h/3", "redis+other://h", "redis://a b",
    ],
)  # fmt: skip
def test_a_url_that_makes_no_sense_is_refused(url: str) -> None:
    with pytest.raises(InvalidSetting, match="wake"):
        parse(url)


def test_passwords_are_hidden() -> None:
    with pytest.raises(InvalidSetting) as caught:
        parse("redis+sentinel://me:secret1@h?sentinel_password=secret2")
    assert "secret" not in str(caught.value)
    assert hide("redis://me:secret@h/0") == "redis://***@h/0"
    assert "secret" not in repr(parse("redis://me:secret@h"))
