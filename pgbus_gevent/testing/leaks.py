"""Finds what a test leaves behind in its process: greenlets, native threads, descriptors. :mod:`.databases` finds sessions."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import sleep
from types import FrameType
from typing import Any, TypeVar
from weakref import WeakSet

T = TypeVar("T")

SETTLE = 10.0
"""Seconds that things get to end by themselves. A session ends in the server, which a busy machine may hold up."""

_DESCRIPTORS = "/proc/self/fd"
# Event loops open these when they first need them. A leaked loop is found by its thread or greenlet.
_HARMLESS = ("anon_inode:", "/dev/null", "/dev/urandom", "/dev/pts", "/dev/tty")

database_peers: set[str] = set()
"""The addresses of database servers. Sockets to them are not reported, because :mod:`.databases` checks the sessions on the test's
own database, and a pool that outlives the test may open others at any time."""


class Before:
    """A record of what exists before a test. :meth:`left` names what has been added and has not ended."""

    def __init__(self) -> None:
        self._descriptors = descriptors()
        self._threads = set(threads())
        self._greenlets: WeakSet[Any] = WeakSet()
        self._stop_watching = _watch_greenlets(self._greenlets.add)

    @contextmanager
    def allowing(self) -> Iterator[None]:
        """Ignore what is added in this block, which sets up a fixture of a wider scope in the middle of a test."""
        had_descriptors, had_threads, had_greenlets = descriptors(), set(threads()), set(self._greenlets)
        yield
        self._descriptors |= dict(descriptors().items() - had_descriptors.items())
        self._threads |= threads().keys() - had_threads
        for greenlet in set(self._greenlets) - had_greenlets:
            self._greenlets.discard(greenlet)

    def left(self) -> list[str]:
        """Return one line for each. Waits up to :data:`SETTLE` seconds until there is nothing left."""
        try:
            return settled(self._left)
        finally:
            self.close()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._stop_watching()
        self._stop_watching = lambda: None

    def _left(self) -> list[str]:
        found = [_name_greenlet(one) for one in list(self._greenlets) if not one.dead]
        found += [_name_thread(number, frame) for number, frame in threads().items() if number not in self._threads]
        for number, target in descriptors().items():
            if self._descriptors.get(number) != target and not target.startswith(_HARMLESS):
                name, peer = _name_descriptor(number, target)
                if peer not in database_peers:
                    found.append(f"descriptor {number}: {name}")
        return found


def settled(look: Callable[[], list[T]]) -> list[T]:
    """Call ``look`` until it finds nothing, and return its last result. Collects garbage.

    Pauses between two calls for :data:`SETTLE` seconds at most, all in all. The clock is not asked: if the process stands still,
    as on a busy machine, nothing gets to end meanwhile.
    """
    left, pause = SETTLE, 0.001
    while (found := look()) and left > 0:
        sleep(pause)  # in a patched process, this lets other greenlets run
        if pause > 0.01:
            gc.collect()
        left -= pause
        pause = min(pause * 2, 0.25)
    return found


def descriptors() -> dict[int, str]:
    """Return the target of each descriptor of this process. Empty if the system has no ``/proc``."""
    found = {}
    try:
        numbers = os.listdir(_DESCRIPTORS)
    except OSError:
        return {}
    for number in numbers:
        try:
            found[int(number)] = os.readlink(f"{_DESCRIPTORS}/{number}")
        except OSError:
            pass  # the descriptor with which listdir() read the directory
    return found


def threads() -> dict[int, FrameType]:
    """Return the frames of the native threads that run Python, by thread id, without those of gevent's thread pools."""
    pooled = os.path.join("gevent", "threadpool.py")
    found = sys._current_frames().items()
    return {number: frame for number, frame in found if not _outermost(frame).f_code.co_filename.endswith(pooled)}


def _outermost(frame: FrameType) -> FrameType:
    while frame.f_back is not None:
        frame = frame.f_back
    return frame


def _watch_greenlets(spawned: Callable[[Any], Any]) -> Callable[[], None]:
    """Call ``spawned`` with each greenlet that is started from now on. Returns a function that ends this."""
    if "gevent" not in sys.modules:
        return lambda: None
    from gevent.greenlet import Greenlet

    Greenlet.add_spawn_callback(spawned)
    return lambda: Greenlet.remove_spawn_callback(spawned)


def _name_greenlet(greenlet: Any) -> str:
    function = getattr(greenlet, "_run", None)
    name = getattr(function, "__qualname__", None) or type(greenlet).__name__
    spawned = place(getattr(greenlet, "spawning_stack", None))
    now = place(greenlet.gr_frame)
    return (
        f"greenlet {greenlet.name!r} running {name}"
        + (spawned and f", spawned at {spawned}")
        + (now and f", now at {now}")
    )


def place(frame: Any) -> str:
    """Return ``file:line`` of the innermost frame outside gevent, or an empty string."""
    while frame is not None:
        filename = frame.f_code.co_filename
        if f"{os.sep}gevent{os.sep}" not in filename and not filename.startswith("src/gevent"):
            return f"{filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _name_thread(number: int, frame: FrameType) -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    code = frame.f_code
    return f"thread {names.get(number, hex(number))!r}, now in {code.co_name} at {code.co_filename}:{frame.f_lineno}"


def peer_of(number: int) -> str:
    """Return the address to which a socket is connected, or "nowhere"."""
    with socket.socket(fileno=os.dup(number)) as found:
        return _address(found.getpeername)


def _name_descriptor(number: int, target: str) -> tuple[str, str]:
    if not target.startswith("socket:"):
        return target, "nowhere"
    try:
        with socket.socket(fileno=os.dup(number)) as found:
            peer = _address(found.getpeername)
            return f"{target} {_address(found.getsockname)} -> {peer}", peer
    except OSError:
        return target, "nowhere"


def _address(get: Callable[[], Any]) -> str:
    try:
        found = get()
    except OSError:
        return "nowhere"
    return ":".join(map(str, found[:2])) if isinstance(found, tuple) else (str(found) or "unnamed")
