"""Tests of an application that broadcasts, the shop of bottle_orders.py, with the fixtures of pgbus_gevent.

    python -m pytest -p pgbus_gevent.testing.patch examples/test_bottle_orders.py

The option patches the process for gevent before other imports. In your own project, put it into addopts.
"""

import html
import importlib
import json
import re
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import bottle
import pytest

from pgbus_gevent.testing import FakeBus

SECRET = "a secret for the tests of the shop"


@pytest.fixture
def shop(pgbus_database, monkeypatch):
    """The application on the test's database, imported anew for each test."""
    monkeypatch.setenv("PGBUS_DATABASE_URL", pgbus_database)
    monkeypatch.setenv("PGBUS_SECRET", SECRET)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.delitem(sys.modules, "bottle_orders", raising=False)
    module = importlib.import_module("bottle_orders")
    yield module
    module.app.close()


@pytest.fixture
def site(shop, pgbus_server):
    """The shop on a real server."""
    pgbus_server.app = shop.app
    return pgbus_server


def order(site, item):
    """Order something, as the form on the page does."""
    with urlopen(f"{site.url}/orders", urlencode({"item": item}).encode()) as answer:
        assert answer.url == f"{site.url}/"


def open_page(site):
    """Open the page. Returns its HTML, the signed name of its stream, and its watermark."""
    with urlopen(site.url) as answer:
        page = html.unescape(answer.read().decode())
    name, since = re.search(r'src="/pgbus/streams/([^"]+)" since-id="(\d+)"', page).groups()
    return page, name, int(since)


def test_the_page_is_born_stale(site, pgbus_client):
    """A change between the page and its connection is neither missed nor seen twice."""
    order(site, "a bicycle")
    page, stream, since = open_page(site)
    assert "a bicycle" in page

    order(site, "a bell")  # while the page is loading
    tab = pgbus_client(stream, since=since)

    assert json.loads(tab.next(event="order").data)["item"] == "a bell"
    assert tab.quiet(0.2)


def test_a_laptop_that_was_closed(site, pgbus_client):
    """A tab gets what it missed, in order, as soon as it is back."""
    _, stream, since = open_page(site)
    tab = pgbus_client(stream, since=since)
    tab.next(event="pgbus:connected")
    tab.drop()
    for item in ("one", "two", "three"):
        order(site, item)
    tab.resume()
    assert [json.loads(tab.next().data)["item"] for _ in range(3)] == ["one", "two", "three"]
    assert tab.quiet(0.2)


def test_one_change_one_message(site, assert_broadcasts):
    """Each request broadcasts one message, and a refused request broadcasts none."""
    with assert_broadcasts("orders", 2) as messages:
        order(site, "a bicycle")
        urlopen(f"{site.url}/orders/1/pay", b"").close()
    assert [json.loads(message.data)["state"] for message in messages] == ["open", "paid"]

    with assert_broadcasts("orders", 0), pytest.raises(HTTPError, match="404"):
        urlopen(f"{site.url}/orders/7/pay", b"")


def test_a_change_by_itself(shop):
    """A unit test without server or stream: the fake bus records the messages."""
    bus = FakeBus()
    bus.answers.append([('{"id": 7, "state": "paid"}',)])  # the rows that the database would return
    with pytest.raises(bottle.HTTPResponse):  # the redirect
        shop.change(bus, "update …", 7)
    assert [(message.stream, message.event, message.data) for message in bus.sent] == [
        ("orders", "order", '{"id": 7, "state": "paid"}')
    ]

    with pytest.raises(bottle.HTTPError, match="no such order"):
        shop.change(bus, "update …", 8)
    assert len(bus.sent) == 1
