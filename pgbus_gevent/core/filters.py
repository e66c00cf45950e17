"""Who may see a message that is not for everybody."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..errors import InvalidArgument
from .retries import Seldom

logger = logging.getLogger("pgbus_gevent.filters")

NOBODY = "\0"
"""The label of what nobody may see; no label in a table has this character."""

Predicate = Callable[[Any, str], bool]
"""Given a connection's context and the stream: may it see messages with this label?"""


class Filters:
    """The predicates that ``visible_to`` names. What is unknown or raises lets nobody see: it fails closed.

    The log says so, for each label once a minute by ``clock``, once for good without one. ``catch`` is what a predicate may raise.
    """

    def __init__(
        self, clock: Callable[[], float] | None = None, *, catch: tuple[type[BaseException], ...] = (Exception,)
    ) -> None:
        self._catch = catch
        self._predicates: dict[str, Predicate] = {}
        self._complaints = Seldom(clock)

    def register(self, label: str, predicate: Predicate) -> None:
        """Let messages with ``visible_to=label`` reach connections for whose context ``predicate`` says True."""
        if not label or not callable(predicate):
            raise InvalidArgument("a filter needs a label and a callable that takes (context, stream)")
        self._predicates[label] = predicate
        self._complaints.forget(label)

    def share(self, other: Filters) -> None:
        """Have the predicates of ``other`` from now on, those that it gets later included; and it those of this one."""
        other._predicates.update(self._predicates)
        self._predicates = other._predicates

    def permits(self, label: str, context: Any, stream: str) -> bool:
        """Whether a connection with ``context`` may see a message of ``stream`` that is visible to ``label``."""
        if label == NOBODY:
            self._complain(label, f"a message of stream {stream!r} has an event name that no broadcast takes: it is")
            return False
        predicate = self._predicates.get(label)
        if predicate is None:
            self._complain(label, f"the filter {label!r} is not registered: messages visible to it are")
            return False
        try:
            return bool(predicate(context, stream))
        except self._catch as error:
            self._complain(label, f"the filter {label!r} raised {error!r}: messages visible to it are")
            return False

    def _complain(self, label: str, what: str) -> None:
        if self._complaints.turn(label) is not None:
            logger.warning("%s not delivered", what)
