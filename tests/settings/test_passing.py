"""Settings reach another process unchanged: each of them, with any value that it takes."""

from __future__ import annotations

import json
import math
import os
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program_parts import program

from pgbus_gevent.errors import InvalidSetting
from pgbus_gevent.settings.passing import environment, variables
from pgbus_gevent.settings.retention import Rule
from pgbus_gevent.settings.table import Settings, entries, variable

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
NASTY = ["a,b", '["a"]', "[ab]*,c", "{x}", 'quote"d', "it's", "x\ny", "é,日本", "$HOME", "~", "a=1/2", "--x"]
FIXED = [
    *NASTY, True, False, 0.3, 1, 5.5, 20, 2**20, "json", "debug", "owners", "poll", "::1", "/a/b", "app:name",
    "a-token,with,commas",
    "https://origin.example/pgbus",
    "postgresql://u:p,w%2C@h/d", "host=/tmp dbname='a b'", ("https://a.example", "http://b.example:81"),
    ("a secret, with a comma", '["looks like JSON", "or a list"]'),
]  # fmt: skip
WORDS = TEXT | st.sampled_from(NASTY)
NUMBERS = st.floats(0, 1e9, allow_nan=False) | st.integers(0, 10**9)
GUESSES: st.SearchStrategy[Any] = st.one_of(
    st.booleans(),
    NUMBERS,
    WORDS,
    st.lists(WORDS, max_size=4),
    st.lists(st.builds(Rule, WORDS, NUMBERS, st.none() | st.integers(1, 1000)), max_size=3),
    st.lists(st.text("abc,[]\"' ", min_size=16), max_size=3),
)
"""Values for any setting. Each setting takes some of them and refuses the others."""


def made(name: str, value: Any) -> Settings | None:
    """Settings with this value; None if the setting refuses it."""
    try:
        return Settings(**{name: value})
    except InvalidSetting:
        return None


def goes_through(name: str, value: Any) -> bool:
    """Whether the setting takes the value. If it does, the value must be the same afterwards."""
    before = made(name, value)
    if before is not None:
        assert Settings.load(environ=variables(before)) == before
    return before is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in fields(Settings)])
def test_a_value_is_the_same_after_the_way_through_a_variable(name: str) -> None:
    taken = [goes_through(name, value) for value in FIXED]
    assert any(taken) or name in {"listen_url", "replica_url"}, (
        f"give an example of {name}"
    )  # these are not allowed alone

    @settings(max_examples=60, deadline=None)
    @given(GUESSES)
    def through(value: Any) -> None:
        goes_through(name, value)

    through()


def test_all_together_with_rules_and_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Settings(
        database_url="postgresql://u:p,w@h/d",
        secret=("an old secret, with a comma", '["looks like JSON", "or a list"]'),
        public=("demo:*", "a,b", "[ab]*", '["x"]', "日本\u200b*"),
        retention_patterns=(Rule("a,b=c", 90061.5), Rule(" x", 1.0, 7), Rule("*", math.pi)),
        heartbeat=0.123456789,
        data_dir="/tmp/with space,and comma",
        wake="poll",
        workers=3,
    )
    monkeypatch.setenv("PGBUS_CONFIG", "/nowhere.toml")
    monkeypatch.setenv("PGBUS_OPERATOR_TOKEN", "of-the-parent")
    passed = environment(before)
    assert (
        "PGBUS_CONFIG" not in passed and "PGBUS_OPERATOR_TOKEN" not in passed and passed["PATH"] == os.environ["PATH"]
    )
    assert Settings.load(environ=passed) == before
    assert {variable(name) for name in entries()} >= {
        name for name in passed if name.startswith("PGBUS_") and "TEST" not in name
    }


@pytest.mark.parametrize(
    "text, words",
    [
        ("a,b", ("a", "b")),
        ('["a,b", "c"]', ("a,b", "c")),
        ("[]", ()),
        ("[ab]*,c", ("[ab]*", "c")),
        ("[1]", ("[1]",)),
    ],
)
def test_a_list_is_separated_by_commas_or_a_json_array(text: str, words: tuple[str, ...]) -> None:
    assert Settings.load(environ={"PGBUS_PUBLIC": text}).public == words


def test_a_secret_may_have_a_comma() -> None:
    found = Settings.load(environ={"PGBUS_SECRET": '["one secret, of the site", "another one, and newer"]'})
    assert found.secret == ("one secret, of the site", "another one, and newer")


APP = """
from dataclasses import astuple, replace
from pgbus_gevent import Settings

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [ascii(astuple(replace(Settings.load(), data_dir="x"))).encode()]
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_real_workers_and_an_application_have_the_settings_of_serve(
    workers: str, pgbus_database: str, tmp_path: Path
) -> None:
    (tmp_path / "site_app.py").write_text(APP)
    config = {
        "public": ["a,b", "é日本*", "[ab]*", '"quoted"', "line's end"],
        "secret": ["an old secret, with\na line break", 'a "quoted" secret, é\\n'],
        "retention_patterns": {"a,b=c": "90061s/7", "日*": "1s"},
        "publish_token": ["quotes'and\"$HOME`id`", "another-one-that-is-newer"],
        "operator_token": "quotes'and\"$HOME`id`,",
        "heartbeat": 0.123456789,
    }
    text = (
        "".join(
            f"{name} = {json.dumps(value, ensure_ascii=False)}\n"
            for name, value in config.items()
            if name != "retention_patterns"
        )
        + "[retention_patterns]\n"
        + "".join(
            f"{json.dumps(pattern, ensure_ascii=False)} = {json.dumps(age)}\n"
            for pattern, age in config["retention_patterns"].items()  # type: ignore[attr-defined]
        )
    )
    (tmp_path / "pgbus.toml").write_text(text, encoding="utf-8")
    expected = Settings.load(
        config=str(tmp_path / "pgbus.toml"), environ={}, database_url=pgbus_database, workers=int(workers), grace=3
    )
    arguments = ("-m", "pgbus_gevent.serve", "--config", "pgbus.toml", "--workers", workers, "site_app:application")
    # A locale that has only ASCII characters.
    with program(*arguments, database_url=pgbus_database, cwd=tmp_path, PGBUS_SECRET="", LC_ALL="C") as served:
        found = served.page("/")
        assert served.stop() == 0, served.log
    assert found == ascii(astuple(replace(expected, port=served.port, data_dir="x")))
