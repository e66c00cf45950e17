"""Who visits the demo: two users that anybody may be, and the browsers, each present under a name of its own.

A browser makes up an id for its tabs, which nobody else is told: it is the owner of their connections, and the id by which they
exclude themselves. (Where tabs cannot share a connection, each has an id.) What others see is the member, a hash of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from pgbus_gevent import Subscriber

if TYPE_CHECKING:
    from pgbus_gevent import Bus

STREAM = "demo:here"
"""Who is here. The setting ``presence`` has to name it."""
ADMINS = "admins"
USERS = {"ada": True, "bob": False}
"""The users, and whether each is an admin."""

_TAB = re.compile(r"[0-9a-f]{16,64}", re.ASCII)
_COLOURS = (
    "Amber", "Azure", "Copper", "Coral", "Crimson", "Golden", "Indigo", "Ivory", "Jade", "Lilac", "Olive", "Pearl", "Ruby",
    "Sable", "Silver", "Violet",
)  # fmt: skip
_BIRDS = (
    "Avocet", "Crane", "Curlew", "Egret", "Falcon", "Finch", "Heron", "Kestrel", "Lark", "Martin", "Osprey", "Plover",
    "Robin", "Swift", "Tern", "Wren",
)  # fmt: skip


def authorize(environ: Mapping[str, Any], stream: str) -> bool | Subscriber:
    """The demo's authorize hook: everybody may watch, as the user in ``?as=`` and the tabs in ``?tab=``.

    A real one would ask a session; here whoever looks is to try both.
    """
    query = parse_qs(str(environ.get("QUERY_STRING", "")))
    user, tab = query.get("as", [""])[-1], query.get("tab", [""])[-1]
    if user not in USERS:
        return True
    context = {"user": user, "admin": USERS[user]}
    if not is_tab(tab):
        return Subscriber(context=context)
    return Subscriber(owner=f"tab-{tab}", context=context | {"presence": {"name": name_of(tab)}}, member=member_of(tab))


def is_admin(context: Any, stream: str) -> bool:
    """The demo's filter: may the connection with this context see what is visible to admins?"""
    return isinstance(context, Mapping) and context.get("admin") is True


def is_tab(text: object) -> bool:
    """Whether it may be an id that tabs have."""
    return isinstance(text, str) and _TAB.fullmatch(text) is not None


def member_of(tab: str) -> str:
    """What those tabs are called in the list of members."""
    return sha256(tab.encode()).hexdigest()[:16]


def name_of(tab: str) -> str:
    """What they are called on the page."""
    number = int(member_of(tab), 16)
    return f"{_COLOURS[number % 16]} {_BIRDS[number // 16 % 16]}"


def here(bus: Bus, tab: str) -> dict[str, Any]:
    """Who is here, first come first, and which of them is who asks."""
    members = bus.stream(STREAM).presence.members()
    return {
        "you": member_of(tab) if is_tab(tab) else None,
        "members": [{"member": one.member, "metadata": one.metadata} for one in members],
    }
