"""Names of streams and events, and signed stream names.

A name is never normalised: its bytes are the stream. A signed name carries the name and, if wanted, when it expires; it is
made by the application and presented by a browser (https://itsdangerous.palletsprojects.com has the format).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from itsdangerous import BadData, URLSafeSerializer

from ..errors import BadToken, InvalidArgument, InvalidEvent, InvalidName, TokenExpired

MAX_NAME_BYTES = 255
CONTROL_PREFIX = "pgbus:"
"""What the event of a control frame starts with; an application's event may not."""

_SALT = "pgbus.stream"

_SIGNED = re.compile(r"(?:Wy[I-L]|\.eJ)[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{27,}")
# The JSON that is signed begins with '["', or with what zlib begins with; behind the dot comes the signature.


def check_name(name: str) -> str:
    """Return ``name``, or raise :class:`InvalidName`."""
    if not isinstance(name, str):
        raise InvalidName(f"a stream name is text, not {type(name).__name__}")
    size = len(_utf8(name, "stream name", InvalidName))
    if not 1 <= size <= MAX_NAME_BYTES:
        raise InvalidName(f"a stream name has 1 to {MAX_NAME_BYTES} bytes in UTF-8, this one has {size}")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise InvalidName(f"a stream name has no control characters: {name!r}")
    return name


def check_event(event: str | None) -> str | None:
    """Return ``event``, with None for an empty one, or raise :class:`InvalidEvent`."""
    if event is None or event == "":
        return None
    if not isinstance(event, str):
        raise InvalidEvent(f"an event name is text, not {type(event).__name__}")
    if any(character in event for character in "\r\n\0"):
        raise InvalidEvent(f"an event name has no line break or NUL: {event[:80]!r}")
    if event.startswith(CONTROL_PREFIX):
        raise InvalidEvent(f"event names that start with {CONTROL_PREFIX!r} are the stream's own: {event[:80]!r}")
    _utf8(event, "event name", InvalidEvent)
    return event


def check_data(data: str) -> str:
    """Return ``data``, or raise :class:`InvalidArgument`: text that PostgreSQL can store."""
    if not isinstance(data, str):
        raise InvalidArgument(f"data is text, not {type(data).__name__}; encode it first, for example with json.dumps")
    if "\0" in data:
        raise InvalidArgument("data has a NUL character in it, which PostgreSQL cannot store")
    _utf8(data, "data", InvalidArgument)
    return data


def check_label(label: str | None, what: str) -> str | None:
    """Return ``label``, which is a ``what`` such as a key, or raise :class:`InvalidArgument`: text for PostgreSQL, or None."""
    if label is None:
        return None
    if not isinstance(label, str):
        raise InvalidArgument(f"{what} is text or None, not {type(label).__name__}")
    if "\0" in label:
        raise InvalidArgument(f"{what} has a NUL character in it, which PostgreSQL cannot store")
    _utf8(label, what, InvalidArgument)
    return label


def check_keys(keys: Sequence[str | None] | None, count: int) -> list[str | None] | None:
    """Return ``keys``, one for each of so many messages, or raise :class:`InvalidArgument`."""
    if keys is None:
        return None
    if isinstance(keys, str) or len(keys) != count:
        raise InvalidArgument(f"keys is a list with one for each of the {count} messages, None for one without")
    return [check_label(key, "key") for key in keys]


def _utf8(text: str, what: str, error: type[InvalidArgument]) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise error(f"{what} has a lone surrogate in it, which UTF-8 cannot say: {text[:80]!r}") from None


def looks_signed(text: str) -> bool:
    """Whether ``text`` has the form of a signed name, whoever signed it."""
    return _SIGNED.fullmatch(text) is not None


def hide_signed(text: str) -> str:
    """``text`` for a log: with a signed name in it, which lets in whoever has it, left out."""
    return _SIGNED.sub("<signed>", text)


class PublicNames:
    """The names that may be watched without a signature: shell patterns such as ``demo:*``, case-sensitive."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)

    def __contains__(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


class Signer:
    """Makes and verifies signed stream names. ``secrets`` are oldest first: the newest signs, all of them verify."""

    def __init__(self, secrets: Iterable[str]) -> None:
        keys = list(secrets)
        self._serializer = URLSafeSerializer(keys, salt=_SALT) if keys else None

    def sign(self, name: str, expires_at: float | None = None) -> str:
        """The signed name, safe in a URL; ``expires_at`` in Unix seconds.

        Raises :class:`InvalidName`, and :class:`InvalidArgument` when there is no secret.
        """
        if self._serializer is None:
            raise InvalidArgument("signing needs a secret: set PGBUS_SECRET, or pass secret=")
        check_name(name)
        token = self._serializer.dumps([name] if expires_at is None else [name, expires_at])
        return token if isinstance(token, str) else token.decode("ascii")

    def verify(self, token: str, now: float) -> tuple[str, float | None]:
        """The name and expiry in a signed name; ``now`` in Unix seconds.

        Raises :class:`BadToken`, or its :class:`TokenExpired`.
        """
        if self._serializer is None:
            raise BadToken("no secret is configured")
        try:
            signed = self._serializer.loads(token)
            if not isinstance(signed, list):
                raise TypeError(signed)
            name, *rest = signed
            expires_at = float(rest[0]) if rest else None
            check_name(name)
        except (BadData, ValueError, TypeError):
            raise BadToken("the signed stream name does not verify") from None
        if expires_at is not None and now >= expires_at:
            raise TokenExpired(expires_at)
        return name, expires_at
