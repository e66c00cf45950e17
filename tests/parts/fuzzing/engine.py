"""Runs the inputs of a target, and judges each one: an exception, a record in the log, a greenlet that fails, or too much time."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic, process_time
from typing import Any

import gevent

CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus"

HANG = 60.0
"""Seconds after which an input counts as hanging, also on a busy machine."""

TIMES = 20
"""How many times slower than its size justifies an input may be."""

STEPS = 50
"""How many steps of a loop in Python each byte of an input may take, besides what an input of the corpus usually takes."""

FLOOR = 0.5
"""Seconds of processor time up to which no input counts as slow."""

Check = Callable[[bytes], object]


class Finding(AssertionError):
    """An input that a target does not take as it should."""

    def __init__(self, target: str, data: bytes, what: str) -> None:
        super().__init__(f"{target}: {what}\ninput ({len(data)} bytes): {data[:2000]!r}")
        self.target = target
        self.data = data
        self.what = what


@dataclass
class Target:
    """``open`` makes what is needed once, and gives the check, which raises for an input that is not taken as it should be.

    ``words`` are pieces that inputs of this target are made of, and ``most`` is the largest input that is made, in bytes.
    ``allowed`` are beginnings of records at level ERROR that are documented. ``needs`` says what the check needs beside Python.
    """

    name: str
    open: Callable[..., AbstractContextManager[Check]]
    words: tuple[bytes, ...]
    most: int = 64 * 1024
    allowed: tuple[str, ...] = ()
    needs: str = ""
    about: str = ""

    @property
    def folder(self) -> Path:
        return CORPUS / self.name

    def corpus(self) -> list[bytes]:
        """Return the inputs of the corpus, in the order of their names."""
        return [path.read_bytes() for path in sorted(self.folder.glob("*")) if path.is_file()]


def plain(check: Check) -> Callable[..., AbstractContextManager[Check]]:
    """Return an ``open`` for a check that needs nothing."""
    return lambda *_: nullcontext(check)


class OfProcess:
    """A check whose work another process of this machine does, such as a session of PostgreSQL. Its processor time counts, too."""

    def __init__(self, check: Check, pid: int) -> None:
        self._check = check
        self._stat = Path(f"/proc/{pid}/stat")

    def __call__(self, data: bytes) -> None:
        self._check(data)

    def used(self) -> float:
        """Return the seconds of processor time of the process so far; 0 if PostgreSQL does not run on this machine."""
        try:
            head, _, rest = self._stat.read_text().rpartition(")")
        except OSError:
            return 0.0
        user, system = rest.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") if head.endswith("(postgres") else 0.0


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []
        self.allowed: tuple[str, ...] = ()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if (record.levelno >= logging.ERROR or record.exc_info) and not text.startswith(self.allowed):
            error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
            shown = "".join(traceback.format_exception(error)) if error is not None else ""
            self.found.append(f"{text}\n{shown}")


class Witness:
    """Collects what an input leaves in the log, and the greenlets that it makes fail."""

    watches = False
    """Whether inputs are run now."""

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        self._records = _Records()
        self._records.allowed = allowed
        self._errors: list[str] = []

    def taken(self) -> list[str]:
        """Return what was noted since the last call."""
        found, self._records.found[:], self._errors[:] = [*self._records.found, *self._errors], [], []
        return found

    def _note(self, context: Any, kind: Any, value: Any, tb: Any) -> None:
        if not issubclass(kind, gevent.GreenletExit):
            self._errors.append(
                f"uncaught in {context!r:.200}:\n{''.join(traceback.format_exception(kind, value, tb))}"
            )

    @contextmanager
    def watching(self) -> Iterator[Witness]:
        """Watch for a block."""
        hub: Any = gevent.get_hub()
        package = logging.getLogger("pgbus_gevent")
        package.addHandler(self._records)
        hub.handle_error = self._note
        level, package.level = package.level, logging.WARNING
        # pytest would keep each record for its report, which cannot be sent to another process if an exception's text is no UTF-8.
        package.propagate = False
        Witness.watches = True
        try:
            yield self
        finally:
            Witness.watches = False
            package.propagate = True
            package.level = level
            del hub.handle_error
            package.removeHandler(self._records)


@dataclass
class Judge:
    """Runs inputs of one target, and raises :class:`Finding`. It keeps the figures of the run."""

    target: Target
    check: Check
    witness: Witness
    inputs: int = 0
    seconds: float = 0.0
    slowest: tuple[float, bytes] = (0.0, b"")
    """The input with the most time for its size, as seconds for each byte, since the last call of :meth:`take_slowest`."""
    times: list[float] = field(default_factory=list)
    """The seconds of the inputs of the corpus, in their order."""
    longest: tuple[float, bytes] = (0.0, b"")
    """The seconds of processor time of the input that took the most, and the input."""
    _typical: float = 0.0
    _step: float = 0.0

    def calibrate(self) -> None:
        """Learn what inputs of the corpus take on this machine, and what a step of a loop takes. Call it after the corpus."""
        began, value = process_time(), 0
        for n in range(100_000):
            value ^= n
        self._step = max(1e-8, (process_time() - began) / 100_000)
        self._typical = median(self.times or [0.0])

    def justified(self, size: int) -> float:
        """Return how many seconds of processor time an input of this size may take."""
        return max(FLOOR, TIMES * (self._typical + size * STEPS * self._step))

    def run(self, data: bytes) -> None:
        """Run one input. Raises :class:`Finding`."""
        self.inputs += 1
        used = self._once(data)
        self.seconds += used
        if not self._step:
            self.times.append(used)
        self.slowest = max(self.slowest, (used / (len(data) + 256), data))
        self.longest = max(self.longest, (used, data))
        limit = self.justified(len(data))
        if used > limit and self._step:
            used = min(
                used, self._once(data), self._once(data)
            )  # the machine, or a collection of garbage, may be the reason
            if used > limit:
                raise Finding(self.target.name, data, f"it took {used:.3f} s of processor time, and not {limit:.3f}")

    def take_slowest(self) -> bytes:
        """Return the slowest input since the last call."""
        (_, data), self.slowest = self.slowest, (0.0, b"")
        return data

    def _used(self) -> float:
        return process_time() + (self.check.used() if isinstance(self.check, OfProcess) else 0.0)

    def _once(self, data: bytes) -> float:
        began = self._used()
        try:
            with gevent.Timeout(HANG, TimeoutError(f"it hangs: no end after {HANG:g} s")):
                self.check(data)
        except (KeyboardInterrupt, Finding):
            raise
        except BaseException as error:
            shown = "".join(traceback.format_exception(error))
            raise Finding(self.target.name, data, f"it raised {error!r:.500}\n{shown[-3000:]}") from None
        used = self._used() - began
        left = self.witness.taken()
        if left:
            raise Finding(self.target.name, data, f"it left in the log: {''.join(left)[:3000]}")
        return used


@contextmanager
def judging(target: Target, *needs: Any) -> Iterator[Judge]:
    """Open a target, and run its corpus."""
    with Witness(target.allowed).watching() as witness, target.open(*needs) as check:
        judge = Judge(target, check, witness)
        corpus = target.corpus()
        for data in corpus:
            judge.run(data)
        judge.calibrate()
        # What an input may take is known only now.
        for data in [data for data, used in zip(corpus, judge.times, strict=True) if used > judge.justified(len(data))]:
            judge.run(data)
        yield judge


def growing(data: bytes, most: int) -> list[bytes]:
    """Return large inputs made of a small one, whose time shows whether it grows faster than the size."""
    if not data:
        return []
    third = max(1, len(data) // 3)
    middle = data[third : 2 * third] or data
    times = max(1, (most - len(data)) // len(middle))
    return [
        (data * (most // len(data) + 1))[:most],
        (data[:third] + middle * times + data[2 * third :])[:most],
        (data[:1] * (most - 1 - len(data)) + data)[:most],
        (data + data[-1:] * (most - 1 - len(data)))[:most],
    ]


def fuzz(judge: Judge, *, seconds: float, seed: int, say: Callable[[str], None] = print) -> int:
    """Run fresh inputs for some seconds, and return how many. Raises :class:`Finding`.

    The inputs depend on the seed alone, but how many of them are run depends on the machine.
    """
    from .inputs import batches

    before, end = judge.inputs, monotonic() + seconds
    say(f"{judge.target.name}: seed {seed}")
    for batch in batches(judge.target, judge.target.corpus(), seed):
        # On a busy machine, the seconds may be over before hypothesis has drawn the first input.
        batch(judge.run, lambda: monotonic() >= end and judge.inputs > before)
        for data in growing(judge.take_slowest(), judge.target.most):
            judge.run(data)
        if monotonic() >= end:
            break
    say(f"{judge.target.name}: {judge.inputs - before} fresh inputs, {judge.seconds:.1f} s of processor time in all")
    used, data = judge.longest
    say(f"{judge.target.name}: the slowest input took {1000 * used:.0f} ms ({len(data)} bytes: {data[:60]!r})")
    return judge.inputs - before


def shrunk(judge: Judge, error: Finding, seconds: float = 20.0) -> Finding:
    """Return a finding with a smaller input, if one is found within some seconds."""
    from .inputs import smaller

    end, found = monotonic() + seconds, [error]

    def fails(data: bytes) -> bool:
        try:
            judge.run(data)
        except Finding as other:
            found.append(other)
            return True
        return False

    smaller(error.data, fails, lambda: monotonic() >= end)
    return min(found, key=lambda each: len(each.data))
