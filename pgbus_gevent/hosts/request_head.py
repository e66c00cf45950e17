"""The head of an HTTP/1 request: reads it within a limit, and checks it strictly by RFC 9112.

A request is smuggled past a proxy in a head that two parsers read differently. So a head that can be read in two ways is refused;
nothing is repaired.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import punctuation
from typing import Protocol
from urllib.parse import quote

from ..core.names import hide_signed

MAX_HEADERS = 99
"""The most header lines. With the blank line it is the limit of the standard library's parser."""

MAX_SHOWN = 2048
"""The most characters of a path that a log shows."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# A name, an IPv4 address, or an IPv6 address in brackets, with an optional port (RFC 9110, section 4.2). User names are refused.
_AUTHORITY = rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(?::[0-9]{0,5})?"
# Fragments are refused, because some parsers end the path there and others do not.
_TARGET = rb"/[^\x00-\x20#\x7f]*|[Hh][Tt][Tt][Pp][Ss]?://" + _AUTHORITY + rb"(?:[/?][^\x00-\x20#\x7f]*)?"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") (" + _TARGET + rb") (HTTP/1\.[01])\r\n")
_ABSOLUTE = re.compile(rb"[A-Za-z]+://(" + _AUTHORITY + rb")(.*)", re.DOTALL)
_ENCODED = [bytes([byte]) if byte < 0x80 else b"%%%02X" % byte for byte in range(256)]
_HOST = re.compile(_AUTHORITY)
# Refused are: a space before the colon, a line that continues another, a CR inside a line, and a line that ends in a lone LF.
# Parsers have disagreed about each of them. The only control character in a value is the tab (RFC 9110, section 5.5).
_HEADER = re.compile(rb"(" + _TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n")
_SHOWN = punctuation.replace('"', "")
_LENGTH = re.compile(r"[0-9]{1,15}")


class Readable(Protocol):
    """A file from which a head can be read."""

    def readline(self, limit: int, /) -> bytes: ...


class BadHead(Exception):
    """The head is refused with the HTTP status ``status``. ``reason`` is text for the client; it repeats nothing of the head."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


def read_head(file: Readable, limit: int) -> list[bytes]:
    """Return the request line and the header lines, without the blank line; nothing if the client leaves before the end.

    Raises :class:`BadHead` if there are more than ``limit`` bytes, or a line does not end in CRLF.
    """
    lines: list[bytes] = []
    left = limit
    while True:
        line = file.readline(left + 1)
        left -= len(line)
        if left < 0:
            raise _too_large(lines, limit)
        if not line.endswith(b"\n"):
            return []
        if line == b"\r\n":
            break
        if not line.endswith(b"\r\n"):
            raise BadHead("a line of the head does not end in CRLF")
        lines.append(line)
    return lines or [line]


def _too_large(lines: list[bytes], limit: int) -> BadHead:
    return BadHead(f"the head of the request has more than {limit} bytes", 400 if lines else 414)


class Fields:
    """The fields of a head in their order, with the interface that gevent's handler uses.

    The standard library's message class would take a sixth of the time of a connect. Names are in lower case. Values are decoded as
    Latin-1, without the white space around them.
    """

    __slots__ = ("pairs",)

    status = ""  # gevent's handler reads it; empty means that there is no error

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs

    def get(self, name: str, default: str | None = None) -> str | None:
        """The first value of the field ``name``, in any case."""
        name = name.lower()
        return next((value for key, value in self.pairs if key == name), default)

    getheader = get

    @property
    def says_close(self) -> bool:
        """Whether one of the options in Connection is ``close`` (RFC 9112, section 9.6)."""
        options = ",".join(value for key, value in self.pairs if key == "connection")
        return "close" in (option.strip() for option in options.lower().split(","))

    @property
    def typeheader(self) -> str | None:
        """The value of Content-Type."""
        return self.get("content-type")

    def items(self) -> list[tuple[str, str]]:
        """All fields, for gunicorn's access log."""
        return self.pairs

    def environ(self) -> Iterator[tuple[str, str]]:
        """The fields with their ``HTTP_`` names in WSGI, without Content-Type and Content-Length, which have other names.

        A field with an underscore in its name is left out, because its WSGI name would be that of the field with a hyphen, which a
        proxy may have removed on purpose.
        """
        for name, value in self.pairs:
            if "_" not in name and name not in ("content-type", "content-length"):
                yield "HTTP_" + name.replace("-", "_").upper(), value

    def __delitem__(self, name: str) -> None:
        # The handler would delete a Content-Length beside a Transfer-Encoding, but check_head refuses a head with both.
        raise KeyError(name)


def check_head(lines: list[bytes]) -> tuple[bytes, Fields]:
    """Return the request line and the fields of a head. Raises :class:`BadHead` if the head can be read in more than one way.

    If the target is an absolute URL, it is replaced by its path, and Host by its authority (RFC 9112, section 3.2.2). Bytes of the
    target that are not ASCII are percent-encoded, which is what they mean to every server.
    """
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise BadHead("the request line is not METHOD /path HTTP/1.1")
    pairs = _pairs(lines[1:])
    _check_framing(pairs, is_1_1=match[3] == b"HTTP/1.1")
    absolute = _ABSOLUTE.fullmatch(match[2])
    if absolute is None:
        # gevent splits the line at what Unicode calls white space, so it would cut a target off at the bytes 85 and A0.
        line = lines[0] if lines[0].isascii() else b" ".join([match[1], _encoded(match[2]), match[3]]) + b"\r\n"
        return line, Fields(pairs)
    path = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
    host = ("host", absolute[1].decode("latin-1"))
    return b" ".join([match[1], _encoded(path), match[3]]) + b"\r\n", Fields(
        [host, *(pair for pair in pairs if pair[0] != "host")]
    )


def _encoded(target: bytes) -> bytes:
    return b"".join([_ENCODED[byte] for byte in target])


def _pairs(lines: list[bytes]) -> list[tuple[str, str]]:
    if len(lines) > MAX_HEADERS:
        raise BadHead(f"there are more than {MAX_HEADERS} header lines")
    pairs = []
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise BadHead("a header line is malformed")
        # Strip here, because a pattern that does it takes quadratic time on many spaces.
        pairs.append((match[1].decode("latin-1").lower(), match[2].decode("latin-1").strip(" \t")))
    return pairs


def _check_framing(pairs: list[tuple[str, str]], *, is_1_1: bool) -> None:
    """Refuse a head that does not say exactly once where the body ends and which host is meant."""
    lengths, encodings, hosts = (
        [value for key, value in pairs if key == name] for name in ("content-length", "transfer-encoding", "host")
    )
    if len(hosts) > 1 or (is_1_1 and not hosts):
        raise BadHead("there must be exactly one Host")
    # An empty Host is allowed; it is for targets without an authority (RFC 9110, section 7.2).
    if hosts and hosts[0] and not _HOST.fullmatch(hosts[0].encode("latin-1")):
        raise BadHead("the Host is not a name or an address with an optional port")
    if lengths and encodings:
        raise BadHead("there are both a Content-Length and a Transfer-Encoding")
    if lengths and not (len(lengths) == 1 and _LENGTH.fullmatch(lengths[0])):
        raise BadHead("the Content-Length is malformed")
    if encodings and not (is_1_1 and [value.lower() for value in encodings] == ["chunked"]):
        raise BadHead("the Transfer-Encoding is not chunked, or the request is not HTTP/1.1")


def shown_path(target: str) -> str:
    """A target as logs show it: visible ASCII, without the query and without signed names, which would give access.

    A path that is longer than any of ours is cut off, because a client could make a log line three times as long as its request.
    """
    path, end = target.partition("?")[0], ""
    if len(path) > MAX_SHOWN:
        path, end = path[:MAX_SHOWN], "..."
    return hide_signed(quote(path.encode("latin-1"), safe=_SHOWN)) + end
