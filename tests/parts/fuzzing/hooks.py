"""Targets for what an application's own code may do: every answer, every exception, slowly, hugely, from objects that lie."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from time import time
from typing import Any

import bottle
from site_parts import Site
from support import until

from fuzzing.answers import ERRORS, TIMEOUT, Answer, answer_of
from fuzzing.engine import Check, Target
from fuzzing.inputs import Taker
from fuzzing.judged import Logged, Noted, lets_in, shows
from fuzzing.web import END, call, environ_of, fuzzed_site
from pgbus_gevent.bottle_plugin import PgbusPlugin
from pgbus_gevent.bus import Bus
from pgbus_gevent.core import events
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.retries import Seldom
from pgbus_gevent.errors import InvalidArgument
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.web.stream_app import StreamApp

ROOM = "demo:room"
"""A stream whose members are tracked."""

_TAG = re.compile(r'<pgbus-stream-source src="[^"<>]+" since-id="\d+"( identity="[0-9a-f.]+")?></pgbus-stream-source>')
_GET_PUBLIC = b"\x12\n\x00\n"


class _Handler:
    """A handler of events that does what the input says, also when it is shown."""

    def __init__(self) -> None:
        self.does: Answer = lambda: None
        self.shown: Answer = lambda: "it"

    def __call__(self, event: object) -> object:
        return self.does()

    def __repr__(self) -> Any:
        return self.shown()


class Application:
    """An application at a site, whose hooks do what :attr:`does` says for ``ada``, and let ``bob`` in."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.does: Answer = lambda: Subscriber("ada", "ada")
        self.app = StreamApp(site.instance, self._authorize)
        site.app = self.app
        assert self.app._hook is not None
        self.app._hook._timeout = TIMEOUT
        self.logged = Logged()
        self.numbers = count(1)

    def _authorize(self, environ: dict[str, Any], stream: str) -> Any:
        return Subscriber("bob", "bob") if environ.get("HTTP_X_OWNER") == "bob" else self.does()

    def forget_complaints(self) -> None:
        """Have each fault logged that is found from now on."""
        assert self.app._hook is not None
        self.app._hook._complaints = Seldom(most=100)
        self.site.instance.filters._complaints = Seldom()
        for kind in events.KINDS:
            self.site.instance.events.signal(kind)._reports = Seldom()
        self.logged.texts.clear()

    def calls(self, bus: Bus) -> tuple[Callable[[], object], ...]:
        """Return calls into the bus that a hook might make."""
        instance, stream, room = self.site.instance, bus.stream("demo:other"), bus.stream(ROOM)
        depth = 0

        def emit() -> None:
            nonlocal depth
            if depth < 20:  # without an end, the handlers after this one would have no stack left either
                depth += 1
                try:
                    instance.events.emit(events.Refused("restart"))
                finally:
                    depth -= 1

        return (
            lambda: stream.broadcast("from a hook"), lambda: stream.broadcast("from a hook", ephemeral=True),
            lambda: bus.stream_tag("public"), lambda: room.presence.members(), lambda: stream.read_after(0, 5),
            lambda: instance.clients.end_owner("eve"), lambda: bus.disconnect("eve"),
            lambda: stream.broadcast("x", coalesce=0.01), lambda: bus.filters.register("own2", lambda *_: True),
            emit, lambda: room.presence.join("bot"),
        )  # fmt: skip

    def judge(self) -> None:
        """Check that nothing is left of a client that has gone, and that no task died."""
        instance = self.site.instance
        assert instance.alive and not any(task.deaths for task in instance.tasks.values())

    def publish(self, stream: str, clients: dict[str, StreamClient], *, ephemeral: bool, label: str) -> dict[str, bool]:
        """Publish a message with a label and one for all. Return who got the first; everybody has to get the second."""
        number = next(self.numbers)
        to = self.site.bus.stream(stream)
        to.broadcast(f"labelled {number}", visible_to=label, ephemeral=ephemeral)
        to.broadcast(f"after {number}", ephemeral=ephemeral)
        saw = {}
        for name, client in clients.items():
            saw[name] = False
            while (data := client.next(timeout=END).data) != f"after {number}":
                saw[name] |= data == f"labelled {number}"
        return saw


@contextmanager
def application(url: str, **changes: Any) -> Iterator[Application]:
    """Run a site with an application, and collect what is logged."""
    with fuzzed_site(url, presence=(ROOM,), presence_grace=0.0, **changes) as site:
        site.bus.filters = site.instance.filters
        each = Application(site)
        logger = logging.getLogger("pgbus_gevent")
        logger.addHandler(each.logged)
        try:
            yield each
        finally:
            logger.removeHandler(each.logged)


@contextmanager
def hooks(url: str) -> Iterator[Check]:
    """Whatever the code of an application does, it harms the request or the message that it was called for, and nothing else."""
    with application(url) as each, each.site.watch("public", X_Owner="bob") as bob, each.site.watch("public") as ada:
        site, instance = each.site, each.site.instance
        for client in (bob, ada):
            client.next("pgbus:connected", timeout=END)
        own = Noted(lambda: False)
        instance.filters.register("own", lambda context, stream: own() if context == "ada" else context == "bob")
        handler, seen = _Handler(), [0, 0]
        for kind in events.KINDS:
            instance.events.subscribe(kind, lambda event: seen.__setitem__(0, seen[0] + 1))
            instance.events.subscribe(kind, handler)
            instance.events.subscribe(kind, lambda event: seen.__setitem__(1, seen[1] + 1))
        page = bottle.Bottle()
        pages = Bus(settings=instance.settings)
        page.install(plugin := PgbusPlugin(pages, authorize=each._authorize, instance=instance))
        assert plugin._streams._hook is not None
        plugin._streams._hook._timeout = TIMEOUT
        page.route("/", callback=lambda pgbus: pgbus.stream_tag("public"))
        back = each.calls(site.bus), each.calls(pages)

        def authorize(answer: Answer) -> None:
            each.does = noted = Noted(answer)
            environ = environ_of(Taker(_GET_PUBLIC))
            environ["PATH_INFO"] = f"/pgbus/streams/{ROOM}"
            status, _ = call(each.app, environ)
            allowed = not noted.raised and lets_in(noted.value, time())
            assert status == (200 if allowed else 403), (status, noted)
            if not allowed and noted.value is not False and not noted.expired:
                assert any(text.startswith("the authorize hook") for text in each.logged.texts), noted
            until(lambda: len(instance.registry) == 2, "nothing is left of the client", END)
            until(lambda: not len(instance.presence) and instance.presence.settled, "nor of its member", END)
            assert set(instance.clients._owners) == {"ada", "bob"}

        def filtered(answer: Answer, ephemeral: bool) -> None:
            own.answer, own.raised, own.value = answer, False, False
            saw = each.publish("public", {"ada": ada, "bob": bob}, ephemeral=ephemeral, label="own")
            allowed = shows(own)
            assert saw == {"ada": allowed is True, "bob": True}, (saw, own)
            if allowed is None:
                assert any(text.startswith("the filter 'own'") for text in each.logged.texts), own
            own.answer = lambda: False

        def handled(answer: Answer, shown: Answer, ephemeral: bool) -> None:
            noted = handler.does = Noted(answer)
            handler.shown = shown
            seen[:] = 0, 0
            environ = environ_of(Taker(_GET_PUBLIC))
            environ |= {"PATH_INFO": "/pgbus/streams/demo:new", "HTTP_X_OWNER": "bob", "HTTP_LAST_EVENT_ID": "x"}
            assert call(each.app, environ)[0] == 200
            each.publish("public", {"ada": ada, "bob": bob}, ephemeral=ephemeral, label="nobody")
            for event in (
                events.Refused("restart"), events.SlowConsumer("c", ("public",), 1.0), events.ListenerUp(),
                events.ListenerDown("x"), events.Gap("public", "expired"),
            ):  # fmt: skip
                instance.events.emit(event)
            until(lambda: len(instance.registry) == 2, "nothing is left of the client", END)
            handler.does, handler.shown = lambda: None, lambda: "it"
            # A handler that publishes brings itself more events, of which one may be on its way.
            until(lambda: seen[0] == seen[1] >= 9, "the handlers before and after it have the same events", END)
            if noted.ever_raised:
                assert any(text.startswith("the handler") for text in each.logged.texts), noted

        def paged(answer: Answer) -> None:
            each.does = noted = Noted(answer)
            environ = environ_of(Taker(b""))
            environ |= {"PATH_INFO": "/", "REQUEST_METHOD": "GET"}
            status, body = call(page, environ)
            assert status == 200 and _TAG.fullmatch(body.decode()), (status, body[:500])
            bottle.request.bind({})
            if noted.raised or noted.depth:
                return
            try:
                assert _TAG.fullmatch(site.bus.stream_tag("public", subscriber=noted.value))
            except InvalidArgument:
                assert not any(noted.value is each for each in (None, True, False)) and not lets_in(noted.value, 0.0), (
                    noted
                )

        def check(data: bytes) -> None:
            take = Taker(data)
            what = take.byte() % 4
            answer = answer_of(take, back[what == 3])
            each.forget_complaints()
            if what == 0:
                authorize(answer)
            elif what == 1:
                filtered(answer, ephemeral=bool(take.byte() % 2))
            elif what == 2:
                handled(answer, answer_of(take) if take.byte() % 2 else lambda: "it", bool(take.byte() % 2))
            else:
                paged(answer)
            each.judge()

        yield check
        pages.close()


@contextmanager
def rechecks(url: str) -> Iterator[Check]:
    """Whatever the authorize hook answers when it is asked again, it decides about this connection, and about nothing else."""
    with application(url, recheck=0.01) as each, each.site.watch(ROOM, X_Owner="bob") as bob:
        bob.next("pgbus:connected", timeout=END)
        presence = each.site.instance.presence
        steady = Subscriber("ada", "ada", "ada")
        each.does = lambda: steady
        clients: list[StreamClient] = []

        def ada() -> StreamClient:
            if not clients or clients[0].closed:
                clients[:] = [StreamClient(each.site.url, f"/pgbus/streams/{ROOM}")]
                clients[0].next("pgbus:connected", timeout=END)
            return clients[0]

        def check(data: bytes) -> None:
            take = Taker(data)
            noted = Noted(answer_of(take, back), once=steady)
            client = ada()
            each.forget_complaints()
            each.does = noted
            until(
                lambda: noted.calls > 1 or client.closed, "the hook was asked twice, or has ended the connection", END
            )
            each.does = lambda: steady
            reason = (
                "revoked"
                if not noted.raised and not lets_in(noted.value, 0.0)
                else "expired"
                if noted.expired
                else None
            )
            if reason is None:
                saw = each.publish(ROOM, {"ada": client, "bob": bob}, ephemeral=bool(take.byte() % 2), label="x")
                assert saw == {"ada": False, "bob": False}, saw
            else:
                told = json.loads(client.next("pgbus:shutdown", timeout=END).data)
                client.wait_closed(END)
                assert told["reason"] == reason, (told, noted)
                each.publish(ROOM, {"bob": bob}, ephemeral=True, label="x")
            until(lambda: presence.settled and len(presence) == (reason is None), "presence is settled", END)
            if noted.raised or (reason == "revoked" and noted.value is not False):
                assert any(text.startswith("the authorize hook") for text in each.logged.texts), noted
            each.judge()

        back = each.calls(each.site.bus)
        yield check
        for client in clients:
            client.close()


_BROKEN = tuple(
    bytes([first, kind, error]) for first in range(4) for kind in (0, 3, 5, 10) for error in range(len(ERRORS))
)
_WORDS = (
    *(b"\0\x08", b"\0\x09", b"\0\x0a", b"\0\x0b", b"\x04", b"\x06", b"\x0a\x0a\x0a\x0a", b"\xff", b"\n", b"\x07ada\n"),
    *(b"\x09\x05", b"\x0f\x03", b"x" * 200, b"\x0c\x03\x01\x02", b"\x0d\0\x01", b"\x0e", b"\x0f", b"\x10\x01", b"\x11"),
)

HOOKS = Target(
    "hooks", hooks,
    (*_BROKEN, *_WORDS),
    most=4000, needs="database",
    allowed=("the authorize hook ", "the handler "),
    about="answers and exceptions of the authorize hook, filters, contexts, handlers of events, and the hook of a page",
)  # fmt: skip

RECHECKS = Target(
    "rechecks", rechecks,
    (*{each[1:] for each in _BROKEN}, *_WORDS),
    most=4000, needs="database",
    allowed=("the authorize hook ",),
    about="answers and exceptions of the authorize hook when it is asked again about a connection whose member is tracked",
)  # fmt: skip

TARGETS = (HOOKS, RECHECKS)
