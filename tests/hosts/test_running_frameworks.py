"""The application in docs/bottle.md, run without a change."""

from __future__ import annotations

from pathlib import Path

from page_parts import block_of
from program_parts import program, tag_in

from pgbus_gevent.bus import Bus
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient


def test_the_application_in_the_documentation_runs_unchanged(
    tmp_path: Path, pgbus_settings: Settings, pgbus_bus: Bus
) -> None:
    (tmp_path / "shop.py").write_text(block_of("docs/bottle.md", "application"))
    with program("shop.py", database_url=str(pgbus_settings.database_url), cwd=tmp_path) as shop:
        page = shop.page()
        assert shop.post("/orders", item="tea").status == 204
        path, since = tag_in(page)
        with StreamClient(shop.url, path, since=since) as client:
            assert client.next().data == "tea"
            id = pgbus_bus.stream("orders").broadcast("from elsewhere")
            frame = client.next()
            assert (frame.id, frame.data) == (str(id), "from elsewhere")
            assert tag_in(shop.page()) == (path, id)
            assert shop.stop() == 0
            client.next("pgbus:shutdown")
