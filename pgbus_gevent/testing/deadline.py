"""The deadline of a test: ends it with every greenlet's stack, whatever it does.

Two clocks run. The kernel's timer sends SIGALRM, whose handler ends a test that waits or computes for ever, in Python. A test
that holds the process in C (two greenlets in one psycopg2 connection are enough) lets no handler run: some seconds later
faulthandler's own thread writes what every thread does and ends the process.

Nothing here imports gevent: it is there or it is not.
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
"""Seconds that the handler gets beyond the deadline before the process is ended."""


class Deadline:
    """The clocks of one process; :meth:`arm` and :meth:`disarm` them for each phase of a test."""

    def __init__(self) -> None:
        # pytest captures the descriptor 2 later on, and what is captured would be lost with the process.
        self._stderr: IO[bytes] | None = None
        with suppress(OSError):  # there may be none
            self._stderr = os.fdopen(os.dup(2), "wb")
        self._item: pytest.Item | None = None
        self._phase = ""
        self._seconds = 0.0
        self._main: Any = None
        self._before: tuple[Any, float, float] | None = None

    def arm(self, item: pytest.Item, phase: str, seconds: float) -> None:
        """Give a phase so many seconds. Another's timer that would end before is left alone."""
        self._item, self._phase, self._seconds = item, phase, seconds
        if self._stderr is not None:
            faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=self._stderr)
        if threading.current_thread() is not threading.main_thread():
            return
        if 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= seconds:
            return
        self._main = _current_greenlet()
        handler = signal.signal(signal.SIGALRM, self._expired)
        # Again and again, as what a test catches does not end it.
        left, _ = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        self._before = handler, left, monotonic()

    def disarm(self) -> None:
        """Stop the clocks, and let go on the timer that was running before. May be called again."""
        if self._item is None:
            return
        self._item = self._main = None
        faulthandler.cancel_dump_traceback_later()
        if self._before is not None:
            (handler, left, since), self._before = self._before, None
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(
                signal.SIGALRM, signal.SIG_DFL if handler is None else handler
            )  # None: one that C code has set
            if left:
                signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (monotonic() - since)))

    def close(self) -> None:
        """Give the descriptor back."""
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
        what = {"setup": "setting up", "call": "the test", "teardown": "tearing down"}[self._phase]
        failure = pytest.fail.Exception(
            f"{what} did not end within {self._seconds:g} s (pgbus_timeout); the stacks of all greenlets are below",
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
        # Another greenlet never gives way: it stays where it is, for good.
        self._main.throw(failure)


def stacks() -> str:
    """What every native thread and every greenlet does, as text.

    Not by gevent's ``format_run_info``: that shows the greenlets' locals too, which may hold secrets, and whose ``repr`` may
    raise, as that of Bottle's ``request`` does outside a request. Nothing here calls code of what it finds.
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

    # By type(): a proxy, as Werkzeug has them, runs code when it is asked for its __class__.
    found = [one for one in gc.get_objects() if issubclass(type(one), greenlet)]
    return [one for one in found if one.gr_frame is not None]  # None: dead, or not begun, or a thread's stack above


def _show_greenlet(one: Any) -> str:
    name = getattr(getattr(one, "_run", None), "__qualname__", None) or type(one).__name__
    spawned = leaks.place(getattr(one, "spawning_stack", None))
    return f"greenlet {name} at {id(one):#x}{spawned and f', spawned at {spawned}'}:\n{_stack(one.gr_frame)}"


def _current_greenlet() -> Any:
    if "gevent" not in sys.modules:
        return None
    from greenlet import getcurrent

    return getcurrent()
