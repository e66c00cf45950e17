"""The deadline of a test. A test that exceeds it fails, and the stacks of all greenlets are reported.

Two timers run. The kernel's timer sends SIGALRM, whose handler ends a test that waits or computes forever in Python. If the
test blocks the process in C, as two greenlets in one psycopg2 connection do, no handler can run. Then, some seconds later,
faulthandler's own thread writes the stacks of all threads and ends the process.

This module does not import gevent. It uses gevent only if the process has imported it already.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from time import monotonic
from types import FrameType
from typing import IO, Any

import pytest

from . import leaks

GRACE = 10.0
"""Seconds after the deadline at which the process is ended if the handler could not run."""


class Deadline:
    """The timers of one process. :meth:`arm` and :meth:`disarm` are called for each phase of a test."""

    def __init__(self) -> None:
        # pytest captures descriptor 2 later, and captured output is lost if the process ends.
        self._stderr: IO[bytes] | None = None
        with suppress(OSError):  # the process may have no stderr
            self._stderr = os.fdopen(os.dup(2), "wb")
        self._item: pytest.Item | None = None
        self._phase = ""
        self._seconds = 0.0
        self._main: Any = None
        self._before: tuple[Any, float, float] | None = None

    def arm(self, item: pytest.Item, phase: str, seconds: float) -> None:
        """Start the timers for a phase of ``seconds``. Leaves another program's SIGALRM timer alone if it would fire earlier."""
        self._item, self._phase, self._seconds = item, phase, seconds
        if self._stderr is not None:
            faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=self._stderr)
        if threading.current_thread() is not threading.main_thread():
            return
        if 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= seconds:
            return
        self._main = _current_greenlet()
        handler = signal.signal(signal.SIGALRM, self._expired)
        # Repeats, because a test may catch the exception.
        left, _ = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        self._before = handler, left, monotonic()

    def disarm(self) -> None:
        """Stop the timers, and restart the timer that was running before. Idempotent."""
        if self._item is None:
            return
        self._item = self._main = None
        faulthandler.cancel_dump_traceback_later()
        if self._before is not None:
            (handler, left, since), self._before = self._before, None
            signal.setitimer(signal.ITIMER_REAL, 0)
            # None: C code had set the handler, and Python cannot restore it.
            signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
            if left:
                signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (monotonic() - since)))

    def close(self) -> None:
        """Stop the timers and close the descriptor."""
        self.disarm()
        stderr, self._stderr = self._stderr, None
        if stderr is not None:
            stderr.close()

    def _expired(self, _number: int, frame: FrameType | None) -> None:
        if self._item is None:
            return
        if self._stderr is not None:
            faulthandler.dump_traceback_later(self._seconds + GRACE, exit=True, file=self._stderr)
        self._item.add_report_section(self._phase, "stacks", stacks())
        phase = {"setup": "the setup", "call": "the test", "teardown": "the teardown"}[self._phase]
        failure = pytest.fail.Exception(
            f"{phase} did not end within {self._seconds:g} s (pgbus_timeout); the stacks of all greenlets are below",
            pytrace=True,
        )
        current = _current_greenlet()
        if current is self._main:
            raise failure
        from gevent.hub import Hub

        if isinstance(current, Hub):
            current.loop.run_callback(self._main.throw, failure)
            if frame is not None and frame.f_code is not Hub.run.__code__:
                raise failure  # a callback that never ends
            return
        # Another greenlet does not let others run. Switching away from it here leaves it suspended for good.
        self._main.throw(failure)


def stacks() -> str:
    """Return the stacks of all native threads and greenlets as text.

    gevent's ``format_run_info`` also shows the greenlets' locals, which may hold secrets, and whose ``repr`` may raise, as that
    of Bottle's ``request`` does outside a request. This function calls no code of the objects that it finds.
    """
    frames = sys._current_frames().items()
    parts = [f"thread {number:#x}:\n{_stack(frame)}" for number, frame in frames]
    return "\n".join([*parts, *(_show_greenlet(one) for one in _waiting_greenlets())])


def _stack(frame: FrameType) -> str:
    return "".join(traceback.format_stack(frame))


def _waiting_greenlets() -> list[Any]:
    if "gevent" not in sys.modules:
        return []
    from greenlet import greenlet

    # Uses type(), because a proxy such as Werkzeug's runs code when its __class__ is read.
    found = [one for one in gc.get_objects() if issubclass(type(one), greenlet)]
    return [one for one in found if one.gr_frame is not None]  # None: dead, not started, or shown with its thread


def _show_greenlet(one: Any) -> str:
    name = getattr(getattr(one, "_run", None), "__qualname__", None) or type(one).__name__
    spawned = leaks.place(getattr(one, "spawning_stack", None))
    return f"greenlet {name} at {id(one):#x}{spawned and f', spawned at {spawned}'}:\n{_stack(one.gr_frame)}"


def _current_greenlet() -> Any:
    if "gevent" not in sys.modules:
        return None
    from greenlet import getcurrent

    return getcurrent()
