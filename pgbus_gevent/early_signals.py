"""Signals that are no order to a server, from its first moment on: imported before everything else, so it imports nothing."""

from __future__ import annotations

import signal

NO_ORDER = signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
"""They would end the process by default, and nobody who sends one means that."""


def hold() -> None:
    """Let none of them end this process while it loads; who has one ignored, as under nohup, or handles one, is left alone.

    A handler, and not SIG_IGN, which the programs that this one starts would inherit.
    """
    for number in NO_ORDER:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _nothing)


def untaken(number: int) -> bool:
    """Whether nobody but :func:`hold` has a wish about this signal."""
    return signal.getsignal(number) in (signal.SIG_DFL, _nothing)


def ignored_to_the_end(number: int) -> bool:
    """Whether :func:`hold` has this signal, which then is ignored until the process is gone: Python takes handlers away before."""
    held = signal.getsignal(number) is _nothing
    if held:
        signal.signal(number, signal.SIG_IGN)
    return held


def _nothing(number: int, frame: object) -> None:
    pass
