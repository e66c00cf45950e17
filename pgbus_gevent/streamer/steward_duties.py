"""Duties: what is to be done once for all workers, and so by the steward."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import NamedTuple, Protocol

import gevent

from ..core.retries import Trouble
from ..errors import DatabaseError

logger = logging.getLogger("pgbus_gevent.steward_duties")


class Duty(NamedTuple):
    """One of them. ``interval`` is the longest time in between, in seconds.

    ``run`` does it once. It returns in how many seconds it should be done again if that is sooner, else None.
    """

    name: str
    run: Callable[[], float | None]
    interval: float


class Leader(Protocol):
    """Says whether this worker does the duties; :class:`pgbus_gevent.streamer.steward.Steward` does."""

    @property
    def on_duty(self) -> bool: ...


def do_duty(duty: Duty, leader: Leader) -> None:
    """Do a duty, for ever, while this worker does the duties."""
    trouble = Trouble(logger, f"cannot do the steward's duty {duty.name!r}, trying again: %s")
    while True:
        # A short wait first, so that workers that are started again and again do not each begin with it.
        gevent.sleep(duty.interval * random.uniform(0.25, 0.5))
        while leader.on_duty:
            pause = duty.interval * random.uniform(0.75, 1.0)
            try:
                asked = duty.run()
                pause = pause if asked is None else min(pause, asked)
                trouble.ends()
            except DatabaseError as error:
                trouble.begins(error)
            gevent.sleep(pause)
