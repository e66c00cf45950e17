"""The pages of docs/reference that are made from the code are up to date, and those that are not agree with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pgbus_gevent import errors
from pgbus_gevent.commands import program
from website import reference

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
