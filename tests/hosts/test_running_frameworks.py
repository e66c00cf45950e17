"""The applications in docs/frameworks.md and docs/bottle.md, run without a change."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_parts import block_of
from program_parts import program, tag_in
from raw_http import ask

from pgbus_gevent.bus import Bus
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient

PROGRAMS = {
    "Flask": block_of("docs/frameworks.md", "flask"),
    "Django": block_of("docs/frameworks.md", "django"),
    "Bottle": block_of("docs/bottle.md", "application"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_application_in_the_documentation_runs_unchanged(
    name: str, tmp_path: Path, pgbus_settings: Settings, pgbus_bus: Bus
) -> None:
    (tmp_path / "shop.py").write_text(PROGRAMS[name])
    with program("shop.py", database_url=str(pgbus_settings.database_url), cwd=tmp_path) as shop:
        answer = shop.get("/")
        assert answer.status == 200, answer
        page = answer.body.decode()
        cookie = {"Cookie": answer.headers.get("set-cookie", "").partition(";")[0]}
        assert shop.post("/orders").status == 204
        path, since = tag_in(page)
        with StreamClient(shop.url, path, since=since, headers=cookie) as client:
            assert client.next().data == "a new order"
            id = pgbus_bus.stream("orders").broadcast("from elsewhere")
            frame = client.next()
            assert (frame.id, frame.data) == (str(id), "from elsewhere")
            assert tag_in(shop.page()) == (path, id)
            assert shop.stop() == 0
            client.next("pgbus:shutdown")


def test_flasks_session_decides_who_may_watch(tmp_path: Path, pgbus_settings: Settings, pgbus_bus: Bus) -> None:
    (tmp_path / "shop.py").write_text(PROGRAMS["Flask"])
    with program("shop.py", database_url=str(pgbus_settings.database_url), cwd=tmp_path) as shop:
        path, _ = tag_in(shop.page())
        assert ask(shop.port, path, Accept="text/event-stream").status == 403
        assert shop.stop() == 0


def test_a_broadcast_in_djangos_transaction_goes_with_the_page_and_its_watermark(
    tmp_path: Path, pgbus_settings: Settings
) -> None:
    (tmp_path / "shop.py").write_text(PROGRAMS["Django"])
    with program("shop.py", database_url=str(pgbus_settings.database_url), cwd=tmp_path) as shop:
        assert "<h1>0 orders</h1>" in shop.page() and tag_in(shop.page())[1] == 0
        assert shop.post("/orders").status == 204
        page = shop.page()
        assert "<h1>1 orders</h1>" in page and tag_in(page)[1] > 0
