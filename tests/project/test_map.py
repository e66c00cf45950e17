"""A test file has the name of the module that it tests, in a folder that mirrors the package."""

from __future__ import annotations

from pathlib import Path

import pgbus_gevent

TESTS = Path(__file__).parents[1]
PACKAGE = Path(pgbus_gevent.__file__).parent

SUBJECTS = {
    "browser": "the element and the pages in a real browser",
    "deploy": "the files of deploy/, run or validated",
    "js": "the client package, and applications that use it",
    "integrations": "the package in other programs: Django, Flask, asyncio",
    "docs": "the pages of the documentation, as their readers use them",
    "faults": "what may go wrong around a whole worker",
    "fuzz": "inputs that nobody thought of, for each way into the package",
    "project": "the repository: layers, documentation, distributions, tools",
    "simulation": "the simulator, and what it finds",
    "spin": "the models of the ordering rules for Spin",
    "sql": "the SQL functions; a file carries the name of a file in database/sql",
}
"""Folders that mirror no folder of Python modules, and what their tests are about."""

FILES = sorted(path.relative_to(TESTS) for path in TESTS.rglob("test_*.py") if "node_modules" not in path.parts)


def modules(folder: Path) -> set[str]:
    """Return the names that test files in ``folder`` may begin with."""
    if folder.name == "sql":
        return {path.stem.split("_", 1)[1] for path in (PACKAGE / "database/sql").glob("0*_*.sql")}
    return {path.stem for path in (PACKAGE / folder).glob("*.py")}


def carries_a_name_of(stem: str, names: set[str]) -> bool:
    """Return whether a test file is named after a module, with or without a subject after the name of the module."""
    subject = stem.removeprefix("test_")
    return any(subject == name or subject.startswith(f"{name}_") for name in names)


def is_in_its_place(path: Path) -> bool:
    """Return whether a test file is in a folder of the package, and has the name of a module there."""
    folder = path.parent
    if folder.name in SUBJECTS.keys() - {"sql"}:
        return True
    return (folder.name == "sql" or (PACKAGE / folder).is_dir()) and carries_a_name_of(path.stem, modules(folder))


def test_each_test_file_has_the_name_of_its_module() -> None:
    assert len(FILES) > 100
    assert [path.as_posix() for path in FILES if not is_in_its_place(path)] == []


def test_only_conftest_is_beside_the_tests_of_the_top_level() -> None:
    assert [path.name for path in TESTS.glob("*.py") if not path.name.startswith("test_")] == ["conftest.py"]


def test_the_rule_finds_wrong_names() -> None:
    assert carries_a_name_of("test_pool", {"pool"})
    assert carries_a_name_of("test_pool_processes", {"pool"})
    assert not carries_a_name_of("test_pools", {"pool"})
    assert not carries_a_name_of("test_other", {"pool"})
