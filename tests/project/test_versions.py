"""The bounds in setup.py, and what the tests on several versions of Python install."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import versions

ROOT = Path(__file__).parents[2]


def for_users() -> set[str]:
    """Return the distributions that the package or an extra other than "dev" requires."""
    lines = (line for extra, lines in versions.declared().items() if extra != "dev" for line in lines)
    return {canonicalize_name(Requirement(line).name) for line in lines}


@pytest.mark.parametrize("python", versions.PYTHONS)
def test_what_users_install_has_one_lower_and_one_upper_bound_or_stricter_ones_for_a_python(python: str) -> None:
    required = versions.merged(python)
    users = {name: one.specifier for name, one in required.items() if name in for_users()}
    assert len(users) > 15
    bounds = {name: {each.operator for each in specifier} for name, specifier in users.items()}
    assert {name: found for name, found in bounds.items() if found != {">=", "<"}} == {}


@pytest.mark.parametrize("python", versions.PYTHONS[1:])
def test_the_pins_are_within_the_bounds_and_complete(python: str) -> None:
    pins = versions.pins()
    required = versions.merged(python)
    assert required.keys() - pins.keys() == {"uwsgi"}  # setup.py says why
    assert [name for name, one in required.items() if name in pins and pins[name] not in one.specifier] == []


def test_the_oldest_are_the_lower_bounds_of_what_users_install_and_of_frameworks() -> None:
    oldest = {Requirement(line).name: str(Requirement(line).specifier) for line in versions.oldest("3.12")}
    lower = {name: versions.lowest(one) for name, one in versions.merged("3.12").items()}
    assert for_users() - {"tomli"} | {"django", "celery", "fastapi", "flask"} <= oldest.keys()
    assert {name: oldest[name] for name, bound in lower.items() if bound} == {
        name: f"=={bound}" for name, bound in lower.items() if bound
    }
    assert "uwsgi" not in oldest


def test_a_stricter_bound_for_a_python_applies_there_only() -> None:
    assert "psycopg2-binary==2.9.10" in versions.oldest("3.13")
    assert "psycopg2-binary==2.9.11" in versions.oldest("3.14")
    assert not any(line.startswith("tomli") for line in versions.oldest("3.11"))
    assert "tomli==2.2.1" in versions.oldest("3.10")


def test_tools_have_their_pins_except_on_a_python_that_some_pins_do_not_support() -> None:
    pinned = f"hypothesis=={versions.pins()['hypothesis']}"
    assert pinned in versions.oldest("3.11")
    assert "hypothesis" in versions.oldest("3.10")


def test_the_newest_are_limited_by_the_bounds_only() -> None:
    newest = [Requirement(line) for line in versions.newest("3.12")]
    assert {operator.operator for one in newest for operator in one.specifier} == {">=", "<"}
    assert {one.name for one in newest} == {Requirement(line).name for line in versions.oldest("3.12")}


def test_setup_py_names_the_versions_of_python_that_the_task_tries() -> None:
    options = versions.options()
    named = re.findall(r":: (3\.\d+)$", "\n".join(options["classifiers"]), re.MULTILINE)
    assert tuple(named) == versions.PYTHONS
    assert options["python_requires"] == f">={versions.PYTHONS[0]}"


def test_it_is_a_program_for_ci() -> None:
    command = [sys.executable, str(ROOT / "tools/versions.py"), "tests"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    arguments = done.stdout.splitlines()
    assert arguments[:2] == ["-m", "not browser"]
    assert all((ROOT / argument.partition("=")[2]).exists() for argument in arguments[2:])


def test_ci_takes_both_from_there() -> None:
    assert set(re.findall(r"tools/versions\.py (\w+)", (ROOT / ".ci/debian13").read_text(encoding="utf-8"))) == {
        "oldest",
        "tests",
    }
