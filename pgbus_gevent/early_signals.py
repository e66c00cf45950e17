"""Signals that must not end a server: they are ignored from its first moment on.

The programs import this module before everything else, so it imports nothing of the package.
"""

from __future__ import annotations

import signal

NO_ORDER = signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
"""Signals that end a process by default, but are never sent to a server for that purpose."""


def hold() -> None:
    """Ignore the signals of ``NO_ORDER`` while this process loads.

    A signal that is already ignored (by nohup, for example) or handled stays as it is. A handler that does nothing is set, not
    SIG_IGN, because child processes would inherit SIG_IGN.
    """
    for number in NO_ORDER:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _nothing)


def untaken(number: int) -> bool:
    """Whether the signal has its default action, or only the handler of :func:`hold`."""
    return signal.getsignal(number) in (signal.SIG_DFL, _nothing)


def ignored_to_the_end(number: int) -> bool:
    """If :func:`hold` handles this signal, ignore it until the process has ended; return whether it does.

    Without this, a signal that arrives while the interpreter shuts down would end the process with the wrong status, because
    Python removes its handlers before it exits.
    """
    held = signal.getsignal(number) is _nothing
    if held:
        signal.signal(number, signal.SIG_IGN)
    return held


def _nothing(number: int, frame: object) -> None:
    pass
