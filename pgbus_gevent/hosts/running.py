"""Serving until a signal comes, and stopping in good order; the same for every program that has a server of ours."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from ..early_signals import NO_ORDER, ignored_to_the_end, untaken
from ..publishing import coalescer
from ..streamer.instance import Instance, instances
from ..streamer.instance import instances as all_instances
from .pywsgi import Server

logger = logging.getLogger("pgbus_gevent.serve")

_HARD_LIMIT = 5.0  # seconds beyond the grace after which the kernel ends the process
_OTHER_REQUESTS = 2.0  # seconds that requests of the application have, at the most, after the streams are gone


_STOP = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT


class Stopper:
    """Knows when to stop, and with what status.

    The first SIGTERM, SIGINT or SIGQUIT asks for it; a second ends the process at once, after ``on_hurry``. :meth:`ask` does it
    with a status, :meth:`fail` with status 1. SIGHUP calls ``on_hangup``, or is ignored as SIGUSR1 and SIGUSR2 are; who has any of
    these three ignored from its start, under nohup for example, or handles one, is left alone.
    """

    def __init__(
        self,
        grace: float,
        on_hurry: Callable[[], object] | None = None,
        on_hangup: Callable[[], object] | None = None,
    ) -> None:
        self.status = 0
        self._grace = grace
        self._on_hurry = on_hurry
        self._on_hangup = on_hangup
        self._asked = Event()
        self._handlers: dict[int, Any] = {}

    def watch_signals(self) -> None:
        """Take the signals from now on."""
        for number in _STOP:
            self._handlers[number] = gevent.signal_handler(number, self._signalled, number)
        for number in NO_ORDER:
            if untaken(number):
                self._handlers[number] = gevent.signal_handler(number, self._not_an_order, number)

    def _not_an_order(self, number: int) -> None:
        if number == signal.SIGHUP and self._on_hangup is not None:
            self._on_hangup()
        else:
            logger.info("%s is ignored; SIGTERM stops", signal.Signals(number).name)

    def _signalled(self, number: int) -> None:
        if self.asked:
            logger.warning("second signal: ending at once")
            if self._on_hurry is not None:
                self._on_hurry()
            os._exit(128 + number)
        logger.info("%s: draining", signal.Signals(number).name)
        self.limit()
        self._asked.set()

    def limit(self) -> None:
        """Should anything block the event loop for good, the kernel ends the process all the same."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, self._grace + _HARD_LIMIT)

    def fail(self, part: str) -> None:
        """A part of an Instance has failed for good."""
        logger.critical("%s has failed for good: stopping, to be started again by whoever watches this process", part)
        self.ask(1)

    def ask(self, status: int) -> None:
        """Stop, with ``status``."""
        self.status = status
        self.limit()
        self._asked.set()

    @property
    def asked(self) -> bool:
        """Whether it was asked for."""
        return self._asked.is_set()

    def wait(self) -> None:
        """Until it is asked for."""
        self._asked.wait()

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            if not ignored_to_the_end(number):
                handler.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)


def stop(server: Server, instances: Sequence[Instance], grace: float) -> None:
    """Accept nobody, send the streams away, let other requests finish, publish what was held back; within ``grace`` seconds.

    Who waits to be accepted is served like those who were on their way: the streams are sent away, the rest is answered.
    """
    deadline = monotonic() + grace
    server.close()
    # Those too that the application made only after the start.
    every = {*instances, *all_instances()}
    gevent.joinall([gevent.spawn(instance.shutdown, grace) for instance in every], timeout=grace + 1.0)
    server.stop(max(0.1, min(_OTHER_REQUESTS, deadline - monotonic())))
    publish_held_back(deadline - monotonic())


def publish_held_back(timeout: float) -> None:
    """Publish what any Bus of this process holds back; waits for ``timeout`` seconds, but for one at least."""
    gevent.spawn(coalescer.close_all).join(max(1.0, timeout))


def drain(*_: Any) -> None:
    """Send away whoever has a stream of this process, within ``grace``: for a hook that another server calls at its end."""
    gevent.joinall([gevent.spawn(instance.shutdown) for instance in instances()])
    publish_held_back(0)


def drain_first(worker: Any = None) -> None:
    """Have the signals that end this process :func:`drain` first, and then do what they did: for a hook at a worker's start.

    It takes the handlers that are there, so it has to come after them: gunicorn's ``post_worker_init`` does.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        before = signal.getsignal(number)
        if callable(before):
            signal.signal(number, partial(_drain_then, before))


def _drain_then(before: Callable[[int, Any], Any], number: int, frame: Any) -> None:
    # A handler may run in the hub, where nothing may wait.
    gevent.spawn(_drain_and, before, number)


def _drain_and(before: Callable[[int, Any], Any], number: int) -> None:
    drain()
    before(number, None)


def run_until_stopped(server: Server, instances: Sequence[Instance], stopper: Stopper | None = None) -> int:
    """Serve, with ``server`` and ``instances`` started, until a signal comes or a part fails; the exit status."""
    grace = max((instance.settings.grace for instance in instances), default=10.0)
    if stopper is None:
        stopper = Stopper(grace)
        stopper.watch_signals()
    for instance in instances:
        instance.on_failure = stopper.fail
    try:
        stopper.wait()
        stop(server, instances, grace)
    finally:
        stopper.release()
    return stopper.status
