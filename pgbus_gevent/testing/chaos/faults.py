"""The register of faults.

A fault is a function with a docstring that says in one line what is broken. It breaks it, waits, and puts it right. The modules
``faults_*`` have them; :mod:`.register` imports them all.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .judge import Loss
from .parts import Parts
from .processes import Part

FAULTS: dict[str, Fault] = {}
"""All faults by name, in the order in which they are defined."""


class Skipped(Exception):
    """A fault cannot be brought about here. The message says why."""


class Scene:
    """What a fault may use: the parts, a source of chance, and for how many seconds an outage lasts."""

    def __init__(self, parts: Parts, chance: random.Random, outage: float) -> None:
        self.parts, self.chance, self.outage = parts, chance, outage
        self.programs: dict[str, Part] = {}
        """The programs of the clients and the publishers, by name."""
        self.clients = 0
        """How many clients there are."""
        self.losses: list[Loss] = []
        """The servers that took committed messages along."""

    def wait(self) -> None:
        """Wait while it is broken."""
        time.sleep(self.outage)

    @contextmanager
    def held(self, *lines: str) -> Iterator[None]:
        """Hold these lines: they take bytes, and pass none on."""
        for line in lines:
            self.parts.lines.hold(line, True)
        try:
            yield
        finally:
            for line in lines:
                self.parts.lines.hold(line, False)

    @contextmanager
    def frozen(self, part: Part) -> Iterator[None]:
        """Suspend a process and all of its descendants."""
        part.send_all(signal.SIGSTOP)
        try:
            yield
        finally:
            part.send_all(signal.SIGCONT)


class Fault(NamedTuple):
    """A fault: ``bring`` breaks something, and puts it right."""

    name: str
    bring: Callable[[Scene], None]

    @property
    def description(self) -> str:
        """What it does, in one line."""
        return " ".join((self.bring.__doc__ or "").split())


def fault(function: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """Register a function as a fault, under its own name."""
    name = function.__name__.strip("_").replace("_", "-")
    FAULTS[name] = Fault(name, function)
    return function
