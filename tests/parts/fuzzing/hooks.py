"""A target for what an application's own code may do: every answer, every exception, slowly, hugely, from objects that lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import time
from typing import Any

import gevent
from site_parts import Site
from support import until

from fuzzing.engine import Check, Target
from fuzzing.inputs import Taker
from fuzzing.web import END, call, environ_of, fuzzed_site
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.events import KINDS
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.web.stream_app import StreamApp

TIMEOUT = 0.2
"""Seconds that the authorize hook has, here."""

RECHECK = 0.02
"""Seconds after which it is asked again about a client."""


class Bad(Exception):
    """An exception that cannot be shown."""

    def __repr__(self) -> str:
        raise ValueError("no repr")

    __str__ = __repr__


class Worse(BaseException):
    """An exception of no usual kind, whose text is long."""

    def __str__(self) -> str:
        return "x" * 1_000_000


class Liar:
    """An object each of whose attributes raises, also those that Python asks for."""

    def __init__(self, error: BaseException) -> None:
        object.__setattr__(self, "error", error)

    def __getattribute__(self, name: str) -> Any:
        raise object.__getattribute__(self, "error")

    def __bool__(self) -> bool:
        raise object.__getattribute__(self, "error")

    def __eq__(self, other: object) -> bool:
        raise object.__getattribute__(self, "error")

    def __hash__(self) -> int:
        raise object.__getattribute__(self, "error")

    def __repr__(self) -> str:
        raise object.__getattribute__(self, "error")


class Own:
    """A context with its own identity."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __pgbus_identity__(self) -> Any:
        return self._value() if callable(self._value) else self._value


class Crooked(Subscriber):
    """A subscriber whose methods do something else."""

    def _replace(self, **_: Any) -> Any:
        raise SystemExit(3)


ERRORS: tuple[Callable[[], BaseException], ...] = (
    ValueError, Bad, Worse, SystemExit, KeyboardInterrupt, GeneratorExit, gevent.GreenletExit, lambda: gevent.Timeout(1),
    StopIteration,
    RecursionError, MemoryError, OSError, UnicodeError, lambda: SystemExit("x" * 100_000),
    lambda: ValueError("\0\ud800\n" * 50),
    AssertionError, lambda: TimeoutError(110, "late"), BaseException, StopAsyncIteration, ConnectionResetError,
)  # fmt: skip


def _raise(error: BaseException) -> Any:
    raise error


def answer_of(take: Taker) -> Callable[[], Any]:
    """Return a function that answers as the input says, or raises, or takes long."""
    kind = take.byte() % 12
    error = take.pick(ERRORS)
    if kind < 3:
        return lambda: _raise(error())
    if kind == 3:
        return lambda: Liar(error())
    if kind == 4:
        return lambda: gevent.sleep(2 * TIMEOUT) or True
    if kind == 5:
        return lambda: (_raise(each) for each in [error()])
    if kind == 6:
        return lambda: "x" * 3_000_000
    if kind == 7:
        return lambda: Crooked("ada", take.byte())
    values = [take.value() for _ in range(5)]
    if kind == 8:
        return lambda: Subscriber._make(values)
    if kind == 9:
        return lambda: Subscriber(*values)
    if kind == 10:
        inner = take.pick(
            (lambda: Liar(error()), lambda: Own(values[0]), lambda: Own(lambda: _raise(error())), lambda: values)
        )
        return lambda: Subscriber("ada", inner(), None, time() + 60, {"x"} if values[0] else set())
    return lambda: values[0]


class Asked:
    """A client whose rights are looked at again all the time, and the answer that the hook gives then."""

    def __init__(self, site: Site, app: StreamApp, does: list[Callable[[], Any]]) -> None:
        self._site, self._app, self._does = site, app, does
        self._client: StreamClient | None = None

    def ask(self, answer: Callable[[], Any]) -> None:
        """Have the hook answer so, at least once. A client that was sent away has come back when the next one is asked."""
        if self._client is None or self._client.closed:
            self._connect()
        calls = 0

        def counted() -> Any:
            nonlocal calls
            calls += 1
            return answer()

        self._does[0] = counted
        until(lambda: calls or not self._is_asked(), "the hook is asked again", END)

    def _is_asked(self) -> bool:
        return any(client.recheck is not None for client in self._site.instance.registry.clients())

    def _connect(self) -> None:
        self.close()
        usual, self._site.app = self._site.app, self._app
        try:
            self._client = StreamClient(self._site.url, "/pgbus/streams/public")
            self._client.next("pgbus:connected", timeout=END)
        finally:
            self._site.app = usual

    def close(self) -> None:
        """Leave."""
        if self._client is not None:
            self._client.close()
            until(lambda: not self._is_asked(), "the client has left", END)


@contextmanager
def hooks(url: str) -> Iterator[Check]:
    """Whatever the code of an application does, it harms the request or the message that it was called for, and nothing else."""
    does: list[Callable[[], Any]] = [lambda: True]

    with fuzzed_site(url, recheck=RECHECK, presence=("public",)) as site, site.watch("public") as client:
        app = StreamApp(site.instance, lambda environ, stream: does[0]())
        assert app._hook is not None
        app._hook._timeout = TIMEOUT
        client.next("pgbus:connected", timeout=END)
        own: list[Callable[[], Any]] = [lambda: False]
        site.instance.filters.register("own", lambda context, stream: own[0]())
        handled: list[Callable[[], Any]] = [lambda: None]
        for kind in KINDS:
            site.instance.events.subscribe(kind, lambda event: handled[0]())
        stream = site.bus.stream("public")
        asked = Asked(site, app, does)
        number = 0

        def check(data: bytes) -> None:
            nonlocal number
            number += 1
            take = Taker(data)
            what, answer = take.byte() % 4, answer_of(take)
            if what == 0:
                does[0] = answer
                environ = environ_of(Taker(b"\x12\n\x00\n"))  # GET of the stream "public"
                status, _ = call(app, environ)
                assert status in (200, 403), status
            elif what == 3:
                asked.ask(answer)
            else:
                holder = own if what == 1 else handled
                holder[0] = answer
                # A filter that waits keeps all messages waiting, which is documented.
                stream.broadcast("labelled", visible_to="own", ephemeral=True)
            stream.broadcast(f"after {number}", ephemeral=True)
            while client.next(timeout=END).data != f"after {number}":
                pass
            own[0] = handled[0] = lambda: False
            does[0] = lambda: True
            assert site.instance.alive and not any(task.deaths for task in site.instance.tasks.values())

        try:
            yield check
        finally:
            asked.close()


HOOKS = Target(
    "hooks", hooks,
    (
        *(bytes([first, kind, error]) for first in range(4) for kind in (0, 3, 5, 10) for error in range(len(ERRORS))),
        *(b"\0\x08", b"\0\x09", b"\0\x0a", b"\0\x0b", b"\x04", b"\x06", b"\x0a\x0a\x0a\x0a", b"\xff", b"\n", b"\x07ada\n"),
        *(b"\x09\x05", b"\x0f\x03", b"x" * 200),
    ),
    most=4000, needs="database",
    allowed=("the authorize hook ", "the handler "),
    about="answers and exceptions of the authorize hook, also when it is asked again, filters, contexts, handlers of all events",
)  # fmt: skip

TARGETS = (HOOKS,)
