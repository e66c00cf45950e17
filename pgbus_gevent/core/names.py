"""Names of streams and events, and signed stream names.

A name is never normalised: two names are the same stream only if their bytes are equal. A signed name holds the name and, if
wanted, its expiry. The application makes it, and a browser presents it; https://itsdangerous.palletsprojects.com has the format.
"""

from __future__ import annotations

import hmac
import re
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from hashlib import sha256

from itsdangerous import BadData, URLSafeSerializer

from ..errors import BadToken, InvalidArgument, InvalidEvent, InvalidName, TokenExpired

MAX_NAME_BYTES = 255
MAX_KEY_BYTES = 1000
CONTROL_PREFIX = "pgbus:"
"""The prefix of the events of control frames. An application's event may not start with it."""

LAST_TIME = 10**12
"""The latest time that is accepted, in Unix seconds. A larger number is probably in another unit."""

LONGEST_LIFETIME = 100 * 366 * 86400
"""The longest lifetime that is accepted, in seconds."""

_SALT = "pgbus.stream"

# A signed name is base64 of JSON that starts with '["', or of compressed JSON after a dot; then a dot and the signature follow.
_SIGNED = re.compile(r"(?:Wy[I-L]|\.eJ)[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{27,}")
# For a search: whole runs of characters that are long enough to hold a signed name, so that each character is read once.
_DOTTED = re.compile(r"(?<![A-Za-z0-9_.-])[A-Za-z0-9_.-]{32,}")
_BEGINNING = re.compile(r"Wy[I-L][A-Za-z0-9_-]")
_LEAST_SIGNATURE = 27
# Percent-encoded letters, digits and - . _ ~ %. Other characters stay encoded: there may be thousands, and each costs a call.
_ESCAPED = re.compile(r"%(2[5DdEe]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|5[Ff]|7[Ee])")


def check_name(name: str) -> str:
    """Return ``name``, or raise :class:`InvalidName`."""
    if not isinstance(name, str):
        raise InvalidName(f"a stream name is text, not {type(name).__name__}")
    size = len(utf8(name, "stream name", InvalidName))
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
        raise InvalidEvent(
            f"event names that start with {CONTROL_PREFIX!r} are reserved for control frames: choose another for {event[:80]!r}"
        )
    utf8(event, "event name", InvalidEvent)
    return event


def check_data(data: str) -> str:
    """Return ``data``, or raise :class:`InvalidArgument`: text that PostgreSQL can store."""
    if not isinstance(data, str):
        raise InvalidArgument(f"data is text, not {type(data).__name__}; encode it first, for example with json.dumps")
    if "\0" in data:
        raise InvalidArgument("data has a NUL character in it, which PostgreSQL cannot store")
    utf8(data, "data")
    return data


def check_texts(data: Sequence[str]) -> list[str]:
    """Return a list of data, each as :func:`check_data` does, or raise :class:`InvalidArgument`."""
    if isinstance(data, str):
        raise InvalidArgument("broadcast_many takes a list of texts, but was given one text: call broadcast for that")
    return [check_data(text) for text in data]


def check_ephemeral(ephemeral: bool, key: str | None) -> None:
    """Raise :class:`InvalidArgument` if ``ephemeral`` is not a bool, or cannot be used together with the key."""
    if ephemeral not in (True, False):  # "no" would be true
        raise InvalidArgument(f"ephemeral={ephemeral!r:.80} is neither True nor False")
    if ephemeral and key is not None:
        raise InvalidArgument("an ephemeral message is not stored, so it cannot have a key: leave out key=")


def check_label(label: str | None, what: str) -> str | None:
    """Return ``label``, which errors call ``what``, or raise :class:`InvalidArgument`: a text for PostgreSQL, or None.

    An empty text is refused. It usually comes from a name that was not found, and would show a message to everybody or to nobody.
    """
    if label is None:
        return None
    if not isinstance(label, str):
        raise InvalidArgument(f"{what} is text or None, not {type(label).__name__}")
    if not label or "\0" in label:
        raise InvalidArgument(f"{what} is empty, or has a NUL character in it: leave it out, or give a text")
    utf8(label, what)
    return label


def check_key(key: str | None) -> str | None:
    """Return ``key``, an idempotency key, or raise :class:`InvalidArgument`: a label of at most 1000 bytes, or None."""
    size = len((check_label(key, "key") or "").encode())
    if size > MAX_KEY_BYTES:
        raise InvalidArgument(f"bad key of {size} bytes: it must be 1 to {MAX_KEY_BYTES} bytes of UTF-8")
    return key


def check_owner(owner: str) -> str:
    """Return ``owner``, or raise :class:`InvalidArgument`: a text for PostgreSQL that is not empty."""
    if not isinstance(owner, str) or not owner or "\0" in owner:
        raise InvalidArgument(f"owner is a text that is not empty, without NUL characters, not {_quoted(owner)}")
    utf8(owner, "owner")
    return owner


def check_time(at: float, what: str) -> float:
    """Return ``at``, a time that ``what`` names, or raise :class:`InvalidArgument`: Unix seconds, up to 10^12."""
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not 0 <= at <= LAST_TIME:
        raise InvalidArgument(f"{what} is a time in Unix seconds, from 0 to {LAST_TIME}, not {_quoted(at)}")
    return float(at)


def check_lifetime(seconds: float, what: str) -> float:
    """Return ``seconds``, which ``what`` names, or raise :class:`InvalidArgument`: more than 0, at most a hundred years."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= LONGEST_LIFETIME:
        raise InvalidArgument(
            f"{what} is a number of seconds, more than 0 and at most {LONGEST_LIFETIME} (a hundred years), not"
            f" {_quoted(seconds)}"
        )
    return float(seconds)


def expiry(expires_in: float | None, expires_at: float | None, now: float) -> float | None:
    """Return when a signed name expires, in Unix seconds, or None for never. ``expires_in`` counts from the time ``now``.

    Raises :class:`InvalidArgument` if both are given, or if one is not allowed.
    """
    if expires_in is not None and expires_at is not None:
        raise InvalidArgument("a signed name takes expires_in= or expires_at=, but was given both")
    if expires_in is not None:
        return now + check_lifetime(expires_in, "expires_in")
    if expires_at is None:
        return None
    at = check_time(expires_at, "expires_at")
    return int(at) if at.is_integer() else at  # the same token for 1764000000 and 1764000000.0


def _quoted(value: object) -> str:
    """Return a wrong value as text for an error. For other types only the type is shown, because their text may be anything."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a larger number"  # Python refuses to print integers of thousands of digits
    return f"{value!r:.80}" if isinstance(value, (bool, int, float, str)) else f"a {type(value).__name__}"


def check_keys(keys: Sequence[str | None] | None, count: int) -> list[str | None] | None:
    """Return ``keys``, one for each of ``count`` messages, or raise :class:`InvalidArgument`."""
    if keys is None:
        return None
    if isinstance(keys, str) or len(keys) != count:
        raise InvalidArgument(f"keys is a list with one for each of the {count} messages, None for one without")
    return [check_key(key) for key in keys]


def utf8(text: str, what: str, error: type[InvalidArgument] = InvalidArgument) -> bytes:
    """Return ``text``, which errors call ``what``, as UTF-8, or raise ``error``."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise error(f"{what} has a lone surrogate in it, which UTF-8 cannot encode: {text[:80]!r}") from None


def derived_secret(key: str) -> str:
    """Return a secret for signed names that is made from a framework's own key, which it does not reveal."""
    return hmac.new(key.encode("utf-8", "surrogatepass"), b"pgbus_gevent.secret", sha256).hexdigest()


def looks_signed(text: str) -> bool:
    """Whether ``text`` has the form of a signed name. The signature is not checked."""
    return _SIGNED.fullmatch(text) is not None


def hide_signed(text: str) -> str:
    """Return ``text`` for a log, without its signed names, because a signed name grants access to its stream.

    Percent-encoded signed names are found too, so characters that need no percent-encoding are shown decoded. The time is linear
    in the length of ``text``.
    """
    for _ in range(3):  # a signed name may be percent-encoded more than once
        text, found = _ESCAPED.subn(lambda match: chr(int(match[1], 16)), text)
        if not found:
            break
    return _DOTTED.sub(lambda match: _hide(match[0]), text)


def _hide(dotted: str) -> str:
    """Return a run of letters, digits and dots without its signed names."""
    parts = dotted.split(".")
    shown: list[str] = []
    n = 0
    while n < len(parts):
        part = parts[n]
        signed = n + 1 < len(parts) and len(parts[n + 1]) >= _LEAST_SIGNATURE
        start = _BEGINNING.search(part) if signed else None
        if start is not None:
            shown.append(f"{part[: start.start()]}<signed>")
            n += 2
        elif signed and n and len(part) > 2 and part.startswith("eJ"):
            # The dot before this part belongs to the signed name.
            shown[-1] += "<signed>"
            n += 2
        else:
            shown.append(part)
            n += 1
    return ".".join(shown)


class PublicNames:
    """The streams that clients may name without a signature, as case-sensitive shell patterns such as ``demo:*``."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(fnmatchcase(name, pattern) for pattern in self.patterns)


class Signer:
    """Makes and verifies signed names. ``secrets`` are in order, the oldest first: the newest one signs, and each one verifies."""

    def __init__(self, secrets: Iterable[str]) -> None:
        keys = list(secrets)
        self._serializer = URLSafeSerializer(keys, salt=_SALT) if keys else None

    def sign(self, name: str, expires_at: float | None = None) -> str:
        """Return the signed name, which is safe in a URL. ``expires_at`` is in Unix seconds; None means that it never expires.

        Raises :class:`InvalidName`, and :class:`InvalidArgument` for a bad time or if there is no secret.
        """
        if self._serializer is None:
            raise InvalidArgument("signing needs a secret: set PGBUS_SECRET, or pass secret=")
        check_name(name)
        if expires_at is not None:
            check_time(expires_at, "expires_at")
        token = self._serializer.dumps([name] if expires_at is None else [name, expires_at])
        return token if isinstance(token, str) else token.decode("ascii")

    def verify(self, token: str, now: float) -> tuple[str, float | None]:
        """Return the name in a signed name, and its expiry or None. ``now`` and the expiry are in Unix seconds.

        Raises :class:`BadToken` if it does not verify, and its subclass :class:`TokenExpired` if it has expired.
        """
        if self._serializer is None:
            raise BadToken("no secret is configured")
        try:
            signed = self._serializer.loads(token)
            if not isinstance(signed, list):
                raise TypeError(signed)
            name, *rest = signed
            expires_at = check_time(rest[0], "expires_at") if rest else None
            check_name(name)
        except (BadData, ValueError, TypeError, RecursionError):
            raise BadToken("the signed stream name does not verify") from None
        if expires_at is not None and now >= expires_at:
            raise TokenExpired(expires_at)
        return name, expires_at
