"""The filters: predicates that decide which connections get a message that has a label."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, KeysView
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from ..errors import InvalidArgument
from .retries import Seldom
from .shown import described, kind_of

logger = logging.getLogger("pgbus_gevent.filters")

NOBODY = "\0"
"""The label of a message that no client may see. No label in the table contains this character."""

# Answers that are true for everybody, because the question was never asked: a function or a method that was not called, and what
# ``async def`` or a generator function returns.
_UNASKED = (FunctionType, MethodType, BuiltinFunctionType, type, Awaitable, Generator, AsyncGenerator)

Predicate = Callable[[Any, str], bool]
"""A function of a connection's context and a stream's name: True if the connection may see messages with the label."""


class Filters:
    """The predicates that ``visible_to`` names. If a filter is not registered, or raises, nobody gets the message.

    A message that nobody gets for this reason is logged as a warning: once a minute for each label if ``clock`` is given, which
    returns monotonic seconds, and otherwise once. ``default`` decides about labels for which no predicate is registered.

    Whatever a predicate raises is caught, also what would end the process or the greenlet that delivers. An answer that would be
    true for everybody by mistake (a method that was not called, or what an ``async def`` returns) shows nobody the message. So does
    an object of a type in ``unasked``.
    """

    def __init__(
        self,
        clock: Callable[[], float] | None = None,
        *,
        default: Predicate | None = None,
        unasked: tuple[type, ...] = (),
    ) -> None:
        self._default = default
        self._unasked = (*_UNASKED, *unasked)
        self._predicates: dict[str, Predicate] = {}
        self._complaints = Seldom(clock)

    def register(self, label: str, predicate: Predicate) -> None:
        """Deliver messages with ``visible_to=label`` to the connections for which ``predicate(context, stream)`` is true.

        A second call replaces the predicate. The predicate runs in the greenlet that delivers, so it must not wait. Raises
        :class:`InvalidArgument` if the label is empty, or if the predicate cannot be called.
        """
        if not label or not callable(predicate):
            raise InvalidArgument("a filter needs a label and a callable that takes (context, stream)")
        self._predicates[label] = predicate
        self._complaints.forget(label)

    def share(self, other: Filters) -> None:
        """Share predicates with ``other``: from now on both have the predicates of both, also those registered later."""
        other._predicates.update(self._predicates)
        self._predicates = other._predicates

    @property
    def labels(self) -> KeysView[str]:
        """The labels for which a predicate is registered."""
        return self._predicates.keys()

    @property
    def has_default(self) -> bool:
        """Whether a predicate decides about all other labels too."""
        return self._default is not None

    def decide(self, labels: Collection[str]) -> bool:
        """Whether there is a predicate for one of these labels."""
        return (self._default is not None and bool(labels)) or not self._predicates.keys().isdisjoint(labels)

    def permits(self, label: str, context: Any, stream: str, *, held: bool = False) -> bool:
        """Whether the filter lets a connection with ``context`` see a message of ``stream`` that is visible to ``label``.

        ``held`` says that subscribers hold labels. A label without a filter is then no fault, because it may be one of theirs.
        """
        if label == NOBODY:
            self._complain(label, f"a message of stream {stream!r} has an event name that broadcast() refuses: it is")
            return False
        predicate = self._predicates.get(label, self._default)
        if predicate is None:
            if not held:
                self._complain(label, f"the filter {label!r} is not registered: messages visible to it are")
            return False
        try:
            answer = predicate(context, stream)
            if answer is True or answer is False:
                return answer
            if not issubclass(type(answer), self._unasked):
                return bool(answer)
        except BaseException as error:
            self._complain(label, f"the filter {label!r} raised {described(error)}: messages visible to it are")
            return False
        self._complain(
            label,
            f"the filter {label!r} answered a {kind_of(answer)}, and not True or False: messages visible to it are",
        )
        return False

    def _complain(self, label: str, what: str) -> None:
        if self._complaints.due(label) is not None:
            logger.warning("%s not delivered", what)
