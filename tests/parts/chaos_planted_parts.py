"""A run of chaos with a broken product: ``python -m chaos_planted_parts run ARGUMENTS``, with the arguments of the program itself.

The second server damages messages when it encodes them. The line to the first one loses messages, and swaps them. Each such deed
is noted in the file that ``CHAOS_DEEDS`` names: a line with what, where and which id.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

_ROLE = sys.argv.pop(1) if __name__ == "__main__" else ""
if _ROLE == "serve":
    from pgbus_gevent import early_signals

    early_signals.hold()
    from gevent import monkey

    monkey.patch_all()

_FRAME = re.compile(rb"[0-9a-f]+\r\n(?:event: .*\n)?data: .*\nid: (\d+)\n\n\r\n")
"""An HTTP chunk with one stored message of one stream."""


def note(what: str, where: str, id: int) -> None:
    """Note a deed. One write appends a whole line, also if several processes write."""
    with open(os.environ["CHAOS_DEEDS"], "a", encoding="utf-8") as file:
        file.write(f"{what},{where},{id}\n")


def damaged(row: Any, frame: Any) -> Any:
    """Return the frame as the second server sends it."""
    kind = row.id % 29
    if frame.visible_to is not None:
        if kind > 5:
            return frame
        note("forbidden", "server", row.id)
        return frame._replace(visible_to=None)
    if kind == 1:
        note("lost", "server", row.id)
        return frame._replace(data=b":\nid: %d\n\n" % row.id)  # the client takes the id, and gets no data
    if kind == 2:
        note("repeated", "server", row.id)
        return frame._replace(data=frame.data * 2)
    return frame


def serve() -> int:
    """Serve like ``pgbus-gevent``, with damaged messages."""
    from pgbus_gevent.commands.main import main
    from pgbus_gevent.core import replay, stream_log

    encode = stream_log.encode
    for module in (stream_log, replay):
        module.encode = lambda row: damaged(row, encode(row))  # type: ignore[attr-defined]
    return main()


class Lossy:
    """What the line to the first server reads from it, without every 20th message, and with some of the others swapped."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._count = 0
        self._held = b""
        self._held_id = 0

    async def read(self, size: int) -> bytes:
        """Read as a StreamReader does."""
        while True:
            data: bytes = await self._reader.read(size)
            held, self._held = self._held, b""
            found = _FRAME.fullmatch(data)
            if found is None:
                return held + data
            self._count += 1
            if held:
                # A client that is cut off now comes back with the older cursor, and gets the newer message again.
                note("out of order", "line", self._held_id)
                note("out of order", "line", int(found[1]))
                return data + held
            if self._count % 20 == 10:
                self._held, self._held_id = data, int(found[1])
            elif self._count % 20 == 0:
                note("lost", "line", int(found[1]))
            else:
                return data


def lines() -> int:
    """Be the program of the lines, of which one is lossy."""
    import asyncio

    from pgbus_gevent.testing.chaos import lines as program

    pump = program._Pair.pump
    names: dict[Any, str] = {}

    async def do(self: Any, command: dict[str, Any]) -> None:
        await honest_do(self, command)
        names.update({line: name for name, line in self._lines.items()})

    async def lossy_pump(self: Any, reader: Any, writer: Any) -> None:
        to_client = writer is self.writer and names[self.line] == "clients-one"
        await pump(self, Lossy(reader) if to_client else reader, writer)

    honest_do = program._Exchange.do
    program._Exchange.do = do  # type: ignore[method-assign]
    program._Pair.pump = lossy_pump  # type: ignore[method-assign]
    asyncio.run(program.main())
    return 0


def run() -> int:
    """Run chaos, with these two programs in the places of the right ones."""
    from pgbus_gevent.testing.chaos import conductor
    from pgbus_gevent.testing.chaos.__main__ import main
    from pgbus_gevent.testing.chaos.parts import Parts

    python = Parts.python
    roles = {"worker-two": serve, "lines": lines}

    def planted(self: Parts, name: str, module: str, *arguments: str, **options: Any) -> Any:
        if role := roles.get(name):
            return python(self, name, "chaos_planted_parts", role.__name__, *arguments, **options)
        return python(self, name, module, *arguments, **options)

    Parts.python = planted  # type: ignore[method-assign]
    conductor._LONG_REST = 3.0  # ephemeral messages are not damaged
    return main()


if __name__ == "__main__":
    sys.exit({"run": run, "serve": serve, "lines": lines}[_ROLE]())
