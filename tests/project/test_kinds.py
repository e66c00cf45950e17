"""The needs of a test are read from its fixtures and its code, so that ``pytest -m fast`` knows new tests too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import kinds
import pytest


@pytest.fixture
def pgbus_databases() -> None:
    """Takes the place of the fixture that starts a server."""


@pytest.fixture
def url(pgbus_databases: None) -> str:
    return "postgresql:///none"


@pytest.fixture
def program() -> Iterator[Runner]:
    yield Runner()


class Base:
    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", ""]

    def start(self) -> None:
        subprocess.run(self.command, timeout=60, check=True)


class Runner(Base):
    """Inherits the method that starts the process."""


@contextmanager
def running() -> Iterator[Runner]:
    yield Runner()


def needs(request: pytest.FixtureRequest) -> set[str]:
    return {marker.name for marker in request.node.iter_markers()} & {*kinds.NEEDS, "fast"}


def test_a_test_without_needs_is_fast(request: pytest.FixtureRequest) -> None:
    assert needs(request) == {"fast"}


def test_a_test_needs_the_database_of_its_fixture(request: pytest.FixtureRequest, url: str) -> None:
    assert needs(request) == {"database"}


def test_a_test_needs_the_program_that_its_fixture_can_start(request: pytest.FixtureRequest, program: Runner) -> None:
    assert needs(request) == {"program"}


def test_a_test_needs_the_program_that_its_helper_starts(request: pytest.FixtureRequest) -> None:
    with running():
        assert needs(request) == {"program"}


@pytest.mark.slow
def test_a_test_that_is_marked_by_hand_is_not_fast(request: pytest.FixtureRequest) -> None:
    assert needs(request) == {"slow"}


@pytest.mark.parametrize("part", ["plain", pytest.param("stored", marks=pytest.mark.database)])
def test_one_case_of_a_test_may_need_more_than_its_other_cases(request: pytest.FixtureRequest, part: str) -> None:
    assert needs(request) == {"plain": {"fast"}, "stored": {"database"}}[part]


def test_a_fast_test_that_starts_a_process_fails_with_advice() -> None:
    start = getattr(os, "posix_" + "spawn")  # by a name that cannot be read from the code
    with pytest.raises(pytest.fail.Exception, match=r"mark it with @pytest\.mark\.program"):
        start(sys.executable, [sys.executable, "-c", ""], {})
