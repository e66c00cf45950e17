"""The bus for asyncio, on psycopg 3: to publish, to render pages with watermarks, and to follow streams.

::

    from pgbus_gevent.aio import Bus

    async with Bus() as bus:
        orders = bus.stream("orders")
        await orders.broadcast("paid", event="order.paid")
        async for message in orders.tail(replay=10):
            print(message.id, message.data)

It needs the extra ``aio`` and imports no gevent, so it runs under any event loop of asyncio. It sends nothing to browsers:
``pgbus-gevent serve`` serves the streams, from the same database and with the same secret.
"""

from __future__ import annotations

try:
    import psycopg_pool  # noqa: F401 # only to see whether it is there, with the psycopg that it imports
except ImportError as error:
    raise ImportError(
        f"pgbus_gevent.aio needs psycopg 3 and its pool: pip install 'pgbus-gevent[aio]' 'psycopg[binary]' ({error})"
    ) from error

from ..core.table_tail import Gap
from ..errors import GapDetected
from .bus import Bus, Stream
from .tail import Tail

__all__ = ["Bus", "Gap", "GapDetected", "Stream", "Tail"]
