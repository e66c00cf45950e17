"""Restricts the demo to requests for a loopback name, against DNS rebinding: a site can point its own name at 127.0.0.1, and its
pages could then read and post here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Any

WSGIApp = Callable[..., Iterable[bytes]]

_HOST = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d*)?|([^:]*)(?::\d*)?")
_FORWARDED = ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_REAL_IP")
"""Headers that proxies add."""
_REFUSAL = b"""This demo only answers requests from this machine, and the request was for another host name.
Open it as localhost, or serve it to other machines with --host 0.0.0.0
"""


def is_loopback(host: str) -> bool:
    """Whether a name or an address is a loopback one. No name is resolved."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return bool((getattr(address, "ipv4_mapped", None) or address).is_loopback)


def is_from_this_machine(environ: Mapping[str, Any]) -> bool:
    """Whether a request comes from this machine, and not through a proxy.

    A proxy that adds no header cannot be told from a browser, so nothing secret may depend on the answer.
    """
    host = _HOST.fullmatch(str(environ.get("HTTP_HOST") or ""))
    named = host is not None and is_loopback(host[1] or host[2])
    near = is_loopback(str(environ.get("REMOTE_ADDR") or ""))
    return named and near and not any(environ.get(name) for name in _FORWARDED)


def for_this_machine(app: WSGIApp) -> WSGIApp:
    """Wrap ``app``: requests whose Host is not a loopback name get 421 (RFC 9110, section 15.5.20)."""

    def local(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        host = _HOST.fullmatch(str(environ.get("HTTP_HOST") or "localhost"))
        if host is not None and is_loopback(host[1] or host[2]):
            return app(environ, start_response)
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(_REFUSAL)))]
        start_response("421 Misdirected Request", headers)
        return [_REFUSAL]

    return local
