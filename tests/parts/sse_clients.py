"""Event-stream clients from PyPI, used as their manuals say: ``python sse_clients.py LIBRARY URL CUTS`` opens URL&cut=0,
URL&cut=1 … and prints each event as a line of JSON. It runs without gevent, as most users of these libraries do."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import site
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

Take = Callable[[Any, Any, Any], None]


def resuming(read: Callable[[str, dict[str, str]], Iterator[Any]]) -> Callable[[str, Take], None]:
    """Reconnect for libraries that leave this to the program. ``read`` yields the events of one connection."""

    def run(url: str, take: Take) -> None:
        last_id, retry = "", 3.0
        while True:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
            try:
                for event in read(url, headers):
                    last_id = event.id or last_id
                    retry = int(event.retry) / 1000 if event.retry else retry
                    take(event.event, event.data, event.id)
            except Exception as error:
                print(f"cut: {error!r}", file=sys.stderr)
            time.sleep(retry)

    return run


def sseclient_py(url: str, headers: dict[str, str]) -> Iterator[Any]:
    import requests
    import sseclient

    return iter(sseclient.SSEClient(requests.get(url, headers=headers, stream=True)).events())


def sseclient_py_over_urllib3(url: str, headers: dict[str, str]) -> Iterator[Any]:
    import sseclient
    import urllib3

    response = urllib3.PoolManager(retries=False).request("GET", url, headers=headers, preload_content=False)
    return iter(sseclient.SSEClient(response).events())


def httpx_sse(url: str, headers: dict[str, str]) -> Iterator[Any]:
    from httpx_sse import connect_sse

    with connect_sse(_httpx_client(), "GET", url, headers=headers) as source:
        yield from source.iter_sse()


@lru_cache
def _httpx_client() -> Any:
    import httpx

    return httpx.Client(
        timeout=None, limits=httpx.Limits()
    )  # without a limit, and shared, because making one takes long


def sseclient(url: str, take: Take) -> None:
    # Its module has the name of sseclient-py's package, which wins an import.
    path = next(found for place in site.getsitepackages() if (found := Path(place, "sseclient.py")).exists())
    spec = importlib.util.spec_from_file_location("sseclient_module", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.print = lambda *_: None  # type: ignore[attr-defined]
    for event in module.SSEClient(url):
        take(event.event, event.data, event.id)


def requests_sse(url: str, take: Take) -> None:
    from requests_sse import EventSource

    last_id = ""
    while True:
        try:
            with EventSource(url, latest_event_id=last_id or None) as source:
                for event in source:
                    last_id = event.last_event_id or last_id
                    take(event.type, event.data, event.last_event_id)
        except Exception as error:
            print(f"cut: {error!r}", file=sys.stderr)


def launchdarkly(url: str, take: Take) -> None:
    from ld_eventsource import SSEClient
    from ld_eventsource.config import ConnectStrategy, ErrorStrategy

    strategy = ErrorStrategy.always_continue()
    for event in SSEClient(ConnectStrategy.http(url), error_strategy=strategy).events:
        take(event.event, event.data, event.last_event_id)


async def aiohttp_sse_client(url: str, take: Take) -> None:
    from aiohttp_sse_client.client import EventSource

    last_id = ""
    while True:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        try:
            async with EventSource(url, headers=headers) as source:
                async for event in source:
                    last_id = event.last_event_id or last_id
                    take(event.type or "message", event.data, event.last_event_id)
        except Exception as error:
            print(f"cut: {error!r}", file=sys.stderr)
        await asyncio.sleep(source._reconnection_time.total_seconds())


LIBRARIES: dict[str, Callable[[str, Take], Any]] = {
    "sseclient-py": resuming(sseclient_py),
    "sseclient-py over urllib3": resuming(sseclient_py_over_urllib3),
    "httpx-sse": resuming(httpx_sse),
    "sseclient": sseclient,
    "requests-sse": requests_sse,
    "launchdarkly-eventsource": launchdarkly,
    "aiohttp-sse-client": aiohttp_sse_client,
}


def main(library: str, url: str, cuts: int) -> None:
    def taking(cut: int) -> Take:
        def take(event: Any, data: Any, id: Any) -> None:
            line = {"cut": cut, "event": event or "message", "data": data, "id": str(id or "")}
            os.write(1, json.dumps(line).encode() + b"\n")

        return take

    async def all_of_them() -> None:
        await asyncio.gather(*(LIBRARIES[library](f"{url}&cut={cut}", taking(cut)) for cut in range(cuts)))

    if asyncio.iscoroutinefunction(LIBRARIES[library]):
        threading.Thread(target=lambda: asyncio.run(all_of_them()), daemon=True).start()
    else:
        for cut in range(cuts):
            threading.Thread(target=LIBRARIES[library], args=(f"{url}&cut={cut}", taking(cut)), daemon=True).start()
    sys.stdin.read()  # until the test has seen enough
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
