"""The command line as users run it: in a process of its own, on a real PostgreSQL."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
from contextlib import closing
from datetime import datetime
from pathlib import Path
from time import time

import psycopg2
import pytest
from cli_parts import PATIENCE, PROGRAM, Cli, Tail, environment

from pgbus_gevent import __version__
from pgbus_gevent.bus import Bus
from pgbus_gevent.commands.secret import read_or_make_secret
from pgbus_gevent.core.names import Signer
from pgbus_gevent.errors import InvalidArgument, TokenExpired
from pgbus_gevent.testing.databases import TestDatabases

COMMANDS = [
    "serve", "broadcast", "tail", "streams", "connections", "sign", "disconnect", "migrate", "prune", "relay",
    "doctor", "bench",
]  # fmt: skip
SECRET = "a secret of the test"


@pytest.fixture
def cli(tmp_path: Path, pgbus_database: str) -> Cli:
    return Cli(tmp_path, pgbus_database)


@pytest.fixture
def lonely(tmp_path: Path) -> Cli:
    """Without any database."""
    return Cli(tmp_path)


# help and usage


def test_help_lists_every_command() -> None:
    out = Cli(Path("/")).ok("--help")
    assert [line.split()[0] for line in out.splitlines() if re.match(r"  \w+  +\w", line)] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, lonely: Cli) -> None:
    out = lonely.ok(command, "--help")
    assert out.startswith(f"usage: pgbus-gevent {command} ")
    assert "--config" in out
    assert "--data-dir" in out


@pytest.mark.parametrize("command, level", [("relay", "info"), ("streams", "warning")])
def test_help_says_which_records_a_command_logs(command: str, level: str, lonely: Cli) -> None:
    assert f"PGBUS_LOG_LEVEL; default: {level}" in " ".join(lonely.ok(command, "--help").split())


def test_version(lonely: Cli) -> None:
    assert lonely.ok("--version") == f"pgbus-gevent {__version__}\n"


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "no command was given"),
        (["brodcast", "a", "b"], "there is no command 'brodcast'; did you mean broadcast?"),
        (["xyz"], "there is no command 'xyz'; there are serve, broadcast"),
        (["--foo"], "--foo"),
        (["streams", "--foo"], "--foo"),
        (["broadcast", "a"], "DATA"),
        (["tail"], "STREAM"),
        (["tail", "a", "--since", "1", "--replay", "1"], "not allowed with"),
        (["tail", "a", "--since", "x"], "--since='x' is not a cursor"),
        (["tail", "a", "--replay", "-1"], "--replay='-1' is not a count of messages"),
        (["tail", ""], "stream name"),
        (["tail", "a\nb"], "control characters"),
        (["broadcast", "", "x"], "stream name"),
        (["broadcast", "x" * 256, "x"], "255 bytes"),
        (["sign", "a\tb", "--secret", SECRET], "control characters"),
        (["sign", "a", "--secret", SECRET, "--expires", "soon"], "--expires='soon'"),
        (["sign", "a", "--secret", "short"], "secret='***'"),
        (["streams", "--config", "/nowhere.toml"], "/nowhere.toml"),
    ],
)
def test_wrong_usage_is_reported_in_a_line(arguments: list[str], said: str, lonely: Cli) -> None:
    assert said in lonely.fails(2, *arguments)


def test_a_variable_with_a_value_that_is_not_allowed_is_wrong_usage(lonely: Cli) -> None:
    assert "PGBUS_LOG_LEVEL" in lonely.fails(2, "streams", PGBUS_LOG_LEVEL="loud")


# what goes wrong with databases

NEED_A_DATABASE = [["broadcast", "a", "b"], ["tail", "a"], ["streams"], ["migrate"]]


@pytest.mark.parametrize("arguments", NEED_A_DATABASE)
def test_an_unreachable_database_is_a_failure(arguments: list[str], lonely: Cli) -> None:
    url = "postgresql://user:hidden@127.0.0.1:1/x"
    said = lonely.fails(1, *arguments, "--database-url", url)
    assert "cannot connect" in said
    assert "hidden" not in said


@pytest.mark.parametrize("arguments", NEED_A_DATABASE)
def test_no_embedded_database_is_a_failure_and_none_is_made(arguments: list[str], lonely: Cli, tmp_path: Path) -> None:
    said = lonely.fails(1, *arguments)
    assert f"no embedded database in {tmp_path}" in said
    assert list(tmp_path.iterdir()) == []


OF_THE_DATABASE = [*NEED_A_DATABASE, ["connections"], ["disconnect", "ada"], ["prune"], ["doctor"]]
UPSTREAM = "http://127.0.0.1:1/pgbus"


@pytest.mark.parametrize("arguments", OF_THE_DATABASE, ids=" ".join)
def test_a_command_that_needs_the_database_says_that_an_edge_has_none(
    arguments: list[str], lonely: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "pgbus.toml"
    file.write_text(f'upstream = "{UPSTREAM}"\n')
    for said in (
        lonely.fails(2, *arguments, PGBUS_UPSTREAM=UPSTREAM),
        lonely.fails(2, *arguments, "--config", str(file)),
    ):
        assert said == (
            "upstream is set, so this is an edge, which has no database: run the command at the origin, or give --database-url"
        )


def test_a_command_at_an_edge_uses_the_database_that_it_is_given(cli: Cli, pgbus_bus: Bus) -> None:
    edge = {"PGBUS_UPSTREAM": UPSTREAM, "PGBUS_WORKER_TOKEN": "w" * 16}
    cli.ok("broadcast", "orders", "a", **edge)
    assert [message.data for message in pgbus_bus.stream("orders")] == ["a"]
    with Tail(cli, "orders", "--json", "--since", "0", **edge) as tail:
        assert tail.message()["data"] == "a"
    assert cli.ok("sign", "orders", "--secret", SECRET, **edge)


@pytest.mark.parametrize("arguments", [["tail", "a"], ["streams"], ["broadcast", "a", "b", "--no-migrate"]])
def test_a_database_without_the_schema_stays_without_it(
    arguments: list[str], lonely: Cli, pgbus_databases: TestDatabases
) -> None:
    url = pgbus_databases.make_empty()
    assert "pgbus-gevent migrate" in lonely.fails(1, *arguments, "--database-url", url)
    assert schemas(url) == []
    pgbus_databases.drop(url)


def schemas(url: str) -> list[str]:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("select nspname from pg_namespace where nspname like 'pgbus%'")
        return [row[0] for row in cursor.fetchall()]


# broadcast


def test_broadcast_prints_the_id_of_what_it_stored(cli: Cli, pgbus_bus: Bus) -> None:
    options = ["--event", "order.paid", "--visible-to", "admins", "--exclude", "abc"]
    out = cli.ok("broadcast", "orders", "héllo", *options)
    (message,) = pgbus_bus.stream("orders")
    assert out == f"{message.id}\n"
    assert message[3:] == ("order.paid", "héllo", "admins", "abc")


@pytest.mark.parametrize("data", ["-5", "--event", "", "a\nb", " x "])
def test_data_is_published_unchanged(data: str, cli: Cli, pgbus_bus: Bus) -> None:
    cli.ok("broadcast", "orders", "--", data)
    assert [message.data for message in pgbus_bus.stream("orders")] == [data]


@pytest.mark.parametrize(
    "stdin, data", [("a\r\nb\n", "a\r\nb"), ("a\n\n", "a\n"), ("€", "€"), ("x\r\n", "x"), ("", "")]
)
def test_data_from_stdin_loses_its_last_line_end(stdin: str, data: str, cli: Cli, pgbus_bus: Bus) -> None:
    cli.ok("broadcast", "orders", "-", stdin=stdin.encode())
    assert [message.data for message in pgbus_bus.stream("orders")] == [data]


def test_stdin_that_is_not_text_is_refused(cli: Cli) -> None:
    assert "byte 1 " in cli.fails(2, "broadcast", "orders", "-", stdin=b"a\xff")


def test_a_key_makes_a_second_broadcast_print_the_first_id(cli: Cli, pgbus_bus: Bus) -> None:
    first = cli.ok("broadcast", "orders", "a", "--key", "k")
    assert cli.ok("broadcast", "orders", "b", "--key", "k") == first
    assert [message.data for message in pgbus_bus.stream("orders")] == ["a"]


def test_an_ephemeral_message_has_no_id_to_print(cli: Cli, pgbus_bus: Bus) -> None:
    assert cli.ok("broadcast", "orders", "a", "--ephemeral") == ""
    assert pgbus_bus.stream("orders").last_id() == 0


@pytest.mark.parametrize(
    "options",
    [["--event", "pgbus:x"], ["--event", "a\nb"], ["--ephemeral", "--key", "k"]],
    ids=["ours", "break", "key"],
)
def test_broadcast_refuses_what_cannot_be_published(options: list[str], cli: Cli, pgbus_bus: Bus) -> None:
    cli.fails(2, "broadcast", "orders", "x", *options)
    assert pgbus_bus.stream("orders").last_id() == 0


def test_broadcast_makes_the_schema_if_there_is_none(lonely: Cli, pgbus_databases: TestDatabases) -> None:
    url = pgbus_databases.make_empty()
    lonely.ok("broadcast", "orders", "x", "--database-url", url)
    assert schemas(url) == ["pgbus"]
    pgbus_databases.drop(url)


# streams


def test_streams_is_a_table_with_aligned_columns(cli: Cli, pgbus_bus: Bus) -> None:
    pgbus_bus.stream("日本").broadcast_many(["x"] * 1234)
    last = pgbus_bus.stream("orders").broadcast("x")
    head, orders, japan = cli.ok("streams").splitlines()
    assert head.split("  ")[0] == "STREAM"
    assert re.fullmatch(rf"orders +1  {last}  \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ", orders)
    assert japan.startswith("日本   ")
    assert head.index("MESSAGES") + len("MESSAGES") == orders.index("  1  ") + 3 == japan.index("1,234") + 5 + 2


def test_streams_in_json_is_one_object_a_line(cli: Cli, pgbus_bus: Bus) -> None:
    last = pgbus_bus.stream("ordérs").broadcast("x")
    (line,) = cli.ok("streams", "--json").splitlines()
    found = json.loads(line)
    assert abs(time() - _seconds(found.pop("last_at"))) < 60
    assert found == {"stream": "ordérs", "messages": 1, "more": False, "last_id": last}


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


# migrate


def test_migrate_says_what_it_did(lonely: Cli, pgbus_databases: TestDatabases) -> None:
    url = pgbus_databases.make_empty()
    first = lonely.ok("migrate", "--database-url", url)
    assert first.startswith("applied migration 1 (messages)\n")
    version = re.search(r"schema pgbus is now at version (\d+)\n$", first)
    assert version
    assert lonely.ok("migrate", "--database-url", url) == f"schema pgbus is already at version {version[1]}\n"
    pgbus_databases.drop(url)


# sign, and the secret in the data directory


def test_sign_prints_a_name_that_verifies(lonely: Cli) -> None:
    token = lonely.ok("sign", "ordérs", PGBUS_SECRET=SECRET).strip()
    assert Signer([SECRET]).verify(token, time()) == ("ordérs", None)


def test_a_signed_name_expires_at_its_time(lonely: Cli) -> None:
    token = lonely.ok("sign", "orders", "--expires", "1h", "--secret", SECRET).strip()
    name, expires_at = Signer([SECRET]).verify(token, time())
    assert name == "orders"
    assert expires_at is not None and abs(expires_at - time() - 3600) < 60
    with pytest.raises(TokenExpired):
        Signer([SECRET]).verify(token, time() + 3601)


def test_sign_takes_the_secret_of_the_data_directory(lonely: Cli, tmp_path: Path) -> None:
    secret = read_or_make_secret(str(tmp_path), create=True)
    assert Signer([secret]).verify(lonely.ok("sign", "orders").strip(), time())[0] == "orders"


def test_sign_says_where_it_looked_for_a_secret(lonely: Cli, tmp_path: Path) -> None:
    said = lonely.fails(2, "sign", "orders")
    assert "PGBUS_SECRET" in said
    assert str(tmp_path / "secret") in said
    assert list(tmp_path.iterdir()) == []


def test_a_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    secret = read_or_make_secret(str(directory), create=True)
    assert len(secret) >= 32
    assert (
        read_or_make_secret(str(directory), create=True) == read_or_make_secret(str(directory), create=False) == secret
    )
    assert [path.name for path in directory.iterdir()] == ["secret"]
    assert stat.S_IMODE((directory / "secret").stat().st_mode) == 0o600
    assert (directory / "secret").read_text() == secret + "\n"


@pytest.mark.parametrize("text", ["", "short\n", "two lines of text\nof which none\n", "\n" + "x" * 20])
def test_a_file_that_holds_no_secret_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(text)
    with pytest.raises(InvalidArgument, match="contains no secret"):
        read_or_make_secret(str(tmp_path), create=True)


# logging and output


def test_records_are_logged_as_json_even_those_from_before_the_format_was_known(cli: Cli) -> None:
    status, _, err = cli.run("streams", "--log-format", "json", PGBUS_RETENSION="1h")
    assert status == 0
    (line,) = err.splitlines()
    record = json.loads(line)
    assert abs(time() - _seconds(record.pop("time"))) < 60
    assert "PGBUS_RETENTION" in record.pop("message")
    assert record.pop("pid") > 1
    assert record == {"level": "warning", "logger": "pgbus_gevent.settings"}


def test_a_log_level_holds_for_every_record(cli: Cli) -> None:
    assert cli.ok("streams", "--log-level", "error", PGBUS_RETENSION="1h")
    _, _, err = cli.run("streams", PGBUS_RETENSION="1h")
    assert re.fullmatch(r"\S+T\S+Z \d+ WARNING pgbus_gevent\.settings: PGBUS_RETENSION [^\n]+\n", err)


def test_an_interrupt_ends_a_command_in_silence(lonely: Cli) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        url = f"postgresql://127.0.0.1:{mute.getsockname()[1]}/x"
        process = subprocess.Popen(
            [*PROGRAM, "streams", "--database-url", url], stdout=-1, stderr=-1, env=environment(**lonely.variables)
        )
        mute.settimeout(PATIENCE)
        session, _ = mute.accept()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE) == (b"", b"")
        session.close()
    assert process.returncode == 130


@pytest.mark.parametrize("closed, arguments", [("<&-", ["broadcast", "orders", "-"]), ("2>&-", ["streams", "--foo"])])
def test_a_closed_descriptor_causes_no_traceback(closed: str, arguments: list[str], cli: Cli) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *PROGRAM, *arguments],
        capture_output=True,
        env=environment(**cli.variables),
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr in (b"", b"pgbus-gevent: cannot read the data, because stdin is closed\n")


def test_names_are_printed_in_utf_8_in_any_locale(cli: Cli, pgbus_bus: Bus) -> None:
    pgbus_bus.stream("日本").broadcast("x")
    assert '"日本"' in cli.ok("streams", "--json", PYTHONUTF8="0", PYTHONIOENCODING="latin-1")


def test_output_without_a_reader_is_no_error(cli: Cli) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*PROGRAM, "streams"]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, env=environment(**cli.variables), timeout=PATIENCE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", [["streams"], ["tail", "orders", "--since", "0"]])
def test_output_that_cannot_be_written_is_a_failure(arguments: list[str], cli: Cli, pgbus_bus: Bus) -> None:
    pgbus_bus.stream("orders").broadcast("x")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(**cli.variables),
            timeout=PATIENCE,
        )
    assert (done.returncode, done.stderr) == (1, b"pgbus-gevent: No space left on device\n")


def test_without_stdout_tail_does_not_write_to_the_file_that_got_its_number(cli: Cli, pgbus_bus: Bus) -> None:
    pgbus_bus.stream("orders").broadcast("x")
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *PROGRAM, "tail", "orders", "--since", "0"],
        stderr=subprocess.PIPE,
        env=environment(**cli.variables),
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (1, b"pgbus-gevent: stdout is closed\n")
