"""The pages of docs/reference that are made from the code are up to date, and those that are not agree with it."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from pgbus_gevent import errors
from pgbus_gevent.commands import program
from website import reference, roles

pytestmark = pytest.mark.docs

PAGES = Path(__file__).parents[2] / "docs/reference"
REMEDY = "run `.venv/bin/python -m website.reference`"


@pytest.mark.parametrize("name", reference.PURE)
def test_a_page_is_as_the_code_makes_it(name: str) -> None:
    assert (PAGES / name).read_text(encoding="utf-8") == reference.PURE[name](), REMEDY


def test_the_page_of_the_sql_functions_is_as_the_database_has_them(pgbus_database: str) -> None:
    assert (PAGES / "sql-functions.md").read_text(encoding="utf-8") == reference.sql_page(pgbus_database), REMEDY


def test_the_tree_of_exceptions_has_each_of_them() -> None:
    tree = re.findall(r"^[│├└─ ]*(\w+)", (errors.__doc__ or "").partition("::\n")[2].partition("The message")[0], re.M)
    there = {one.__name__ for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)}
    assert sorted(tree) == sorted(there)


def test_the_page_of_exit_codes_has_each_status() -> None:
    page = (PAGES / "exit-codes.md").read_text(encoding="utf-8")
    statuses = {int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert statuses == {0, program.FAILED, program.USAGE, program.INTERRUPTED}


PARTS = {"BodyConnection", "Connection", "Heartbeat", "IoWriter", "Listener", "Registry", "StreamEventDispatcher"}
"""The parts of an Instance that can be imported from ``pgbus_gevent.streamer``, which the page of the architecture describes."""


@pytest.mark.parametrize(
    "module",
    [
        "",
        ".aio",
        ".bottle_plugin",
        ".bus",
        ".datastar",
        ".django",
        ".flask",
        ".publishing.presence",
        ".streamer",
        ".testing",
        ".turbo",
    ],
)
def test_the_page_of_the_python_interface_has_each_public_name(module: str) -> None:
    names = import_module(f"pgbus_gevent{module}")
    wanted = {name for name in names.__all__ if not name.startswith("__") and not hasattr(errors, name)} - PARTS
    there = {path.rpartition(".")[2] for path in roles.documented()}
    for whole in {"pgbus_gevent.datastar", "pgbus_gevent.turbo"} & set(roles.documented()):
        there |= set(import_module(whole).__all__)
    assert wanted - there == set()


def test_what_the_page_of_the_python_interface_has_is_public_and_described() -> None:
    for path in roles.documented():
        assert "._" not in path
        package, names = path, []
        while True:
            try:
                found = import_module(package)
                break
            except ModuleNotFoundError:
                package, _, name = package.rpartition(".")
                names.insert(0, name)
        for name in names[:-1]:
            found = getattr(found, name)
        if names and hasattr(found, names[-1]):  # what only an object has is described beside it
            found = getattr(found, names[-1])
            assert getattr(found, "__doc__", None), path


def test_a_name_in_a_docstring_leads_to_what_it_means_there() -> None:
    in_bus, in_asyncio = "pgbus_gevent.bus.Bus.stream_path", "pgbus_gevent.aio.bus.Bus.stream_path"
    assert roles.linked("sign", in_bus) == "[`sign`][pgbus_gevent.bus.Bus.sign]"
    assert roles.linked("Stream", in_asyncio) == "[`Stream`][pgbus_gevent.aio.bus.Stream]"
    assert roles.linked("pgbus_gevent.Bus.sign", in_asyncio) == "[`pgbus_gevent.Bus.sign`][pgbus_gevent.bus.Bus.sign]"
    assert roles.linked("InvalidName", in_bus) == "[`InvalidName`](exceptions.md#invalidname)"
    assert roles.linked("close", "pgbus_gevent.core.filters.Filters") == "`close`"
