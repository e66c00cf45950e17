"""A LISTEN fan-out by hand: each notification is passed on to a queue for each client. Arguments: database URL, port."""

import asyncio
import contextlib
import json
import sys

import psycopg
import uvicorn
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

queues: dict[str, set[asyncio.Queue]] = {}


async def listen(url):
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
                await connection.execute("listen feed")
                async for notification in connection.notifies():
                    stream, text = json.loads(notification.payload)
                    for queue in queues.get(stream, ()):
                        queue.put_nowait(text)
        except psycopg.OperationalError:
            await asyncio.sleep(1)


async def events(request):
    stream = request.path_params["stream"]
    queue = asyncio.Queue()
    queues.setdefault(stream, set()).add(queue)

    async def frames():
        try:
            yield ": hello\n\n"
            while True:
                yield f"data: {await queue.get()}\n\n"
        finally:
            queues[stream].discard(queue)

    return StreamingResponse(frames(), media_type="text/event-stream")


@contextlib.asynccontextmanager
async def lifespan(app):
    task = asyncio.create_task(listen(sys.argv[1]))
    yield
    task.cancel()


app = Starlette(routes=[Route("/{stream}", events)], lifespan=lifespan)
if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", timeout_graceful_shutdown=2)
