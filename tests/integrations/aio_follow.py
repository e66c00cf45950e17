"""A program of asyncio that follows a stream from several cursors: ``python aio_follow.py URL STREAM LAST CURSOR…``.

It prints a line of JSON for each cursor: all that comes until the message LAST, each gap as an object and each message as its data.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from pgbus_gevent.aio import Bus


async def follow(bus: Bus, stream: str, cursor: str, last: int) -> list[Any]:
    found: list[Any] = []
    tail = bus.stream(stream).tail(since=cursor, on_gap=lambda gap: found.append(gap._asdict()))
    while True:
        message = await asyncio.wait_for(anext(tail), 30)
        found.append(message.data)
        if message.id == last:
            return found


async def main(url: str, stream: str, last: str, *cursors: str) -> None:
    async with Bus(url) as bus:
        for cursor in cursors:
            print(json.dumps(await follow(bus, stream, cursor, int(last))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
