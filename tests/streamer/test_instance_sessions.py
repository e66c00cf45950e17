"""The sessions of a worker: when the work is over, it returns to one session of the pool."""

from __future__ import annotations

import gevent
import pytest
from database_parts import opened_sessions
from support import serving, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.database import pool
from pgbus_gevent.settings.table import Settings

OF_THE_POOL = (
    "select count(*) from pg_stat_activity where application_name = 'pgbus-pool' and datname = current_database()"
)


def test_after_a_burst_a_worker_returns_to_one_session_of_the_pool(
    pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "KEPT", 600.0)
    with opened_sessions(pgbus_database) as opener, serving(pgbus_settings) as server:
        sql = opener()
        server.live("orders")
        pgbus_bus.close()  # its sessions have the same name
        held = [gevent.spawn(server.instance.database.queries.last_id, "orders") for _ in range(20)]
        gevent.joinall(held, timeout=10, raise_error=True)
        assert sql.one(OF_THE_POOL) > 1
        monkeypatch.setattr(pool, "KEPT", 1.0)  # not before they are counted
        until(lambda: sql.one(OF_THE_POOL) == 1, "it closes the others")
        assert server.instance.alive
