"""Puts the tap of an edge on the board, and takes it off, as :meth:`Board.join` and :meth:`Board.leave` do with a client."""

from __future__ import annotations

from collections.abc import Mapping

from .board import Board
from .taps import Tap


def join(board: Board, tap: Tap, streams: Mapping[str, int | None]) -> None:
    """Have an edge's tap follow the streams, each from the edge's cursor, as if it were a client of them."""
    logs = {board.registry.hold(name): cursor for name, cursor in streams.items()}
    board.taps.add(tap, logs)
    for log in logs:
        if not log.is_open:
            board.look(log)


def leave(board: Board, tap: Tap) -> None:
    """Take a tap off the board, unless it is off already."""
    for log in board.taps.remove(tap):
        board.registry.release(log.name)
        board.forget(log)
