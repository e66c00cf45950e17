"""The commands on the board. That they work is seen in a browser (tests/browser/test_demo.py)."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from demo_parts import running_demo
from raw_http import ask

from pgbus_gevent.demo.commands import checked_origin, on_this_machine, over_http
from pgbus_gevent.demo.local import is_from_this_machine
from pgbus_gevent.testing.databases import TestDatabases

LOCAL = {"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost:8080"}


def texts(url: str | None, data_dir: str = "/nowhere") -> dict[str, list[str]]:
    return {command.name: shlex.split(command.text) for command in on_this_machine(url, data_dir)}


def test_they_name_the_database_by_its_url() -> None:
    found = texts("postgresql://ann@db.example/it's?connect_timeout=3")
    assert found["sql"][1:3] == ["postgresql://ann@db.example/it's?connect_timeout=3", "-c"]
    assert found["program"][-2:] == ["--database-url", "postgresql://ann@db.example/it's?connect_timeout=3"]


def test_they_name_the_embedded_server_by_its_data_directory(tmp_path: Path) -> None:
    (tmp_path / "the data").mkdir()
    (tmp_path / "the data/postgres-18").mkdir()
    (tmp_path / "the data/postgres-18.users").touch()
    url = f"postgresql://postgres@/postgres?host={tmp_path}/the%20data/postgres-18&port=4711"
    assert texts(url, f"{tmp_path}/the data")["program"][-2:] == ["--data-dir", f"{tmp_path}/the data"]
    assert texts(url, f"{tmp_path}")["program"][-2:] == ["--database-url", url], "it is the server of another directory"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cret@db.example/shop",
        "postgresql://ann@db.example/shop?password=s3cret",
        "host=db.example user=ann password=s3cret dbname=shop",
        "postgresql://ann@db.example/shop?sslpassword=s3cret",
    ],
)
def test_no_password_is_shown(url: str) -> None:
    found = on_this_machine(url, "/nowhere")
    assert [command.name for command in found] == ["sql"] and "asks for the password" in found[0].label
    assert "s3cret" not in str(found)
    assert {"host=db.example", "user=ann", "dbname=shop"} <= set(shlex.split(found[0].text)[1].split())


def test_an_edge_or_a_url_that_nobody_understands_has_no_such_command() -> None:
    assert on_this_machine(None, "/nowhere") == []


def test_those_over_http_name_the_server_as_the_visitor_does() -> None:
    http, follow = over_http("http://[::1]:80", "/live", "a-token")
    assert shlex.split(http.text)[-2:] == ["-g", "http://[::1]:80/live/streams/demo:hello"]
    assert shlex.split(follow.text)[-1] == "http://[::1]:80/live/streams/demo:departures"
    assert [command.name for command in over_http("https://board.example", "/live", None)] == ["follow"]


@pytest.mark.parametrize("origin", ["http://board.example:81", "https://[2001:db8::1]", "http://a_b.c"])
def test_an_origin_is_an_origin(origin: str) -> None:
    assert checked_origin(origin) == origin


@pytest.mark.parametrize(
    "origin", ["http://a;rm -rf $HOME", "http://a'b", "http://`id`", "http://", "ftp://a", "http://a/b"]
)
def test_a_command_has_no_host_that_a_shell_would_run(origin: str) -> None:
    assert checked_origin(origin) is None


@pytest.mark.parametrize(
    "change",
    [
        {"REMOTE_ADDR": "192.0.2.1"},
        {"HTTP_HOST": "board.example"},
        {"HTTP_HOST": ""},
        {"HTTP_X_FORWARDED_FOR": "192.0.2.1"},
        {"HTTP_FORWARDED": "for=192.0.2.1"},
        {"HTTP_VIA": "1.1 proxy"},
    ],
    ids=str,
)
def test_paths_of_this_machine_are_for_visitors_on_it(change: dict[str, str]) -> None:
    assert is_from_this_machine(LOCAL) and is_from_this_machine({**LOCAL, "REMOTE_ADDR": "::1"})
    assert not is_from_this_machine({**LOCAL, **change})


def test_a_stranger_sees_what_works_for_a_stranger(pgbus_databases: TestDatabases) -> None:
    with running_demo(pgbus_databases.make()) as site:
        mine = ask(site.port, "/").body.decode()
        assert all(f'id="command-{name}"' in mine for name in ("sql", "program", "http", "follow"))
        theirs = ask(site.port, "/", Host="board.example:81", X_Forwarded_For="192.0.2.1").body.decode()
        assert "psql" not in theirs.replace("commands for psql", "") and "--data" not in theirs
        assert "http://board.example:81/pgbus/streams/demo:hello" in theirs and "On the server itself" in theirs
