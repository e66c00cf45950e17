"""Casts the values of settings: durations, sizes, switches, lists and addresses.

Each field of `Settings` has a `Kind`. ``Kind.cast`` takes text (from a variable or a flag) or a native value (from a keyword or
TOML). It raises ValueError for a value that is not allowed. Casting a value twice gives the same as casting it once. Values are
refused, never repaired; only white space around text is removed, because files and shells leave it there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Generic, NoReturn, TypeVar

D = TypeVar("D")
T = TypeVar("T")
N = TypeVar("N", int, float)

HIDDEN = "***"
"""The replacement for a secret in errors and in ``repr``."""

_SECONDS = {unit: Decimal(size) for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1), ("ms", "0.001"))}
_BYTES = {"G": 1024**3, "M": 1024**2, "K": 1024, "": 1}
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

_NUMBER = r"\d+(?:\.\d+)?|\.\d+"
_DURATION = re.compile(rf"({_NUMBER})\s*(d|h|m|s|ms)?", re.ASCII)
_SIZE = re.compile(r"(\d+)\s*(?:b|([kmg])i?b)?", re.ASCII | re.IGNORECASE)


def redact_url(url: object) -> str:
    """Return ``url``, a URL or a key=value DSN, with ``***`` in place of all that is or may be a password.

    Only the parts that are understood are shown. So a password with an unescaped ``@`` or ``/`` stays hidden too, because
    `_PLAIN_URL` allows only one ``@``, which ends the password.
    """
    if not isinstance(url, str):
        return HIDDEN
    scheme, found, _ = url.partition("://")
    if not (found and re.fullmatch(r"\s*[a-zA-Z][\w+.-]*", scheme)):
        return _redact_dsn(url)
    match = _PLAIN_URL.fullmatch(url.strip())
    if match is None:
        return f"{scheme.strip()}://{HIDDEN}"
    user, password, address, query = match.groups()
    shown = "" if user is None else f"{user}{f':{HIDDEN}' if password else ''}@"
    pairs = [_redact_pair(*pair.partition("=")[::2]) for pair in query.split("&")] if query else []
    return f"{scheme.strip()}://{shown}{address}" + (f"?{'&'.join(pairs)}" if pairs else "")


_HOST = r"(?:[\w.%*-]+|\[[\da-fA-F:.%]+\])?(?::\d*)?"
_PLAIN_URL = re.compile(rf"[^:]+://(?:([\w.%+~-]*)(:[^@/?#]*)?@)?({_HOST}(?:,{_HOST})*(?:/[\w./%~-]*)?)(?:\?([^@#]*))?")
_PAIR = re.compile(r"(\w+)\s*=\s*('(?:\\.|[^'\\])*'|(?!')(?:\\.|[^\s\\])*)", re.DOTALL)
_SHOWN = {"host", "hostaddr", "port", "dbname", "user", "sslmode", "application_name", "target_session_attrs"}
_NAMED = {"password", "sslpassword", "options"}


def _redact_dsn(dsn: str) -> str:
    if _PAIR.sub("", dsn).strip():
        return HIDDEN
    return " ".join(_redact_pair(key, value) for key, value in _PAIR.findall(dsn))


def _redact_pair(key: str, value: str) -> str:
    if key in _SHOWN and re.fullmatch(r"('?)[\w.,/%-]*\1", value):
        return f"{key}={value}"
    # An unknown key may be the rest of a password that contains a separator.
    return f"{key}={HIDDEN}" if key in _SHOWN | _NAMED else HIDDEN


def presentable(value: object) -> object:
    """Return ``value`` as errors show it. Passwords are hidden: a URL or a table in a wrong place may contain one."""
    if isinstance(value, dict):
        return HIDDEN
    if isinstance(value, (list, tuple)):
        return type(value)(presentable(item) for item in value)
    if isinstance(value, str) and ("://" in value or "password" in value.lower()):
        return redact_url(value)
    return value


@dataclass(frozen=True)
class Kind(Generic[T]):
    """The values that a setting takes.

    ``cast`` turns a given value into the setting's. ``allowed`` describes the allowed values in errors, and ``limits`` does so
    briefly in tables and in ``--help``, where ``metavar`` is the placeholder. ``text`` turns a value into text, and ``hide`` turns
    it into the form that errors and ``repr`` show.
    """

    metavar: str
    cast: Callable[[object], T]
    allowed: str
    limits: str = ""
    text: Callable[[T], str] = str
    hide: Callable[[object], object] = presentable


def about(
    kind: Kind[Any], group: str, flag: str | None, meaning: str, *, words: str = "", repeatable: bool = False
) -> dict[str, Any]:
    """The metadata of a setting's field. ``words`` describe the default if its value does not."""
    return {"kind": kind, "group": group, "flag": flag, "help": meaning, "words": words, "repeatable": repeatable}


def setting(default: D, kind: Kind[T], *place: Any, **more: Any) -> T | D:
    """A field of the table of settings. Its type is that of its ``kind`` and of its default."""
    return field(default=default, metadata=about(kind, *place, **more))


def duration(low: float, high: float) -> Kind[float]:
    """Float seconds from ``low`` to ``high``. Text may have a unit."""
    return _ranged(
        "DURATION", "a duration", parse_duration, format_duration, low, high, " (in seconds, or with ms, s, m, h or d)"
    )


def size(low: int, high: int | None = None) -> Kind[int]:
    """A whole number of bytes from ``low`` to ``high``. kB, MB and GB are powers of 1024, as in postgresql.conf."""
    return _ranged("SIZE", "a size", parse_size, format_size, low, high, " (in bytes, or with kB, MB or GB)")


def integer(low: int, high: int | None = None) -> Kind[int]:
    """A whole number from ``low`` to ``high``."""
    return _ranged("N", "a whole number", parse_integer, str, low, high)


def number(low: float, high: float) -> Kind[float]:
    """Any number from ``low`` to ``high``."""
    return _ranged("X", "a number", _parse_number, "{:g}".format, low, high)


def switch() -> Kind[bool]:
    """True or False."""
    allowed = "true or false, yes or no, on or off, 1 or 0"
    return Kind("BOOL", _parse_switch, allowed, text=lambda value: str(value).lower())


def choice(*words: str) -> Kind[str]:
    """One of ``words``, which are lower case. Upper case is accepted too."""

    def cast(value: object) -> str:
        word = _parse_text(value).lower()
        return word if word in words else _refuse()

    allowed = f"{', '.join(words[:-1])} or {words[-1]}"
    return Kind(f"{{{','.join(words)}}}", cast, allowed, allowed)


def text(
    metavar: str, allowed: str, check: Callable[[str], bool], hide: Callable[[object], object] = presentable
) -> Kind[str]:
    """A text for which ``check`` is true."""

    def cast(value: object) -> str:
        word = _parse_text(value)
        return word if check(word) else _refuse()

    return Kind(metavar, cast, allowed, hide=hide)


def texts(
    metavar: str, allowed: str, check: Callable[[str], bool], hide: Callable[[object], object] = presentable
) -> Kind[tuple[str, ...]]:
    """A list of texts for which ``check`` is true. As one text, it is a JSON array or separated by commas."""

    def cast(value: object) -> tuple[str, ...]:
        words = tuple(_parse_text(item) for item in _split(value))
        return words if all(check(word) for word in words) else _refuse()

    several = "several as a list, a JSON array, or a text separated by commas"
    return Kind(metavar, cast, f"{allowed}; {several}", "", ",".join, hide)


def matches(pattern: str) -> Callable[[str], bool]:
    """A check: the whole text matches ``pattern``."""
    compiled = re.compile(pattern, re.ASCII | re.DOTALL)
    return lambda word: compiled.fullmatch(word) is not None


def database_url() -> Kind[str]:
    """A connection string of libpq: a URL or a DSN (PostgreSQL's manual, "Connection Strings"). Passwords are hidden."""
    allowed = "postgresql://user:password@host/database, postgres://… or a DSN such as 'host=… dbname=…'"
    return text("URL", allowed, matches(r"postgres(?:ql)?://[^\0]*|\w+\s*=[^\0]*"), redact_url)


def directory() -> Kind[str]:
    """The path of a directory, which need not exist. A leading ``~`` is the user's home directory."""

    def cast(value: object) -> str:
        path = os.path.expanduser(os.fsdecode(value) if isinstance(value, os.PathLike) else _parse_text(value))
        return path if path and "\0" not in path else _refuse()

    return Kind("DIR", cast, "the path of a directory")


def host() -> Kind[str]:
    """A host name or an IP address to bind to, without a port."""
    return text("HOST", "a name or an address, without a port", matches(r"[\w.-]+|(?=.*:.*:)[\da-fA-F:.]+(?:%\w+)?"))


def mount_path() -> Kind[str]:
    """A path of unreserved characters (RFC 3986, section 2.3), which proxies and browsers never encode differently."""
    allowed = "a path that starts with / and does not end with one, of letters, digits and . _ ~ -"
    return text("PATH", allowed, matches(r"(?:/(?!\.{1,2}(?:/|$))[\w.~-]+)+"))


def reference() -> Kind[str]:
    """The name of a Python object: its module, a colon, and its name there."""
    return text(
        "MODULE:NAME", "a module and a name in it, such as app:authorize", matches(r"\w+(?:\.\w+)*:\w+(?:\.\w+)*")
    )


def globs() -> Kind[tuple[str, ...]]:
    """Patterns of stream names."""
    return texts("GLOB", "patterns such as demo:*, without control characters", matches(r"[^\x00-\x1f\x7f]+"))


def secrets(least: int) -> Kind[tuple[str, ...]]:
    """Keys of at least ``least`` characters, never shown."""
    return texts("SECRET", f"at least {least} characters each", lambda word: len(word) >= least, _hide)


def token(least: int) -> Kind[str]:
    """A bearer token, never shown. It is visible ASCII, because the header ``Authorization`` can carry nothing else."""
    allowed = f"at least {least} visible ASCII characters without spaces"
    return text("TOKEN", allowed, matches(rf"[!-~]{{{least},}}"), _hide)


def origins() -> Kind[tuple[str, ...]]:
    """Web origins as browsers write them in the header ``Origin`` (RFC 6454, section 6.2)."""
    allowed = "scheme://host[:port] in lower case, without a path, a wildcard or the scheme's own port"
    return texts("ORIGIN", allowed, _is_origin)


_is_any_origin = matches(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")
_has_own_port = matches(r"http://.*:80|https://.*:443")


def _is_origin(word: str) -> bool:
    # A browser leaves out the scheme's own port, so an origin with that port would never match.
    return _is_any_origin(word) and not _has_own_port(word)


def parse_duration(value: object) -> float:
    """Return seconds, from a number or a text such as ``15``, ``15s``, ``500ms``, ``10m``, ``1h`` or ``7d``."""
    if not isinstance(value, str):
        return _parse_number(value)
    match = _DURATION.fullmatch(value.strip()) or _refuse()
    return float(Decimal(match[1]) * _SECONDS[match[2] or "s"])


def format_duration(seconds: float) -> str:
    """Return ``seconds`` as text for `parse_duration`, in the largest unit that leaves no fraction."""
    exact = Decimal(repr(float(seconds)))
    if not exact:
        return "0"
    unit = next((unit for unit, length in _SECONDS.items() if exact % length == 0), None)
    return f"{exact / _SECONDS[unit]:.0f}{unit}" if unit else f"{exact:f}s"


def parse_size(value: object) -> int:
    """Return bytes, from a whole number or a text such as ``65536``, ``64kB``, ``1MB`` or ``1MiB``."""
    if not isinstance(value, str):
        return parse_integer(value)
    match = _SIZE.fullmatch(value.strip()) or _refuse()
    return int(match[1]) * _BYTES[(match[2] or "").upper()]


def format_size(size: int) -> str:
    """Return ``size``, in bytes, as text for `parse_size`, in the largest unit that leaves no fraction."""
    if not size:
        return "0"
    prefix = next(prefix for prefix, factor in _BYTES.items() if size % factor == 0)
    return f"{size // _BYTES[prefix]}{prefix and prefix + 'i'}B"


def parse_integer(value: object) -> int:
    """Return a whole number. ``1_000``, ``1e3`` and True are refused."""
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value.strip(), re.ASCII):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else _refuse()


def _parse_number(value: object) -> float:
    if isinstance(value, str) and re.fullmatch(_NUMBER, value.strip(), re.ASCII):
        return float(value)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else _refuse()


def _parse_switch(value: object) -> bool:
    word = str(value).strip().lower() if isinstance(value, (str, int)) else ""
    return _SWITCH[word] if word in _SWITCH else _refuse()


def _parse_text(value: object) -> str:
    return value.strip() if isinstance(value, str) else _refuse()


def json_list(value: str) -> list[Any] | None:
    """Return the list in a text that is a JSON array of texts; None for any other text, such as ``[ab]*``."""
    try:
        found = json.loads(value) if value.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return found if found is not None and all(isinstance(item, str) for item in found) else None


def _split(value: object) -> list[Any] | tuple[Any, ...]:
    if isinstance(value, str):
        words = value.split(",") if value.strip() else ()
        return words if (found := json_list(value)) is None else found
    return value if isinstance(value, (list, tuple)) else _refuse()


def _ranged(
    metavar: str,
    noun: str,
    parse: Callable[[object], N],
    show: Callable[[N], str],
    low: N,
    high: N | None,
    units: str = "",
) -> Kind[N]:
    def cast(value: object) -> N:
        result = parse(value)
        # This form refuses NaN, for which all comparisons are false.
        inside = low <= result and (high is None or result <= high)
        return result if inside else _refuse()

    limits = f"at least {show(low)}" if high is None else f"{show(low)} to {show(high)}"
    joined = f"of {limits}" if high is None else f"from {limits}"
    return Kind(metavar, cast, f"{noun} {joined}{units}", limits, show)


def _hide(value: object) -> object:
    return HIDDEN


def _refuse() -> NoReturn:
    raise ValueError
