"""Clients that are pages in Chromium, with the browser's own EventSource. They pass what they get to the program of the clients.

A page is served by a worker (:mod:`.hooks`), through its line. It stays when the worker ends, and its EventSource comes
back by itself.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlencode

from .processes import ChaosFailed, Part

Batch = Sequence[tuple[str, str, str]]


def chromium(folder: Path, environment: dict[str, str], place: str, collector: str, client: int, stream: str) -> Part:
    """Return a Chromium whose page is this client. ``place`` is the URL of the worker that serves the page."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise ChaosFailed("--browsers needs Chromium")
    query = urlencode({"client": client, "stream": stream, "collector": collector})
    # A page of a loopback address may call another one.
    features = "--disable-features=BlockInsecurePrivateNetworkRequests,LocalNetworkAccessChecks"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", features]
    home = f"--user-data-dir={folder / f'chromium-{client}'}"
    log = folder / "logs" / f"chromium-{client}.log"
    return Part([program, *flags, home, f"{place}/page?{query}"], log, environment)


async def collect(port: int, take: Callable[[int, Batch], None]) -> None:
    """Serve at ``port``, and give each batch of events to ``take``, in order."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.partition("content-length:")[2].split("\r\n")[0] or 0)
                value = json.loads(await reader.readexactly(length)) if length else None
                if value:
                    take(value["client"], value["batch"])
                writer.write(b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: *\r\n\r\n")
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the browser has closed the connection
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await server.serve_forever()
