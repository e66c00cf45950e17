"""The typed keywords of ``Bus`` are the settings of the table, with their types."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

from pgbus_gevent.settings.options import InstanceSettings, Options
from pgbus_gevent.settings.table import Settings, entries

HINTS = get_type_hints(Options)
TYPES = get_type_hints(Settings)


def test_the_keywords_are_the_settings_and_their_sources() -> None:
    everything = {"environ", "config", *entries()}
    assert HINTS.keys() == everything - {"database_url"}
    assert get_type_hints(InstanceSettings).keys() == everything - {"filters"}


@pytest.mark.parametrize("name", [name for name in entries() if name != "database_url"])
def test_a_keyword_takes_what_its_setting_holds_and_text_and_none(name: str) -> None:
    taken = get_args(HINTS[name])
    assert str in taken and NoneType in taken
    held: Any = TYPES[name]
    for kind in get_args(held) if type(held).__name__ == "UnionType" else (held,):
        item = get_args(kind)[0] if getattr(kind, "__origin__", None) is tuple else None
        assert kind in taken or item in [get_args(one)[0] for one in taken if get_args(one)], (kind, taken)


def test_types_that_the_keywords_promise_are_accepted() -> None:
    given: Options = {
        "retention": "1h",
        "grace": 1,
        "port": "8081",
        "migrate": "no",
        "secret": ["a" * 16],
        "public": "a:*, b:*",
    }
    given |= {"retention_patterns": {"a:*": "7d", "b:*": 60}, "heartbeat": None}
    settings = Settings.load(environ={}, **given)
    assert (settings.retention, settings.grace, settings.port, settings.migrate) == (3600, 1, 8081, False)
    assert settings.public == ("a:*", "b:*") and [rule.age for rule in settings.retention_patterns] == [7 * 86400, 60]
