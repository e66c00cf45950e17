"""Reads the bytes that a worker sends, as the WHATWG describes, with the place where each event ends."""

from __future__ import annotations

from typing import NamedTuple


class Event(NamedTuple):
    """An event. ``end`` is the offset behind it. ``place`` is the index of its stream, ``cursors`` are those in its id."""

    end: int
    name: str
    data: str
    cursors: tuple[int, ...]
    place: int
    is_control: bool


_CACHE: dict[bytes, list[Event]] = {}
_MOST = 4096


def read(data: bytes) -> list[Event]:
    """Return the events in ``data``, which begins at the start of an event. Many clients get the same bytes, so it is kept."""
    found = _CACHE.get(data)
    if found is None:
        found = _read(data)
        if len(_CACHE) >= _MOST:
            _CACHE.clear()
        _CACHE[data] = found
    return found


def _read(data: bytes) -> list[Event]:
    events = []
    end = 0
    for block in data.split(b"\n\n")[:-1]:
        end += len(block) + 2
        name, id, index = "", "", 0
        lines: list[str] = []
        for line in block.decode().split("\n"):
            field, _, value = line.partition(": ")
            if field == "data":
                lines.append(value)
            elif field == "event":
                name = value
            elif field == "id":
                id = value
            elif not field and value.startswith("stream "):
                index = int(value[7:])
        if lines:
            events.append(_event(end, name, "\n".join(lines), id, index))
    return events


def _event(end: int, name: str, data: str, id: str, index: int) -> Event:
    cursors: tuple[int, ...] = ()
    if "~" in id:
        first, _, rest = id.partition("~")
        index, cursors = int(first), tuple(map(int, rest.split(".")))
    elif id:
        cursors = (int(id),)
    return Event(end, name, data, cursors, index, name.startswith("pgbus:"))
