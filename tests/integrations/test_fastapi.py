"""The sample project for FastAPI: uvicorn serves the pages, and ``serve`` the streams, as the page about it says."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path

import pytest
from page_parts import block_of
from program_parts import ROOT, program
from raw_http import ask
from support import free_port, until

from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient

PROJECT = ROOT / "examples/fastapi_orders"


@pytest.mark.program
def test_the_sample_project_works_with_streams_from_another_process(tmp_path: Path, pgbus_settings: Settings) -> None:
    url = str(pgbus_settings.database_url)
    serve = shlex.split(block_of("examples/fastapi_orders/README.md", "streams"))
    uvicorn = shlex.split(block_of("examples/fastapi_orders/README.md", "application"))
    assert serve[:5] == ["pgbus-gevent", "serve", "--no-demo", "--port", "8081"]
    assert uvicorn == ["STREAMS=http://127.0.0.1:8081", "uvicorn", "--port", "8080", "shop:app"]
    origin, port = serve[serve.index("--cors-origin") + 1], free_port()
    with program("-m", "pgbus_gevent", "serve", "--no-demo", *serve[5:], database_url=url, cwd=tmp_path) as streams:
        environ = {"PYTHONPATH": f"{ROOT}:{PROJECT}", "STREAMS": streams.url}
        command = ["-m", "uvicorn", "--port", str(port), "shop:app"]
        with program(*command, database_url=url, cwd=tmp_path, port=port, **environ) as shop:
            page = shop.page()
            source, since = re.findall(r'src="([^"]+)" since-id="(\d+)"', page)[0]
            address = html.unescape(source)
            assert address.startswith(f"{streams.url}/pgbus/streams/") and since == "0"
            path = address.removeprefix(streams.url)
            assert ask(streams.port, path, "HEAD", Origin=origin).headers["access-control-allow-origin"] == origin
            with StreamClient(streams.url, path, since=0) as client:
                for item in ("tea", "<b>milk</b>", "tea"):
                    given = ask(
                        shop.port, "/orders", "POST", json.dumps({"item": item}), Content_Type="application/json"
                    )
                    assert given.status == 204
                assert [client.next("order").data for _ in range(3)] == ["tea", "<b>milk</b>", "tea"]
                newest = client.frames[-1].id
            assert "<li>tea</li><li>&lt;b&gt;milk" in shop.page() and f'since-id="{newest}"' in shop.page()
            counted = until(
                lambda: (found := json.loads(shop.get("/popular").body)) and sum(n for _, n in found) == 3 and found,
                "the task that follows the stream has counted",
            )
            assert counted[0] == ["tea", 2]
            assert shop.stop() in (0, -15) and "Traceback" not in shop.log
        assert streams.stop() == 0
