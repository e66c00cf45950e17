"""The processes of a server of a run."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from pgbus_gevent.testing.chaos.parts import Worker

NONE = 1 << 30  # larger than any process id


def worker(*children: int) -> Worker:
    part: Any = SimpleNamespace(pid=7, children=lambda: list(children))
    return Worker(part, "clients-one", "127.0.0.1", 1)


def test_those_that_have_no_children_serve() -> None:
    assert worker(os.getppid(), os.getpid()).processes == [os.getpid()]


def test_a_process_that_ends_meanwhile_is_left_out() -> None:
    assert worker(os.getpid(), NONE).processes == [os.getpid()]


def test_a_server_without_children_serves_itself() -> None:
    assert worker().processes == [7]
