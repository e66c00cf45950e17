"""The code in the documentation can be parsed, the names that it uses exist, and a test runs each block."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from page_ledger_parts import MOST, NOT_RUN, not_run
from page_parts import Block, blocks, pages

import pgbus_gevent

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in pages()}
OF_THE_TESTS = {"PGBUS_TEST_DATABASE_URL", "PGBUS_TEST_INSTALLED", "PGBUS_CONFIG", "PGBUS_DEMO_SPEED"}
"""Variables that are not settings: of the testing kit, the one that names the file of settings, and the demo's."""


SHORTER = {"--collect-only", "-q", "--list", "--help", "--seeds", "--seconds"}
"""Flags by which a replacement shortens what takes long."""
ADDED = {
    "docs/edges.md": ("--port", "-u"),  # the edge is on another machine, which has that port and no database
}
"""Pages whose replacements add other flags, each with its reason."""
BLOCKS = [block for page in TEXTS for block in blocks(page)]
LINES = "}\n{"  # between objects that have one line each
PYTHON = [block for block in BLOCKS if block.language == "python"]


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


@pytest.mark.parametrize("page", TEXTS)
def test_a_test_runs_every_block(page: str) -> None:
    assert not_run(page) == {}


def test_few_blocks_are_not_run_and_each_has_its_reason() -> None:
    there = {(block.page, block.start) for block in BLOCKS}
    assert [key for key in NOT_RUN if key not in there | {(page, "*") for page in TEXTS}] == []
    assert len(NOT_RUN) <= MOST and all(len(reason) > 15 for reason in NOT_RUN.values())


@pytest.mark.parametrize("page", TEXTS)
def test_code_is_in_fences(page: str) -> None:
    """An indented block has no language, and no test would run it."""
    tokens = MarkdownIt("commonmark").parse(TEXTS[page])
    assert [token.map for token in tokens if token.type == "code_block"] == []


def test_there_is_code_of_all_kinds() -> None:
    assert {"python", "sh", "sql", "toml", "json", "yaml"} <= {block.language for block in BLOCKS}


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", of("json", "toml", "yaml"), ids=str)
def test_data_can_be_parsed(block: Block) -> None:
    readers = {
        "json": lambda text: json.loads(f"[{text.replace(LINES, '},{')}]"),
        "toml": tomllib.loads,
        "yaml": yaml.safe_load,
    }
    assert readers[block.language](block.text)


def added_words(replace: str) -> set[str]:
    """Return the flags and the marks between commands that a replacement adds to what the reader sees."""
    old, _, new = replace.partition("=>")
    return set(re.findall(r"(?<!\S)(?:--?[a-z][\w-]*|cd|&&|\|\|?|;)(?!\S)", new)) - set(old.split())


def test_a_replacement_that_readers_do_not_see_adds_no_flag_and_no_command() -> None:
    """Otherwise the page works for its test alone."""
    assert added_words("serve=>serve --public jobs:*") == {"--public"}
    assert added_words("python -m=>cd examples && python -m") == {"cd", "&&"}
    found = {
        (str(block), word)
        for block in BLOCKS
        for value in block.values("replace")
        for word in added_words(value) - SHORTER - set(ADDED.get(block.page, ()))
    }
    assert found == set()
    assert set(ADDED) <= {block.page for block in BLOCKS if block.values("replace")}


@pytest.mark.parametrize("page", TEXTS)
def test_a_program_of_a_page_finds_the_tables_that_it_changes(page: str) -> None:
    """A table that a hidden block makes is not there for the reader."""
    there = [block for block in blocks(page) if not block.hidden]
    programs = "".join(b.text for b in there if b.language == "python" and (b.value("file") or b.has("serves")))
    made = "".join(block.text for block in there) + "".join(
        path.read_text() for path in (ROOT / page).parent.glob("*.py")
    )
    tables = set(re.findall(r"\binsert into (\w+)", programs))
    assert tables - set(re.findall(r"\bcreate table (?:if not exists )?(\w+)", made)) == set()


def test_shell_commands_can_be_parsed() -> None:
    for block in of("sh"):
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), str(block)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_names_that_python_imports_from_the_package_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "pgbus_gevent":
                    import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pgbus_gevent":
            module = import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name) or import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("page", TEXTS)
def test_variables_are_settings(page: str) -> None:
    settings = {f"PGBUS_{field.name.upper()}" for field in dataclasses.fields(pgbus_gevent.Settings)}
    named = set(re.findall(r"\bPGBUS_[A-Z_]*[A-Z]\b", TEXTS[page]))
    assert named - settings - OF_THE_TESTS == set()


@pytest.mark.parametrize("page", TEXTS)
def test_functions_of_the_schema_exist(page: str) -> None:
    sql = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("pgbus_gevent/database/sql/**/*.sql"))
    there = set(re.findall(r"function pgbus\.(\w+)", sql))
    in_python = {name for name in dir(pgbus_gevent.Bus) if not name.startswith("_")}  # a Bus may be called `pgbus`
    assert set(re.findall(r"\bpgbus\.(\w+)\(", TEXTS[page])) - there - in_python == set()


def test_commands_and_tasks_exist() -> None:
    text = "\n".join(TEXTS.values())
    named = set(re.findall(r"(?:^|[/`])(?:python -m pgbus_gevent|pgbus-gevent) ([a-z]+)\b", text, re.MULTILINE))
    command = [sys.executable, "-m", "pgbus_gevent", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert named and named - set(re.findall(r"^ +([a-z]+) ", told, re.MULTILINE)) == set()
    tasks = set(re.findall(r"\bnox -s ((?:[a-z]+ ?)+)", text))
    source = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    there = set(re.findall(r'^def ([a-z]+)\(session|name="([a-z]+)"', source, re.MULTILINE))
    assert (
        tasks
        and {task for names in tasks for task in names.split()} - {name for pair in there for name in pair} == set()
    )
