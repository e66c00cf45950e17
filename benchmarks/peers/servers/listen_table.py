"""LISTEN and a table by hand: a notification wakes the clients of a stream, which read the rows after their last id.

Arguments: database URL, port.
"""

import asyncio
import contextlib
import sys

import psycopg
import uvicorn
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

wakes: dict[str, set[asyncio.Event]] = {}
pool = AsyncConnectionPool(
    sys.argv[1], max_size=8, open=False, check=AsyncConnectionPool.check_connection, kwargs={"autocommit": True}
)


async def listen(url):
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
                await connection.execute("listen feed")
                for stream in wakes:  # what was notified while nobody listened
                    wake(stream)
                async for notification in connection.notifies():
                    wake(notification.payload)
        except psycopg.OperationalError:
            await asyncio.sleep(1)


def wake(stream):
    for event in wakes.get(stream, ()):
        event.set()


async def query(statement, *values):
    async with pool.connection() as connection:
        return await (await connection.execute(statement, values)).fetchall()


async def events(request):
    stream = request.path_params["stream"]
    last = request.headers.get("last-event-id", "")
    event = asyncio.Event()
    wakes.setdefault(stream, set()).add(event)

    async def frames():
        try:
            yield ": hello\n\n"
            newest = "select coalesce(max(id), 0) from feed where stream = %s"
            seen = int(last) if last.isdecimal() else (await query(newest, stream))[0][0]
            yield f"id: {seen}\n\n"
            while True:
                event.clear()
                rows = await query("select id, body from feed where stream = %s and id > %s order by id", stream, seen)
                for seen, body in rows:
                    yield f"id: {seen}\ndata: {body}\n\n"
                await event.wait()
        finally:
            wakes[stream].discard(event)

    return StreamingResponse(frames(), media_type="text/event-stream")


@contextlib.asynccontextmanager
async def lifespan(app):
    async with pool:
        task = asyncio.create_task(listen(sys.argv[1]))
        yield
        task.cancel()


app = Starlette(routes=[Route("/{stream}", events)], lifespan=lifespan)
if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", timeout_graceful_shutdown=2)
