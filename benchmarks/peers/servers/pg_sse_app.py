"""The application of pg-sse, after the example of its README. It runs in the peers' environment."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import psycopg
import uvicorn
from pg_sse import Event, Hub, IntCursor, trigger_sql
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

TABLE = """
create table messages (id bigserial primary key, room text not null, body text not null);
create index on messages (room, id);
"""


def main() -> None:
    """Make the table, or serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    if arguments.prepare:
        with psycopg.connect(arguments.database_url) as connection:
            connection.execute(TABLE)
            connection.execute(
                trigger_sql("messages", key_column="room", channel="room_change", order_column="id", on=("insert",))
            )
        return
    app = make_app(arguments.database_url)
    uvicorn.run(
        app, host="127.0.0.1", port=arguments.port, log_level="warning", access_log=False, timeout_graceful_shutdown=2
    )


def make_app(url: str) -> Starlette:
    """Return the application."""
    hub = Hub(url, channel="room_change")
    check = AsyncConnectionPool.check_connection
    pool = AsyncConnectionPool(url, min_size=2, max_size=8, open=False, check=check, kwargs={"autocommit": True})
    cursors = IntCursor()

    async def read_after(room: str, after: int) -> list[Event]:
        async with pool.connection() as connection:
            rows = await connection.execute(
                "select id, body from messages where room = %s and id > %s order by id limit 500", (room, after)
            )
            return [Event(body, id=id) for id, body in await rows.fetchall()]

    async def latest_id(room: str) -> int:
        async with pool.connection() as connection:
            rows = await connection.execute("select coalesce(max(id), 0) from messages where room = %s", (room,))
            found = await rows.fetchone()
            return int(found[0]) if found else 0

    async def stream(request: Request) -> Response:
        room = request.path_params["room"]
        cursor = cursors.parse_one(request.headers.get("last-event-id"))

        async def read(after: int) -> list[Event]:
            return await read_after(room, after)

        async def start() -> int:
            return await latest_id(room)

        return hub.sse(room, read=read, cursor=cursor, start=start)

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> Any:
        async with pool, hub.lifespan(app):
            yield

    return Starlette(routes=[Route("/rooms/{room}", stream)], lifespan=lifespan)


if __name__ == "__main__":
    main()
