"""Settings: where they are read, which values are allowed, and what the error says for others."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgbus_gevent.errors import InvalidArgument, InvalidSetting
from pgbus_gevent.settings.casting import format_duration, format_size, parse_duration, parse_size, redact_url
from pgbus_gevent.settings.flags import add_flags, flags_given, settings_table
from pgbus_gevent.settings.table import Settings, default_data_dir

SECRET = "a-secret-of-the-tests"
PASSWORD = "hunter2"
URL = f"postgresql://ada:{PASSWORD}@db.example.com/app"

FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
FLAGGED = [name for name, field in FIELDS.items() if field.metadata["flag"]]
VALUED = [name for name in FIELDS if getattr(Settings(), name) not in (None, ())]


def load(environ: dict[str, str] | None = None, /, **keywords: Any) -> Settings:
    """Settings that do not depend on the environment of the tests."""
    return Settings.load(environ=environ or {}, **keywords)


def variable(name: str) -> str:
    return f"PGBUS_{name.upper()}"


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], Path]:
    def write(content: str) -> Path:
        path = tmp_path / "pgbus.toml"
        path.write_text(content, encoding="utf-8")
        return path

    return write


def parse(*arguments: str, names: tuple[str, ...] = ()) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_flags(parser, *names)
    return flags_given(parser.parse_args(arguments))


# Defaults, and what a Settings is


def test_the_defaults_are_valid_and_documented_ones() -> None:
    settings = Settings()
    assert settings == load()
    assert (settings.database_url, settings.listen_url, settings.wake, settings.migrate) == (
        None,
        None,
        "postgres",
        True,
    )
    assert (settings.host, settings.port, settings.workers, settings.prefix) == ("127.0.0.1", 8080, 1, "/pgbus")
    assert (settings.secret, settings.public, settings.cors_origins) == ((), (), ())
    assert (settings.publish_token, settings.operator_token) == ((), None)
    assert (settings.retention, settings.heartbeat, settings.retry, settings.max_age) == (3600.0, 15.0, 2.0, 0.0)
    assert (settings.write_deadline, settings.grace, settings.catch_up_interval) == (20.0, 10.0, 5.0)
    assert (settings.max_connections, settings.page_size, settings.readers) == (10_000, 500, 3)
    assert (settings.ring_messages, settings.ring_bytes, settings.ring_budget) == (1000, 2**20, 64 * 2**20)
    assert (settings.send_buffer, settings.max_request_head, settings.max_body) == (65536, 32768, 2**20)
    assert (settings.pool_size, settings.pool_timeout, settings.connect_timeout) == (5, 10.0, 5.0)
    assert (settings.statement_timeout, settings.request_timeout, settings.demo_speed) == (30.0, 10.0, 60.0)
    assert (settings.log_level, settings.log_format) == ("info", "text")


def test_settings_cannot_be_changed_only_copied() -> None:
    settings = Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]
    changed = dataclasses.replace(settings, port=1)
    assert (settings.port, changed.port) == (8080, 1)


def test_a_changed_copy_is_checked_too() -> None:
    with pytest.raises(InvalidSetting, match="port"):
        dataclasses.replace(Settings(), port=-1)


def test_settings_made_without_load_are_cast_alike() -> None:
    loose: dict[str, Any] = {"heartbeat": "500ms", "public": "a,b", "ring_bytes": "64kB"}
    assert Settings(**loose) == load(**loose)


def test_settings_made_without_load_read_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGBUS_PORT", "1234")
    assert Settings().port == 8080
    assert Settings.load().port == 1234


@pytest.mark.parametrize("name", FIELDS)
def test_each_setting_has_its_facts(name: str) -> None:
    about = FIELDS[name].metadata
    assert about["kind"].allowed and about["help"] and about["group"]
    assert about["flag"] is None or re.fullmatch(r"--[a-z]+(-[a-z]+)*", about["flag"])


def test_refusals_are_of_the_packages_error_tree() -> None:
    assert issubclass(InvalidSetting, (InvalidArgument, ValueError))


# Where settings are read


def test_keyword_then_environment_then_toml_then_default(toml: Callable[[str], Path]) -> None:
    config = toml("port = 1\nheartbeat = 1\nworkers = 2\n")
    settings = load({"PGBUS_PORT": "3", "PGBUS_HEARTBEAT": "3"}, config=config, port=4)
    assert (settings.port, settings.heartbeat, settings.workers, settings.grace) == (4, 3.0, 2, 10.0)


def test_a_keyword_that_is_none_was_not_given() -> None:
    assert load({"PGBUS_PORT": "3"}, port=None).port == 3


@pytest.mark.parametrize("empty", ["", "  "])
def test_a_variable_that_is_empty_is_not_set(empty: str, toml: Callable[[str], Path]) -> None:
    environ = {"PGBUS_PORT": empty, "PGBUS_DATABASE_URL": empty, "DATABASE_URL": URL}
    settings = load(environ, config=toml("port = 5"))
    assert (settings.port, settings.database_url) == (5, URL)


@pytest.mark.parametrize("name", VALUED)
def test_each_setting_has_a_variable_that_takes_its_default_as_it_is_documented(name: str) -> None:
    default = getattr(Settings(), name)
    text = FIELDS[name].metadata["kind"].text(default)
    assert getattr(load({variable(name): text}), name) == default


def test_the_packages_own_database_variable_wins() -> None:
    other = "postgres://other/db"
    assert load({"PGBUS_DATABASE_URL": URL, "DATABASE_URL": other}).database_url == URL
    assert load({"DATABASE_URL": other, "PGBUS_DATABASE_URL": URL}).database_url == URL
    assert load({"DATABASE_URL": other}).database_url == other


def test_the_database_of_another_program_does_not_matter_if_ours_is_given() -> None:
    assert load({"DATABASE_URL": "mysql://x/y", "PGBUS_DATABASE_URL": URL}).database_url == URL
    assert load({"DATABASE_URL": "mysql://x/y"}, database_url=URL).database_url == URL


def test_the_toml_file_may_be_named_by_a_variable(toml: Callable[[str], Path], tmp_path: Path) -> None:
    environ = {"PGBUS_CONFIG": str(toml("port = 7"))}
    assert load(environ).port == 7
    other = tmp_path / "other.toml"
    other.write_text("port = 8")
    assert load(environ, config=str(other)).port == 8


def test_toml_takes_native_values(toml: Callable[[str], Path]) -> None:
    settings = load(
        config=toml(f'migrate = false\nretention = "7d"\npublic = ["a,b", "c:*"]\nmax_body = 10\nsecret = "{SECRET}"\n')
    )
    assert (settings.migrate, settings.retention, settings.max_body) == (False, 604800.0, 10)
    assert (settings.public, settings.secret) == (("a,b", "c:*"), (SECRET,))


@pytest.mark.parametrize("content", [b"port = ", b"port = 1\nport = 2", b"\xff\xfe", b"public = " + b"[" * 5000])
def test_a_file_that_is_not_toml_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidSetting, match="TOML") as refusal:
        load(config=path)
    assert (refusal.value.name, refusal.value.value) == ("config", str(path))


def test_lists_in_lists_without_an_end_are_refused_by_name() -> None:
    with pytest.raises(InvalidSetting, match="cors_origins"):
        load({"PGBUS_CORS_ORIGINS": "[" * 5000})


def test_a_toml_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"absent\.toml.*No such file"):
        load(config=tmp_path / "absent.toml")


# Names that no setting has


def test_an_unknown_keyword_is_refused_with_a_guess() -> None:
    with pytest.raises(InvalidSetting, match=r"hartbeat.*no setting has this name; did you mean heartbeat\?"):
        load(hartbeat=1)


def test_an_unknown_keyword_is_refused_even_when_none() -> None:
    with pytest.raises(InvalidSetting, match="hartbeat"):
        load(hartbeat=None)


def test_an_unknown_toml_key_is_refused_with_the_file_and_a_guess(toml: Callable[[str], Path]) -> None:
    config = toml("max-age = 1")
    with pytest.raises(InvalidSetting, match=r"max-age.*pgbus\.toml; did you mean max_age\?"):
        load(config=config)


def test_nothing_is_guessed_if_no_name_is_near() -> None:
    with pytest.raises(InvalidSetting) as refusal:
        load(zzzzzz=1)
    assert "did you mean" not in str(refusal.value)


def test_the_value_of_an_unknown_name_is_not_shown() -> None:
    with pytest.raises(InvalidSetting) as refusal:
        load(secrets=SECRET)
    assert SECRET not in str(refusal.value)


def test_an_unknown_variable_is_only_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pgbus_gevent.settings"):
        assert load({"PGBUS_HARTBEAT": SECRET}) == Settings()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "PGBUS_HARTBEAT" in caplog.text and "did you mean PGBUS_HEARTBEAT?" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("name", ["PGBUS_TEST_SERVER", "PGBUS_TIMEOUT", "PGBUSX", "HEARTBEAT", "PGBUS_CONFIG"])
def test_other_variables_are_ignored(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert load({name: ""}) == Settings()
    assert not caplog.records


# What settings may be

ACCEPTED: list[tuple[str, object, object]] = [
    ("heartbeat", 15, 15.0),
    ("heartbeat", 0.5, 0.5),
    ("heartbeat", "15", 15.0),
    ("heartbeat", " 15s ", 15.0),
    ("heartbeat", "15 s", 15.0),
    ("heartbeat", "500ms", 0.5),
    ("heartbeat", ".5", 0.5),
    ("heartbeat", "1.5m", 90.0),
    ("retention", "10m", 600.0),
    ("retention", "1h", 3600.0),
    ("retention", "7d", 604800.0),
    ("retention", 1, 1.0),
    ("max_age", 0, 0.0),
    ("grace", "0", 0.0),
    ("ring_bytes", 4096, 4096),
    ("ring_bytes", "4096", 4096),
    ("ring_bytes", "4096B", 4096),
    ("ring_bytes", "64kB", 65536),
    ("ring_bytes", "64 KB", 65536),
    ("ring_bytes", "64KiB", 65536),
    ("ring_bytes", "1MB", 2**20),
    ("ring_bytes", "1MiB", 2**20),
    ("ring_budget", "1GB", 2**30),
    *(("migrate", text, True) for text in (True, 1, "true", "True", "YES", "on", "1")),
    *(("migrate", text, False) for text in (False, 0, "false", "No", "off", "0")),
    ("public", "demo:*, a*", ("demo:*", "a*")),
    ("public", ["a,b", "c"], ("a,b", "c")),
    ("public", ("é",), ("é",)),
    ("public", "", ()),
    ("public", [], ()),
    ("secret", f"{SECRET},{SECRET}-new", (SECRET, f"{SECRET}-new")),
    ("secret", [SECRET], (SECRET,)),
    ("secret", "x" * 16, ("x" * 16,)),
    ("port", 0, 0),
    ("port", "65535", 65535),
    ("host", "::1", "::1"),
    ("host", "fe80::1%eth0", "fe80::1%eth0"),
    ("host", "0.0.0.0", "0.0.0.0"),
    ("host", "my-host.example", "my-host.example"),
    ("prefix", "/live/pgbus", "/live/pgbus"),
    ("database_url", URL, URL),
    ("database_url", "postgres:///app?host=/run/pg", "postgres:///app?host=/run/pg"),
    ("database_url", "host=db dbname=app", "host=db dbname=app"),
    ("database_url", f"{URL}\n", URL),
    ("cors_origins", "https://a.example.com,http://localhost:3000", ("https://a.example.com", "http://localhost:3000")),
    ("cors_origins", ["http://[::1]:8000", "capacitor://localhost"], ("http://[::1]:8000", "capacitor://localhost")),
    ("publish_token", "abc.DEF-123~+/=0", ("abc.DEF-123~+/=0",)),
    ("publish_token", "abc.DEF-123~+/=0,the-one-that-is-newer", ("abc.DEF-123~+/=0", "the-one-that-is-newer")),
    ("operator_token", "abc.DEF-123~+/=0,", "abc.DEF-123~+/=0,"),
    ("log_level", "WARNING", "warning"),
    ("log_format", "json", "json"),
    ("demo_speed", "0.5", 0.5),
    ("demo_speed", 1, 1.0),
    ("data_dir", Path("/srv/pgbus"), "/srv/pgbus"),
    ("data_dir", "/srv/pg bus", "/srv/pg bus"),
]


@pytest.mark.parametrize(("name", "value", "expected"), ACCEPTED)
def test_a_value_is_cast_to_the_type_of_its_setting(name: str, value: object, expected: object) -> None:
    cast = getattr(load(**{name: value}), name)
    assert cast == expected
    assert type(cast) is type(expected)


def test_a_leading_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert load(data_dir="~/pgbus").data_dir == "/home/ada/pgbus"


REFUSED: list[tuple[str, object, str]] = [
    *(("heartbeat", value, "a duration from 100ms to 5m") for value in (0, 0.05, 301, "1h", -1, "-1", "0")),
    *(("heartbeat", value, "a duration") for value in ("", "soon", "1 0", "1e3", "1M", "1h30m", "s", "1_0", "\u0661")),
    *(("heartbeat", value, "a duration") for value in (True, [15], {"s": 1}, float("nan"), float("inf"), 10**400)),
    ("retention", 0.5, "1s to 3650d"),
    ("catch_up_interval", "61s", "50ms to 1m"),
    ("pool_timeout", 0, "10ms to 1h"),
    *(("ring_bytes", value, "a size of at least 1B") for value in ("0", -1, 1.5, "1.5MB", "1TB", "MB", "", True, None)),
    ("send_buffer", "1kB", "4KiB to 16MiB"),
    *(
        ("port", value, "a whole number from 0 to 65535")
        for value in (-1, 65536, "70000", "80a", "", 80.0, True, "9" * 5000)
    ),
    ("workers", 0, "at least 1"),
    ("max_connections", 0, "at least 1"),
    ("pool_size", 0, "at least 1"),
    ("page_size", 10_001, "1 to 10000"),
    ("readers", 33, "1 to 32"),
    ("demo_speed", 0, "a number from 0.1 to 100000"),
    ("wake", "off", "postgres, poll, redis://"),
    *(("migrate", value, "true or false") for value in ("maybe", "", 2, 1.0, [1])),
    *(
        ("prefix", value, "starts with /")
        for value in ("", "/", "pgbus", "/pgbus/", "//a", "/a/../b", "/a b", "/a?b", "/é")
    ),
    *(("host", value, "a name or an address") for value in ("", "a b", "http://a", 1, "127.0.0.1:80", "[::1]")),
    *(("log_level", value, "debug, info, warning or error") for value in ("loud", "", 10)),
    ("log_format", "xml", "text or json"),
    *(("data_dir", value, "a directory") for value in ("", " ", 1, "/a\0b")),
    *(("public", value, "patterns") for value in ("a,,b", ",", ["a\nb"], [""], [1], 1, {"a": 1})),
    ("secret", "short", "at least 16 characters"),
    ("secret", f"{SECRET},short", "at least 16 characters"),
    ("secret", [1], "at least 16 characters"),
    *(("publish_token", value, "visible ASCII") for value in ("a b" * 9, "é" * 20, 5)),
    *(("operator_token", value, "visible ASCII") for value in ("", "a b" * 9, "é" * 20, 5)),
    *((name, "x" * 15, "at least 16") for name in ("publish_token", "operator_token")),
    ("operator_token", "a\nb", "visible ASCII"),
    *(
        ("cors_origins", value, "scheme://host")
        for value in ("*", "null", "example.com", "https://a.example/", "https://a.example/x", "https://*.example")
    ),
    *(
        ("cors_origins", value, "scheme://host")
        for value in ("https://A.example", "https://a.example:443", "http://a:80")
    ),
    *(
        ("database_url", value, "postgresql://")
        for value in ("", "db.example.com", "mysql://h/d?a=b", "sqlite:///x", 5)
    ),
    ("database_url", "postgresql+psycopg2://h/d", "postgresql://"),
    *(
        ("upstream", value, "http://host[:port]/pgbus")
        for value in (
            "https://a",
            "a/pgbus",
            "https://ada@a/pgbus",
            "https://a:65536/pgbus",
            "https://[::1::]/pgbus",
            "http://a..b/pgbus",
        )
    ),
]


@pytest.mark.parametrize(("name", "value", "allowed"), REFUSED)
def test_a_refusal_names_the_setting_the_value_and_what_is_allowed(name: str, value: object, allowed: str) -> None:
    with pytest.raises(InvalidSetting) as refusal:
        Settings(**{name: value})  # type: ignore[arg-type]
    assert refusal.value.name == name
    assert allowed in refusal.value.allowed
    assert str(refusal.value) == f"{name}={refusal.value.value!r} is not allowed: {refusal.value.allowed}"
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", ["soon", 301, ["a"], "a:b@c"])
def test_a_refusal_shows_a_harmless_value_as_it_was_given(value: object) -> None:
    with pytest.raises(InvalidSetting, match=re.escape(repr(value))):
        load(heartbeat=value)


def test_a_refusal_says_where_the_value_was_given(toml: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidSetting, match="given by PGBUS_HEARTBEAT"):
        load({"PGBUS_HEARTBEAT": "soon"})
    with pytest.raises(InvalidSetting, match="given by DATABASE_URL"):
        load({"DATABASE_URL": "mysql://x/y"})
    config = toml("heartbeat = true")
    with pytest.raises(InvalidSetting, match=rf"given in {re.escape(str(config))}"):
        load(config=config)


CONTRADICTIONS: list[tuple[dict[str, object], str, str]] = [
    ({"wake": "poll", "listen_url": URL, "database_url": URL}, "listen_url", "wake=poll"),
    ({"listen_url": URL}, "listen_url", "database_url"),
    ({"replica_url": URL}, "replica_url", "database_url"),
    ({"ring_budget": "1kB"}, "ring_bytes", "ring_budget, 1KiB"),
]


@pytest.mark.parametrize(("keywords", "name", "allowed"), CONTRADICTIONS)
def test_settings_that_contradict_one_another_are_refused(keywords: dict[str, object], name: str, allowed: str) -> None:
    with pytest.raises(InvalidSetting) as refusal:
        load(**keywords)
    assert refusal.value.name == name
    assert allowed in refusal.value.allowed
    assert PASSWORD not in str(refusal.value)


@given(st.floats(0, 86400 * 3650) | st.integers(0, 10**9).map(lambda n: n / 1000))
def test_a_duration_survives_the_way_to_text_and_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, 2**60) | st.integers(0, 2**30).map(lambda n: n * 1024))
def test_a_size_survives_the_way_to_text_and_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (0.05, "50ms"), (15, "15s"), (90, "90s"), (1.5, "1500ms"), (600, "10m"), (3600, "1h"), (86400, "1d")],
)
def test_a_duration_is_written_in_the_largest_whole_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.sampled_from(sorted(FIELDS)), st.text() | st.integers() | st.floats() | st.lists(st.text()))
def test_any_value_is_refused_by_name_or_cast_once_and_for_all(name: str, value: object) -> None:
    try:
        settings = load(**{name: value})
    except InvalidSetting:
        return
    assert dataclasses.replace(settings) == settings


# Secrets


SECRETIVE: dict[str, Any] = {
    "database_url": URL,
    "listen_url": f"host=db user=ada password={PASSWORD}",
    "replica_url": f"host=db2 user=ada password={PASSWORD}",
    "secret": SECRET,
    "publish_token": f"{SECRET}-publish",
    "operator_token": f"{SECRET}-operator",
}


def test_repr_shows_settings_but_no_secrets() -> None:
    shown = repr(load(**SECRETIVE, port=1234, public=["demo:*"]))
    assert PASSWORD not in shown and SECRET not in shown
    assert "port=1234" in shown and "public=('demo:*',)" in shown
    assert "postgresql://ada:***@db.example.com/app" in shown and "host=db user=ada password=***" in shown


def test_repr_tells_set_from_not_set() -> None:
    assert "secret=(), " in repr(Settings()) and "publish_token=()" in repr(Settings())
    assert "secret='***'" in repr(load(secret=SECRET))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("secret", [SECRET, PASSWORD]),
        ("publish_token", f"{PASSWORD} {SECRET}"),
        ("operator_token", {"token": SECRET}),
        ("database_url", f"mysql://ada:{PASSWORD}@db/app"),
        ("database_url", PASSWORD),
        ("database_url", {"password": PASSWORD}),
        ("host", URL),
        ("host", f"host=db password={PASSWORD}"),
        ("host", {"password": PASSWORD}),
        ("cors_origins", ["https://a.example", f"https://ada:{PASSWORD}@b.example"]),
        ("heartbeat", URL),
        ("hosst", PASSWORD),
    ],
)
def test_no_refusal_shows_a_secret(name: str, value: object) -> None:
    with pytest.raises(InvalidSetting) as refusal:
        load(**{name: value})
    told = "".join(traceback.format_exception(refusal.value)) + repr(refusal.value.value)
    assert PASSWORD not in told and SECRET not in told


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:pw@db/app", "postgresql://ada:***@db/app"),
        ("postgres://ada@db:5432,[::1]:5433/app", "postgres://ada@db:5432,[::1]:5433/app"),
        ("postgres:///app?host=/run/pg&user=ada", "postgres:///app?host=/run/pg&user=ada"),
        ("postgres://db/app?password=pw&sslmode=require", "postgres://db/app?password=***&sslmode=require"),
        ("postgres://db/app?pass%77ord=pw", "postgres://db/app?***"),
        ("postgres://db/app?password=p&w&user=ada", "postgres://db/app?password=***&***&user=ada"),
        ("postgres://db/app?sslpassword=p@w", "postgres://***"),
        ("postgres://ada:p@w@db/app", "postgres://***"),
        ("postgres://ada:p/w@db/app", "postgres://***"),
        ("postgres://ada:?user=pw&@db/app", "postgres://***"),
        ("postgres://ada:p#w@db/app", "postgres://***"),
        ("postgres://ada:pw", "postgres://***"),
        ("host=db password=pw", "host=db password=***"),
        ("host = db password = 'p w'", "host=db password=***"),
        (r"password='it\'s' host=db", "password=*** host=db"),
        ("dbname='app' user='ada' password='pw' host='/run/pg'", "dbname='app' user='ada' password=*** host='/run/pg'"),
        ("password='p w host=db", "***"),
        ("dbname=postgres://ada:pw@db/app", "dbname=***"),
        ("options=-cfoo=bar", "options=***"),
        ("pw", "***"),
        (None, "***"),
    ],
)
def test_only_the_parts_of_a_database_url_that_cannot_be_a_password_are_shown(url: object, shown: str) -> None:
    assert redact_url(url) == shown


@given(st.text(min_size=1))
def test_no_password_is_shown_in_any_spelling(noise: str) -> None:
    password = f"{noise}{PASSWORD}{noise}"
    assert PASSWORD not in redact_url(f"postgresql://ada:{password}@db/app")
    # In a query, & ends a value.
    password = password.replace("&", "")
    assert PASSWORD not in redact_url(f"postgres://db/app?password={password}&sslmode=require")


# Flags


def test_every_flag_defaults_to_not_given() -> None:
    assert parse() == {}


GIVEN = {"cors_origins": "https://a.example", "database_url": URL, "listen_url": URL, "secret": SECRET, "public": "a"}
GIVEN |= {"publish_token": SECRET, "operator_token": SECRET, "presence": "a", "authorize": "a:b", "filters": "a:b"}
GIVEN |= {"replica_url": URL, "upstream": "https://origin.example/pgbus", "worker_token": SECRET}


@pytest.mark.parametrize("name", FLAGGED)
def test_each_flag_is_its_settings_keyword(name: str) -> None:
    field = FIELDS[name]
    others = {"database_url": URL} if name in {"listen_url", "replica_url"} else {}
    if field.metadata["flag"].startswith("--no-"):
        expected, flags = load(**{name: False}), parse(field.metadata["flag"])
    else:
        value = GIVEN[name] if name in GIVEN else field.metadata["kind"].text(getattr(Settings(), name))
        expected, flags = load(**{name: value}, **others), parse(field.metadata["flag"], value)
    assert list(flags) == [name]
    assert load(**flags, **others) == expected


def test_the_documented_flags_are_there() -> None:
    documented = """
        --database-url --listen-url --replica-url --wake --data-dir --no-migrate --host --port --workers
        --prefix --secret
        --public --publish-token --operator-token --cors-origin --retention --heartbeat --max-connections --grace
        --log-level --log-format --demo-speed --config
    """
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert set(documented.split()) <= set(re.findall(r"--[a-z-]+", parser.format_help()))


def test_a_repeatable_flag_takes_one_item_each_time() -> None:
    assert load(**parse("--public", "a,b", "--public", "c")).public == ("a,b", "c")


def test_the_secret_flag_is_separated_by_commas() -> None:
    assert load(**parse("--secret", f"{SECRET},{SECRET}-new")).secret == (SECRET, f"{SECRET}-new")


def test_a_flag_overrules_a_variable_in_both_directions() -> None:
    assert load({"PGBUS_MIGRATE": "off"}, **parse("--migrate")).migrate is True
    assert load({"PGBUS_MIGRATE": "on"}, **parse("--no-migrate")).migrate is False


def test_a_flag_that_is_not_used_leaves_the_variable_in_force() -> None:
    assert load({"PGBUS_PORT": "3", "PGBUS_PUBLIC": "a"}, **parse("--host", "h")).port == 3


def test_the_config_flag_names_the_toml_file(toml: Callable[[str], Path]) -> None:
    assert load(**parse("--config", str(toml("port = 9")))).port == 9


def test_only_the_flags_that_were_asked_for_are_added() -> None:
    assert parse("--port", "1", "--config", "x", names=("port", "config")) == {"port": "1", "config": "x"}
    with pytest.raises(SystemExit):
        parse("--host", "h", names=("port",))


@pytest.mark.parametrize("name", ["ring_bytes", "hartbeat"])
def test_a_name_without_a_flag_cannot_be_added(name: str) -> None:
    with pytest.raises(KeyError):
        parse(names=(name,))


def test_other_arguments_are_not_settings() -> None:
    assert flags_given(argparse.Namespace(port="1", stream="orders", event=None)) == {"port": "1"}


def test_a_flag_is_not_cast_by_the_parser() -> None:
    with pytest.raises(InvalidSetting, match="port"):
        load(**parse("--port", "many"))


def test_help_shows_meaning_limits_variable_and_default() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, "heartbeat", "max_age")
    text = " ".join(parser.format_help().split())
    assert "--heartbeat DURATION" in text and "(100ms to 5m); PGBUS_HEARTBEAT; default: 15s" in text
    assert "±20 %" in text


# The data directory


def test_the_data_directory_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", "/home/ada")
    assert load({"XDG_DATA_HOME": "/data"}).data_dir == "/data/pgbus-gevent"
    assert load({"XDG_DATA_HOME": "relative"}).data_dir == "/home/ada/.local/share/pgbus-gevent"
    assert load().data_dir == "/home/ada/.local/share/pgbus-gevent"


def test_the_data_directory_follows_the_conventions_of_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", "/Users/ada")
    assert default_data_dir({}) == "/Users/ada/Library/Application Support/pgbus-gevent"


# The documentation


@pytest.mark.parametrize("name", FIELDS)
def test_the_table_has_a_row_for_each_setting(name: str) -> None:
    [row] = [line for line in settings_table().splitlines() if f"`{variable(name)}`" in line]
    assert len(row.strip("|").split(" | ")) == 4
    assert (FIELDS[name].metadata["flag"] or "") in row


def test_the_table_does_not_depend_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings_table()
    monkeypatch.setenv("XDG_DATA_HOME", "/elsewhere")
    monkeypatch.setenv("PGBUS_PORT", "1")
    assert settings_table() == before


def test_the_documented_table_is_that_of_the_fields() -> None:
    """Made by: python -c 'from pgbus_gevent.settings.flags import settings_table; print(settings_table())'"""
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    table = page.partition("<!-- settings -->\n")[2].partition("<!-- /settings -->")[0]
    assert table == settings_table()
