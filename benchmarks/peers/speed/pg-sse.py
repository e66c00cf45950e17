"""Runs pg-sse in its documented setup: a table with its trigger, a Starlette route under uvicorn, reads on a connection pool."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import sys
import threading
from typing import Any

from pgbus_gevent.bench.program import answer

try:
    import psycopg
    import uvicorn
    from pg_sse import Event, Hub, IntCursor, trigger_sql
    from psycopg_pool import AsyncConnectionPool
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
except ImportError as error:
    answer(missing=f"pip install pg-sse starlette uvicorn uvloop httptools 'psycopg[binary,pool]' ({error})")
    sys.exit()

SETUP = """
create schema if not exists pgbus_bench;
drop table if exists pgbus_bench.messages;
create table pgbus_bench.messages (id bigserial primary key, room text not null, body text not null);
create index on pgbus_bench.messages (room, id);
set search_path = pgbus_bench;
"""
STATEMENT = "insert into pgbus_bench.messages (room, body) values (%(stream)s, %(data)s)"


def main() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    url = sys.argv[sys.argv.index("--database-url") + 1]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SETUP)
        connection.execute(
            trigger_sql("messages", key_column="room", channel="bench_room", order_column="id", on=("insert",))
        )
    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    port = sock.getsockname()[1]
    config = uvicorn.Config(make_app(url), log_level="warning", access_log=False, backlog=4096, lifespan="on")
    server = uvicorn.Server(config)
    threading.Thread(target=stop_at_the_end, args=(server,), daemon=True).start()
    asyncio_loop = config.get_loop_factory() if hasattr(config, "get_loop_factory") else None
    with asyncio.Runner(loop_factory=asyncio_loop) as runner:
        runner.run(serve(server, sock, port, url))


async def serve(server: Any, sock: socket.socket, port: int, url: str) -> None:
    task = asyncio.ensure_future(server.serve(sockets=[sock]))
    while not server.started and not task.done():
        await asyncio.sleep(0.05)
    answer(
        pids=[os.getpid()],
        port=port,
        path="/rooms/{stream}",
        marker="\r\n\r\n",
        way="sql",
        options={"url": url, "statement": STATEMENT},
        database=True,
    )
    await task


def stop_at_the_end(server: Any) -> None:
    sys.stdin.read()
    # Exits at once: pg-sse's streams never end by themselves, and no clients are left.
    os._exit(0)


def make_app(url: str) -> Any:
    hub = Hub(url, channel="bench_room", max_subscribers=100_000)
    pool = AsyncConnectionPool(url, min_size=4, max_size=10, open=False, kwargs={"autocommit": True})
    cursors = IntCursor()

    async def read_after(room: str, after: int) -> list[Any]:
        async with pool.connection() as connection:
            rows = await connection.execute(
                "select id, body from pgbus_bench.messages where room = %s and id > %s order by id limit 500",
                (room, after),
            )
            return [Event(body, id=id) for id, body in await rows.fetchall()]

    async def latest_id(room: str) -> int:
        async with pool.connection() as connection:
            rows = await connection.execute(
                "select coalesce(max(id), 0) from pgbus_bench.messages where room = %s", (room,)
            )
            found = await rows.fetchone()
            return int(found[0]) if found else 0

    async def stream(request: Request) -> Response:
        room = request.path_params["room"]
        cursor = cursors.parse_one(request.headers.get("last-event-id"))

        async def read(after: int) -> list[Any]:
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
