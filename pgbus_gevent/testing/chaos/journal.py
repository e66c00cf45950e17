"""What the programs of a run write down, and the conductor reads: the journal of the publishers and the histories of the clients.

Times are those of CLOCK_MONOTONIC, in seconds, which all processes of a machine share, and which no change of the wall clock moves.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO


class Attempt(NamedTuple):
    """What a publisher tried: one message.

    ``outcome`` is ``committed``, ``rolled back`` or ``unknown``. ``message`` is the number that is in its data, and ``sent`` is
    when the statement that commits began.
    """

    message: int
    stream: str
    kind: str
    sent: float
    outcome: str


class Journal:
    """The publishers' file: one line for each attempt."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("a", buffering=1)

    def write(self, attempt: Attempt) -> None:
        """Append a line."""
        self._file.write(json.dumps(attempt) + "\n")


def read_journal(path: Path) -> Iterator[Attempt]:
    """Return all attempts in the file. A last line that was cut is left out."""
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                yield Attempt(*json.loads(line))


class Mark(NamedTuple):
    """Something that a client was told, other than a message: ``at`` messages had come before, and it came at ``time``.

    ``what`` is ``connected``, ``gap``, ``told`` (a control event), ``status`` (a refusal) or ``cut`` (the end of a connection).
    """

    at: int
    time: float
    what: str
    data: dict[str, Any]


class History:
    """Everything that one client was sent for one stream."""

    def __init__(self, client: int, user: int, stream: str) -> None:
        self.client, self.user, self.stream = client, user, stream
        self.ids, self.messages = array("q"), array("q")
        self.sent, self.received = array("d"), array("d")
        self.marks: list[Mark] = []
        self.ephemerals: list[tuple[int, float, float]] = []

    def message(self, id: int, message: int, sent: float, received: float) -> None:
        """Add a stored message: its id, the number in its data, when it was sent and when it came."""
        self.ids.append(id)
        self.messages.append(message)
        self.sent.append(sent)
        self.received.append(received)

    def mark(self, time: float, what: str, **data: Any) -> None:
        """Add something else."""
        self.marks.append(Mark(len(self.ids), time, what, data))

    def settle(self) -> None:
        """Add what was held back, which only a faulty client does."""

    def dump(self, file: TextIO) -> None:
        """Write one line."""
        arrays = [list(self.ids), list(self.messages), [round(t, 4) for t in self.sent]]
        received = [round(t, 4) for t in self.received]
        head = [self.client, self.user, self.stream]
        file.write(json.dumps([*head, *arrays, received, self.marks, self.ephemerals]) + "\n")


def read_histories(path: Path) -> Iterator[History]:
    """Return the histories in a file."""
    with path.open() as file:
        for line in file:
            client, user, stream, ids, messages, sent, received, marks, ephemerals = json.loads(line)
            history = History(client, user, stream)
            history.ids, history.messages = array("q", ids), array("q", messages)
            history.sent, history.received = array("d", sent), array("d", received)
            history.marks = [Mark(*mark) for mark in marks]
            history.ephemerals = [tuple(one) for one in ephemerals]
            yield history


def payload_of(data: str) -> tuple[int, float]:
    """Return the number and the time that a message has in its data: two words, or the row of a watched table."""
    if data.startswith("{"):
        row = json.loads(data)
        row = row["new"] or row["old"]
        return int(row["message"]), float(row["sent"])
    message, sent = data.split()[:2]
    return int(message), float(sent)
