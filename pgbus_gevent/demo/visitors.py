"""The visitors of the demo: two users that anybody may choose, and the browsers, each present as a member with a name.

A browser makes up a secret id for its tabs. It is the owner of their connections, and the connection id that they exclude. If the
tabs cannot share a connection, each tab has its own id. Other visitors see only the member, which is a hash of the id.
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
"""The stream with the presence of the visitors. The setting ``presence`` must name it."""
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
    """The demo's authorize hook: everybody may watch, as the user in ``?as=``, with the id of the tabs in ``?tab=``.

    A real hook would check a session. Here visitors choose the user, so that they can try both.
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
    """The demo's filter: whether a connection with this context may see messages for admins."""
    return isinstance(context, Mapping) and context.get("admin") is True


def is_tab(text: object) -> bool:
    """Whether it has the form of an id of tabs."""
    return isinstance(text, str) and _TAB.fullmatch(text) is not None


def member_of(tab: str) -> str:
    """Return the member for an id of tabs."""
    return sha256(tab.encode()).hexdigest()[:16]


def name_of(tab: str) -> str:
    """Return the name that the pages show for an id of tabs."""
    number = int(member_of(tab), 16)
    return f"{_COLOURS[number % 16]} {_BIRDS[number // 16 % 16]}"


def here(bus: Bus, tab: str) -> dict[str, Any]:
    """Return the members in the order in which they joined, and the member of the browser that asks."""
    members = bus.stream(STREAM).presence.members()
    return {
        "you": member_of(tab) if is_tab(tab) else None,
        "members": [{"member": one.member, "metadata": one.metadata} for one in members],
    }
