"""Who somebody is to the streams, as an opaque text: equal where two connections may see the same messages.

Browsers share one connection between their tabs. A tab may have what another tab's connection was sent only if the server would
have sent it the same, so ``pgbus:connected`` and the page's element tell an identity each, and they are compared.

It is ``<key>.<who>.<what>``: which secret made it, whose it is (owner and member; empty where there is neither), and all that
decides what may be seen (owner, context, member; empty where the context has no form that could be compared, which then shares with
nothing). Each part is keyed, so it reveals nothing and means nothing on another site.
When a right expires is no part of it: that decides how long a connection lasts, not what it is sent, and a hook that answers "in an
hour" would never make the same text twice.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

from .client import ANYBODY, Subscriber
from .retries import Seldom

logger = logging.getLogger("pgbus_gevent.identity")

METHOD = "__pgbus_identity__"
"""The method by which a context tells what of it decides what may be seen: values as below."""

_AS_TEXT = {"datetime", "decimal", "fractions", "ipaddress", "pathlib", "uuid", "zoneinfo"}
"""Modules of values that are what their ``repr`` says."""
_SIZE = 16  # hexadecimal digits of each part


class Unknown(TypeError):
    """A value that has no form by which another process could tell that it has an equal one."""


class Identities:
    """Makes identities with the newest of ``secrets``. Without a secret only anybody's has one: there is nothing to hide in it.

    ``catch`` is what a context may raise when it is asked for its own.
    """

    def __init__(self, secrets: Iterable[str], *, catch: tuple[type[BaseException], ...] = (Exception,)) -> None:
        self._catch = catch
        newest = [*secrets][-1:]
        self._key = newest[0].encode() if newest else None
        self._complaints = Seldom(most=100)
        self._name = self._digest("key", "", 6)
        self._anybody: tuple[str, str] | None = None
        self._anybody = self._parts(ANYBODY)

    def of(self, *subscribers: Subscriber) -> str | None:
        """That of a connection with these subscribers, one for each stream; None where there is no secret to hide them with."""
        found = [self._parts(each) for each in subscribers]
        known = [each for each in found if each is not None]
        if len(known) < len(found) or not known:
            return None
        owners = {who for who, _ in known}
        who = owners.pop() if len(owners) == 1 else ""
        if not all(what for _, what in known):
            return f"{self._name}.{who}."
        what = known[0][1] if len({*known}) == 1 else self._digest("all", json.dumps(known))
        return f"{self._name}.{who}.{what}"

    def _parts(self, subscriber: Subscriber) -> tuple[str, str] | None:
        owner, context, member = subscriber[:3]
        anybody = owner is None and context is None and member is None
        if anybody and self._anybody is not None:
            return self._anybody
        if not anybody and self._key is None:
            return None
        who = "" if owner is None and member is None else self._digest("who", canonical([owner, member]))
        try:
            return who, self._digest("what", canonical([owner, context, member]))
        except self._catch as error:  # beside Unknown, what a context's own code raises, or one that holds itself
            self._complain(type(context).__name__, error)
            return who, ""

    def _complain(self, kind: str, error: BaseException) -> None:
        """Once for each kind: it is said of every connection."""
        if self._complaints.turn(kind) is not None:
            why = "" if isinstance(error, Unknown) else f" ({error!r})"
            logger.warning(
                "a %s as context cannot be compared%s: its tabs share no connection. Give it a method %s",
                kind,
                why,
                METHOD,
            )

    def _digest(self, use: str, text: str, size: int = _SIZE) -> str:
        message = f"pgbus.identity.{use}\0{text}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key or b"anybody", message, sha256).hexdigest()[:size]


def canonical(value: Any) -> str:
    """A text that is the same for equal values in every process. Raises :class:`Unknown`.

    Known are None, bool, numbers, texts, bytes, dates and times, UUIDs, enums, lists, tuples, sets, mappings, dataclasses (fields
    with ``compare=False`` left out), SimpleNamespace, and objects with ``__pgbus_identity__()``.
    """
    return json.dumps(_form(value), separators=(",", ":"))


def _form(value: Any) -> Any:
    kind = type(value)
    own = getattr(kind, METHOD, None)
    if own is not None:
        return [_name(kind), _form(own(value))]
    if isinstance(value, Enum):
        return [_name(kind), value.name]
    if value is None or isinstance(value, bool | int | float):
        # Numbers as texts, so that True, 1, 1.0 and "1" are four, and a number can have any size.
        return [kind.__name__, repr(value)]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if any(base.__module__.partition(".")[0] in _AS_TEXT for base in kind.__mro__):
        return [_name(kind), repr(value)]
    return [_name(kind), _form_of_parts(value)]


def _form_of_parts(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return [[field.name, _form(getattr(value, field.name))] for field in fields(value) if field.compare]
    if isinstance(value, SimpleNamespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return sorted([canonical(key), _form(content)] for key, content in value.items())
    if isinstance(value, AbstractSet):
        return sorted(canonical(each) for each in value)
    if isinstance(value, Sequence) and not isinstance(value, memoryview | range):
        return [_form(each) for each in value]
    raise Unknown(f"{type(value).__name__} has no {METHOD}()")


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
