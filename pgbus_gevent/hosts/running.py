"""Serves until a signal comes, and then stops in good order. All programs with our server use it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from .service_manager import ServiceManager

logger = logging.getLogger("pgbus_gevent.serve")

HARD_LIMIT = 5.0
"""Seconds beyond the grace after which the kernel ends the process."""

_OTHER_REQUESTS = 2.0  # seconds at most for the application's requests, after the streams are closed

_STOP = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT


class Stopper:
    """Knows whether the process is to stop, and with which exit status.

    The first SIGTERM, SIGINT or SIGQUIT asks for a stop; a second one calls ``on_hurry``, and ends the process at once. :meth:`ask`
    asks with a status, :meth:`fail` with status 1. SIGHUP calls ``on_hangup``; without it, SIGHUP is ignored, as SIGUSR1 and
    SIGUSR2 are. If the process already ignores one of these three signals (under nohup, for example) or handles it, that signal
    stays as it is. ``grace`` is the setting, in seconds.
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
        """Handle the signals from now on."""
        for number in _STOP:
            self._handlers[number] = gevent.signal_handler(number, self._signalled, number)
        for number in NO_ORDER:
            if untaken(number):
                self._handlers[number] = gevent.signal_handler(number, self._not_an_order, number)

    def _not_an_order(self, number: int) -> None:
        if number == signal.SIGHUP and self._on_hangup is not None:
            self._on_hangup()
        else:
            logger.info("%s is ignored; send SIGTERM to stop", signal.Signals(number).name)

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
        """Set an alarm with which the kernel ends the process, in case something blocks the event loop for good."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, self._grace + HARD_LIMIT)

    def fail(self, part: str) -> None:
        """Stop with status 1, because ``part`` of an Instance has failed for good."""
        logger.critical(
            "%s has failed for good: stopping with status 1, so that a supervisor can start this process again", part
        )
        self.ask(1)

    def ask(self, status: int) -> None:
        """Ask for a stop with the exit status ``status``."""
        self.status = status
        self.limit()
        self._asked.set()

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked.is_set()

    def wait(self) -> None:
        """Wait until a stop is asked for."""
        self._asked.wait()

    def release(self) -> None:
        """Stop handling the signals, and cancel the alarm."""
        for number, handler in self._handlers.items():
            if not ignored_to_the_end(number):
                handler.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)


def stop(server: Server, instances: Sequence[Instance], grace: float) -> None:
    """Stop accepting, send the streams' clients away, let other requests finish, and publish coalesced messages.

    All of it takes at most ``grace`` seconds. Connections that wait to be accepted are served too: clients of streams are sent
    away, and other requests are answered.
    """
    deadline = monotonic() + grace
    server.close()
    # Include the Instances that the application made after the start.
    every = {*instances, *all_instances()}
    gevent.joinall([gevent.spawn(instance.shutdown, grace) for instance in every], timeout=grace + 1.0)
    for instance in every:
        # One whose tasks do not end, or that stood still for seconds, has not come so far.
        for _ in instance.clients.end_all():
            pass
    server.stop(max(0.1, min(_OTHER_REQUESTS, deadline - monotonic())))
    publish_held_back(deadline - monotonic())


def publish_held_back(timeout: float) -> None:
    """Publish the messages that the Buses of this process hold back, within ``timeout`` seconds or one, if that is longer."""
    gevent.spawn(coalescer.close_all).join(max(1.0, timeout))


def drain(*_: Any) -> None:
    """Send the clients of all streams of this process away, within the setting ``grace``.

    Use it as a hook that another WSGI server calls when it ends; arguments are ignored.
    """
    gevent.joinall([gevent.spawn(instance.shutdown) for instance in instances()])
    publish_held_back(0)


def drain_first(worker: Any = None) -> None:
    """Make SIGTERM, SIGINT and SIGQUIT call :func:`drain` before their current handlers.

    Use it as a hook that another WSGI server calls in each worker after it has set its signal handlers, such as gunicorn's
    ``post_worker_init``.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        before = signal.getsignal(number)
        if callable(before):
            signal.signal(number, partial(_drain_then, before))


def _drain_then(before: Callable[[int, Any], Any], number: int, frame: Any) -> None:
    # A signal handler may run in the hub, which must not wait.
    gevent.spawn(_drain_and, before, number)


def _drain_and(before: Callable[[int, Any], Any], number: int) -> None:
    drain()
    before(number, None)


def run_until_stopped(
    server: Server,
    instances: Sequence[Instance],
    stopper: Stopper | None = None,
    manager: ServiceManager | None = None,
) -> int:
    """Serve until a signal comes or a part fails for good, then stop. Return the exit status.

    ``server`` and ``instances`` must be started. The service manager, by default that of the environment, is told so.
    """
    manager = manager or ServiceManager()
    grace = max((instance.settings.grace for instance in instances), default=10.0)
    if stopper is None:
        stopper = Stopper(grace)
        stopper.watch_signals()
    for instance in instances:
        instance.on_failure = stopper.fail
    try:
        with kept_alive(manager):
            manager.tell("READY=1", "STATUS=serving")
            stopper.wait()
            manager.tell("STOPPING=1", "STATUS=sending the clients away")
            stop(server, instances, grace)
    finally:
        stopper.release()
    return stopper.status


@contextmanager
def kept_alive(manager: ServiceManager) -> Iterator[None]:
    """Give the service manager signs of life while the block runs and no part of this process has failed for good."""
    keeper = gevent.spawn(manager.keep_alive, _lives)
    try:
        yield
    finally:
        keeper.kill()


def _lives() -> bool:
    """Whether no part of this process has failed for good."""
    return not any(task.failed for instance in all_instances() for task in instance.tasks.values())
