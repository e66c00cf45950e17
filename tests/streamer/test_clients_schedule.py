"""The heartbeat checks a client soon if its deadline has changed."""

from __future__ import annotations

from time import time

from streamer_parts import make_board, one_stream

from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.identity import Identities
from pgbus_gevent.streamer.clients import Clients
from pgbus_gevent.streamer.limits import Limits


def test_a_client_that_was_sent_away_is_checked_until_its_last_bytes_are_sent() -> None:
    board = make_board()
    clients = Clients(board, limits=Limits(10))
    client = clients.body(one_stream("orders"))
    board.schedule.put(client, 1000.0)
    clients.end(client, "revoked")
    assert clients.lingering
    assert list(board.schedule.new) == [client]
    clients.gone(client, "finished")
    assert len(board.schedule) == 0
    assert not clients.lingering


def test_a_client_whose_right_now_ends_earlier_is_checked_soon() -> None:
    board = make_board()
    clients = Clients(board, limits=Limits(10))
    client = clients.body(one_stream("orders", expires_at=time() + 100))
    board.schedule.put(client, 1000.0)
    clients.adopt(client, [Subscriber(expires_at=time() + 200)])
    assert list(board.schedule.new) == []
    clients.adopt(client, [Subscriber(expires_at=time() + 5)])
    assert list(board.schedule.new) == [client]


def test_a_client_that_leaves_while_its_context_is_asked_is_left_alone() -> None:
    board = make_board()
    clients = Clients(board, limits=Limits(10), identities=Identities(["a secret of the test"]))

    class Slow:
        def __pgbus_identity__(self) -> str:
            clients.gone(client, "client left")  # in the greenlet that runs meanwhile
            return "ada"

    request = one_stream("orders", owner="ada", context=Slow())
    client = clients.body(request)
    clients.adopt(client, [Subscriber("bob")])
    assert client.owner == "ada" and client.closed
    assert clients.counts()[0][1] == {}
