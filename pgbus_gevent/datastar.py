"""Datastar's events: ``orders.broadcast(**datastar.patch_elements("<li>…</li>", selector="#orders", mode="append"))``.

Each function returns the keywords ``event`` and ``data`` for ``broadcast``. Elements are HTML and are inserted without escaping, so
escape user input in them, as in any template. :class:`InvalidArgument` is raised for what Datastar would refuse in the browser.
https://data-star.dev/reference/sse_events
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from .errors import InvalidArgument

__all__ = ["Event", "Mode", "patch_elements", "patch_signals", "remove_elements"]

Mode = Literal["outer", "inner", "replace", "prepend", "append", "before", "after"]
MODES = ("outer", "inner", "replace", "prepend", "append", "before", "after")
WITHOUT_SELECTOR = ("outer", "replace")

_LINE_ENDS = re.compile(r"\r\n|\r|\n")
"""What ends a line in an event stream. ``str.splitlines`` knows more, and would change the text."""


class Event(TypedDict):
    """The arguments of ``broadcast`` for one event."""

    event: str
    data: str


def patch_elements(
    elements: str,
    *,
    selector: str | None = None,
    mode: Mode = "outer",
    namespace: Literal["html", "svg", "mathml"] = "html",
    view_transition: bool = False,
) -> Event:
    """Put elements into the page.

    Args:
        elements: The HTML.
        selector: The CSS selector of the targets. Without it, each element goes to the one on the page with the same id.
        mode: Where to: ``outer`` morphs the targets and ``inner`` their children; ``replace`` replaces them without a morph;
            ``prepend`` and ``append`` add children, ``before`` and ``after`` siblings. Adding needs a selector.
        namespace: ``svg`` or ``mathml`` for parts of such elements.
        view_transition: Whether the change is animated by a view transition.
    """
    if mode not in MODES:
        raise InvalidArgument(f"mode is {mode!r}, and has to be one of {', '.join(MODES)}")
    if not selector and mode not in WITHOUT_SELECTOR:
        raise InvalidArgument(f"mode {mode!r} needs a selector")
    if namespace not in ("html", "svg", "mathml"):
        raise InvalidArgument(f"namespace is {namespace!r}, and has to be html, svg or mathml")
    options = [
        *([] if mode == "outer" else [f"mode {mode}"]),
        *_selector(selector),
        *([] if namespace == "html" else [f"namespace {namespace}"]),
        *(["useViewTransition true"] if view_transition else []),
    ]
    return _event("datastar-patch-elements", options, "elements", elements)


def remove_elements(selector: str) -> Event:
    """Remove all elements that the CSS selector matches."""
    if not selector:
        raise InvalidArgument("selector is empty")
    return _event("datastar-patch-elements", ["mode remove", *_selector(selector)])


def patch_signals(signals: Mapping[str, Any], *, only_if_missing: bool = False) -> Event:
    """Set signals to these values, which have to be JSON. None removes a signal.

    With ``only_if_missing``, signals that the page already has keep their values. Raises TypeError for a value that is not JSON.
    """
    try:
        text = json.dumps(signals, allow_nan=False)
    except ValueError as error:
        raise InvalidArgument(f"signals have to be JSON: {error}") from None
    return _event("datastar-patch-signals", ["onlyIfMissing true"] if only_if_missing else [], "signals", text)


def _selector(selector: str | None) -> list[str]:
    if selector and _LINE_ENDS.search(selector):
        raise InvalidArgument("a selector cannot have a line break")
    return [f"selector {selector}"] if selector else []


def _event(name: str, options: list[str], key: str = "", text: str = "") -> Event:
    lines = _LINE_ENDS.split(text) if key else []
    return {"event": name, "data": "\n".join([*options, *(f"{key} {line}" for line in lines)])}
