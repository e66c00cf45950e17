"""The identity of a connection: an opaque text that is equal for two connections which are sent the same messages.

The tabs of a browser share one connection. A tab may use the messages of another tab's connection only if the server would have
sent it the same ones. Both ``pgbus:connected`` and the page's element therefore carry an identity, and the browser compares them.

An identity has three parts, ``<key>.<who>.<what>``. The first names the secret that made it. The second is a digest of owner and
member; it is empty if there is neither. The third is a digest of owner, context, member and labels, on which all audiences depend;
it is empty if the context cannot be compared, and then the connection is not shared. The digests are keyed, so they reveal nothing,
and they mean nothing on another site. The expiry of a right is not part of an identity: it decides how long a connection lasts, not
what it is sent, and a hook that answers "in an hour" would give a new identity each time.
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
from .shown import described, kind_of

logger = logging.getLogger("pgbus_gevent.identity")

METHOD = "__pgbus_identity__"
"""The method with which a context returns the values that decide which messages it may see. :func:`canonical` takes them."""

_AS_TEXT = {"datetime", "decimal", "fractions", "ipaddress", "pathlib", "uuid", "zoneinfo"}
"""Modules whose values are equal exactly if their ``repr`` is equal."""
_SIZE = 16  # hexadecimal digits of each part


class Unknown(TypeError):
    """The value has no text by which another process could recognise an equal value."""


class Identities:
    """Makes identities with the newest of ``secrets``, which are in order, the oldest first.

    Without a secret, only the anonymous subscriber has an identity, because it has nothing to hide.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        newest = [*secrets][-1:]
        self._key = newest[0].encode() if newest else None
        self._complaints = Seldom(most=100)
        self._name = self._digest("key", "", 6)
        self._anybody: tuple[str, str] | None = None
        self._anybody = self._parts(ANYBODY)

    def of(self, *subscribers: Subscriber) -> str | None:
        """Return the identity of a connection with these subscribers, one for each stream.

        Return None if there is no secret and a subscriber is not anonymous.
        """
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
        anybody = owner is None and context is None and member is None and not subscriber.labels
        if anybody and self._anybody is not None:
            return self._anybody
        if not anybody and self._key is None:
            return None
        who = "" if owner is None and member is None else self._digest("who", canonical([owner, member]))
        try:
            labels = [subscriber.labels] if subscriber.labels else []
            return who, self._digest("what", canonical([owner, context, member, *labels]))
        except BaseException as error:  # Unknown, one of the context's own code, or a context that contains itself
            self._complain(kind_of(context), error)
            return who, ""

    def _complain(self, kind: str, error: BaseException) -> None:
        """Warn once for each type of context, because this happens with every connection."""
        if self._complaints.due(kind) is not None:
            why = "" if issubclass(type(error), Unknown) else f" ({described(error)})"
            logger.warning(
                "a context of type %s cannot be compared%s, so tabs with one do not share a connection. Give it a method %s",
                kind,
                why,
                METHOD,
            )

    def _digest(self, use: str, text: str, size: int = _SIZE) -> str:
        message = f"pgbus.identity.{use}\0{text}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key or b"anybody", message, sha256).hexdigest()[:size]


def canonical(value: Any) -> str:
    """Return a text that is the same for equal values in every process. Raises :class:`Unknown` for any other value.

    It takes None, bool, numbers, texts, bytes, dates and times, UUIDs, enums, lists, tuples, sets, mappings, dataclasses (without
    the fields that have ``compare=False``), SimpleNamespace, and objects with a method ``__pgbus_identity__``.
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
        # With the type and as texts, so that True, 1, 1.0 and "1" are four different values, and a number can have any size.
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
