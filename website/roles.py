"""Docstrings name classes and methods with the markup of reStructuredText. On the site they become links, or else names in code."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import griffe

from pgbus_gevent import errors

PAGE = Path(__file__).parents[1] / "docs/reference/python.md"
ROLE = re.compile(r":\w+:`[~.]*([^`]+)`")


class Names(griffe.Extension):
    """Turns ``:class:`Bus``` into a link to the class, if the pages of the reference have it."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(lambda match: linked(match[1], obj.path), obj.docstring.value)


def linked(name: str, place: str) -> str:
    """Return ``name`` as Markdown. ``place`` is the path of the object whose docstring names it."""
    last = name.rpartition(".")[2]
    if isinstance(getattr(errors, last, None), type):
        return f"[`{last}`](exceptions.md#{last.lower()})"
    if name[0].islower() and "." not in name:  # a method of the same class, or a function of the same module
        here = (f"{place}.{name}", f"{place.rpartition('.')[0]}.{name}")
        found = [path for path in documented() if path in here]
    else:
        found = [path for path in documented() if path.endswith(f".{name.removeprefix('pgbus_gevent.')}")]
    # asyncio has a Bus of its own, and names the other one with the package.
    asyncio = ".aio." in place and not name.startswith("pgbus_gevent.")
    found.sort(key=lambda path: (".aio." in path) != asyncio)
    return f"[`{name}`][{found[0]}]" if found else f"`{name}`"


@cache
def documented() -> tuple[str, ...]:
    """Return the paths of what the page has: classes, functions, and the members that are listed."""
    found = []
    for path, _, members in re.findall(
        r"^::: (\S+)(\n +options: \{.*?members: \[([^\]]*)\])?", PAGE.read_text("utf-8"), re.M
    ):
        found += [path, *(f"{path}.{member.strip()}" for member in members.split(",") if member)]
    return tuple(found)
