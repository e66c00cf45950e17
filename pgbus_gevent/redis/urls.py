"""The addresses of Redis: one server, a master that Sentinels know, or a cluster."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from ..errors import InvalidSetting
from ..settings.wake import hide

ALLOWED = (
    "give redis://host:6379/0, rediss:// for TLS, redis+sentinel://host1,host2/name or redis+cluster://host1,host2;"
    " user:password@ may stand before the hosts"
)

_URL = re.compile(
    r"redis(?P<tls>s?)(?:\+(?P<kind>cluster|sentinel))?://(?:(?P<login>.*)@)?(?P<hosts>[^/?@]*)(?P<path>/[^?]*)?(?:\?(?P<query>.*))?"
)
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+)(?::(?P<port>\d{1,5}))?")
_OPTIONS = {"ca_file", "sentinel_username", "sentinel_password"}

Address = tuple[str, int]
"""The host and the port of a server."""


class RedisURL(NamedTuple):
    """A parsed URL. ``kind`` is ``single``, ``sentinel`` or ``cluster``; ``service`` is the name that the Sentinels know."""

    kind: str
    hosts: tuple[Address, ...]
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca_file: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    def __repr__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"<RedisURL {self.kind} {hosts}>"  # without the passwords


def parse(url: str) -> RedisURL:
    """Return the parts of a URL. Raises :class:`InvalidSetting`, in which the password is hidden."""
    found = _URL.fullmatch(url)
    try:
        if found is None:
            raise ValueError
        kind = found["kind"] or "single"
        hosts = tuple(_address(text, 26379 if kind == "sentinel" else 6379) for text in found["hosts"].split(","))
        path = unquote((found["path"] or "")[1:])
        options = dict(parse_qsl(found["query"] or "", strict_parsing=bool(found["query"])))
        if options.keys() - _OPTIONS or (kind == "single" and len(hosts) > 1) or (kind == "sentinel") > bool(path):
            raise ValueError
        if kind == "cluster" and path not in {"", "0"}:
            raise ValueError
        username, _, password = (found["login"] or "").partition(":")
        return RedisURL(
            kind,
            hosts,
            service=path if kind == "sentinel" else "",
            db=int(path) if kind == "single" and path else 0,
            username=unquote(username) or None,
            password=unquote(password) or None,
            tls=bool(found["tls"]),
            **options,
        )
    except ValueError:
        raise InvalidSetting("wake", hide(url), ALLOWED) from None


def _address(text: str, port: int) -> Address:
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError(text)
    number = int(found["port"] or port)
    if not 0 < number < 65536:
        raise ValueError(text)
    return found["host"].strip("[]"), number
