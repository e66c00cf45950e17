"""Every part of an Instance can be replaced by one of the same make."""

from __future__ import annotations

from typing import Any

import pytest

from pgbus_gevent import Bus, Settings, StreamApp, streamer
from pgbus_gevent.core.client import Place, StreamRequest
from pgbus_gevent.core.registry import Registry
from pgbus_gevent.streamer.body_connection import BodyConnection
from pgbus_gevent.streamer.catch_up import CatchUp
from pgbus_gevent.streamer.connection import Connection
from pgbus_gevent.streamer.dispatcher import StreamEventDispatcher
from pgbus_gevent.streamer.ephemerals import Ephemerals
from pgbus_gevent.streamer.heartbeat import Heartbeat
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.streamer.listener import Listener
from pgbus_gevent.streamer.reader import Reader
from pgbus_gevent.streamer.routing import WakeRouter
from pgbus_gevent.testing import StreamClient
from pgbus_gevent.testing.client import stream_path
from pgbus_gevent.testing.servers import RunningServer

PARTS: dict[str, type] = {
    "registry": Registry,
    "router": WakeRouter,
    "listener": Listener,
    "dispatcher": StreamEventDispatcher,
    "reader": Reader,
    "catch_up": CatchUp,
    "heartbeat": Heartbeat,
    "ephemerals": Ephemerals,
    "connection": Connection,
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_ones_own_takes_the_place_of_the_instances(
    part: str, pgbus_settings: Settings, pgbus_bus: Bus
) -> None:
    made: list[Any] = []

    class Own(PARTS[part]):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    instance = Instance(pgbus_settings, **{part: Own}).start()
    server = RunningServer(StreamApp(instance), pgbus_settings.prefix)
    try:
        with StreamClient(server.url, stream_path(pgbus_settings.prefix, "orders")) as client:
            client.next("pgbus:connected")
            pgbus_bus.stream("orders").broadcast("paid")
            assert client.next().data == "paid"
    finally:
        server.stop()
        instance.shutdown()
    assert len(made) == 1


def test_a_body_connection_of_ones_own_is_used_without_a_socket(pgbus_settings: Settings) -> None:
    class Own(BodyConnection):
        pass

    instance = Instance(pgbus_settings, body_connection=Own).start()
    try:
        body = instance.body(StreamRequest((Place("orders"),)))
        assert isinstance(body, Own)
        assert b"pgbus:connected" in next(body)
        body.close()
    finally:
        instance.shutdown()


def test_a_throwaway_instance_leaves_the_processs_own_alone(pgbus_settings: Settings) -> None:
    streamer.reset()
    own = streamer.current(settings=pgbus_settings)
    try:
        other = Instance(pgbus_settings).start()
        other.shutdown()
        assert streamer.current() is own
        assert own.alive
    finally:
        streamer.reset()
