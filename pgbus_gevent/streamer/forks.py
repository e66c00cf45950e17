"""What a child process must not do in its parent's place.

Between fork and exec, and for as long as a child that runs no program lives, it has all sockets of its parent. If anything yields
there, gevent's event loop runs, and with it whatever waits in the parent: a message that waits for the dispatcher at that moment
would be sent by both processes, and the child would take answers of the database from the parent. What yields may be an at-fork
hook, such as that of OpenTelemetry's exporter, which starts a thread in each child.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from types import FrameType
from typing import Any
from weakref import WeakSet

from gevent.hub import Hub, get_hub, set_hub  # type: ignore[attr-defined]  # the stubs do not know set_hub

running: WeakSet[Any] = WeakSet()
"""The tasks of this process that run. Without any, a child is left alone."""

_STARTS_A_PROGRAM = "gevent.subprocess", "_execute_child"
"""The function in which a child goes on to its program. A child that was forked elsewhere takes longer to be made harmless."""

_kept: list[Any] = []  # if the parent's greenlets were freed in a child, their `finally` blocks would run there


def _leave_to_the_parent() -> None:
    """In a child process, forget all that the parent waits for."""
    if not running:
        return
    running.clear()
    if _is_to_run_a_program():
        # Quick, and enough until then. It is not the default loop of libev, so the child cannot start children.
        set_hub(Hub(default=False))
    else:
        _forget(get_hub().loop)


def _is_to_run_a_program() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None and (frame.f_globals.get("__name__"), frame.f_code.co_name) != _STARTS_A_PROGRAM:
        frame = frame.f_back
    return frame is not None


def _forget(loop: Any) -> None:
    """Stop all watchers and all callbacks of ``loop``, those that are due now too, except the watchers of forks.

    What the child starts from now on works as usual: the hub and the loop are the same, so it may use what it has inherited.
    """
    loop.reinit()  # so that the kernel's object behind the loop is not the parent's any more
    fork, callback = type(loop.fork()), type(loop.run_callback(id, 0))
    *_, watcher, _ = fork.__mro__
    own = getattr(loop, "_threadsafe_async", None)  # for callbacks from other threads; libev's own loop has none
    gc.unfreeze()  # get_objects() leaves out what is frozen
    for each in gc.get_objects():
        kind = type(each)  # isinstance() asks some objects of applications, such as proxies
        its = issubclass(kind, watcher) and not issubclass(kind, fork) and each.loop is loop and each is not own
        if its or issubclass(kind, callback):
            _kept.append((each.callback, each.args))
            each.stop()


class _First(logging.Handler):
    """Handles no records. The module logging, which is imported before others, tells all handlers of a fork.

    Children call what was registered in its order, and an application may register what yields before it imports this module.
    """

    def __init__(self) -> None:
        # Not that of a handler, which would have it ended at the exit, when gevent may be gone already.
        self.createLock()

    def _at_fork_reinit(self) -> None:
        super()._at_fork_reinit()  # type: ignore[misc]  # the stubs do not know it
        try:
            _leave_to_the_parent()
        except Exception:
            traceback.print_exc()  # raised here, it would leave the locks of logging as they were


_first = _First()
os.register_at_fork(after_in_child=_leave_to_the_parent)  # if logging does not do so any more
