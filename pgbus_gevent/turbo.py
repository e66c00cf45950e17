"""Turbo's stream actions as HTML, to be broadcast without an event: ``orders.broadcast(turbo.append("orders", "<li>…</li>"))``.

Each action changes the element whose id is ``target``, or all that the CSS selector ``targets`` finds. ``content`` is HTML and goes
in as it is: escape in it what is not yours, as in any template. Attributes are escaped here. Actions can be joined into one
message with ``+``. https://turbo.hotwired.dev/reference/streams
"""

from __future__ import annotations

from html import escape

from .core.markup import Html
from .errors import InvalidArgument

__all__ = ["after", "append", "before", "morph", "prepend", "refresh", "remove", "replace", "update"]


def append(target: str | None = None, content: str = "", *, targets: str | None = None) -> Html:
    """Put content at the end of the target; children with the same id are replaced."""
    return _on("append", target, targets, content)


def prepend(target: str | None = None, content: str = "", *, targets: str | None = None) -> Html:
    """Put content at the beginning of the target; children with the same id are replaced."""
    return _on("prepend", target, targets, content)


def before(target: str | None = None, content: str = "", *, targets: str | None = None) -> Html:
    """Put content before the target."""
    return _on("before", target, targets, content)


def after(target: str | None = None, content: str = "", *, targets: str | None = None) -> Html:
    """Put content after the target."""
    return _on("after", target, targets, content)


def replace(target: str | None = None, content: str = "", *, targets: str | None = None) -> Html:
    """Put content in the place of the target."""
    return _on("replace", target, targets, content)


def update(target: str | None = None, content: str = "", *, targets: str | None = None) -> Html:
    """Put content in the place of what is in the target."""
    return _on("update", target, targets, content)


def morph(
    target: str | None = None, content: str = "", *, targets: str | None = None, children_only: bool = False
) -> Html:
    """Change the target into content, or what is in it, and keep whatever is the same in both: focus, scrolling, open details."""
    return _on("update" if children_only else "replace", target, targets, content, method="morph")


def remove(target: str | None = None, *, targets: str | None = None) -> Html:
    """Take the target away."""
    return _on("remove", target, targets)


def refresh(*, morph: bool = False, keep_scroll: bool = False, request_id: str | None = None) -> Html:
    """Have the page loaded again; not where ``request_id`` is the X-Turbo-Request-Id of a request of its own."""
    return _element(
        "refresh",
        {
            "method": "morph" if morph else None,
            "scroll": "preserve" if keep_scroll else None,
            "request-id": request_id,
        },
    )


def _on(
    action: str, target: str | None, targets: str | None, content: str | None = None, method: str | None = None
) -> Html:
    if (not target) == (not targets):
        raise InvalidArgument("a Turbo action takes the id of its target, or targets=, a CSS selector: one of the two")
    return _element(action, {"method": method, "target": target or None, "targets": targets or None}, content)


def _element(action: str, attributes: dict[str, str | None], content: str | None = None) -> Html:
    written = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items() if value is not None)
    inside = "" if content is None else f"<template>{content}</template>"
    return Html(f'<turbo-stream action="{action}"{written}>{inside}</turbo-stream>')
