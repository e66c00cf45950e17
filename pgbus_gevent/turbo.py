"""Turbo's stream actions as HTML. Broadcast them without an event: ``orders.broadcast(turbo.append("orders", "<li>…</li>"))``.

Each action changes the element whose id is ``target``, or all elements that the CSS selector ``targets`` matches. Give one of the
two; otherwise :class:`InvalidArgument` is raised. ``content`` is HTML and is inserted without escaping, so escape user input in
it, as in any template. Attributes are escaped here. ``+`` joins several actions into one message.
https://turbo.hotwired.dev/reference/streams
"""

from __future__ import annotations

from html import escape

from .core.markup import Html
from .errors import InvalidArgument

__all__ = ["after", "append", "before", "morph", "prepend", "refresh", "remove", "replace", "update"]


def append(target: str | None = None, content: str = "", *, targets: str | None = None) -> Html:
    """Append ``content`` to the target's children. Children with the same id are replaced."""
    return _on("append", target, targets, content)


def prepend(target: str | None = None, content: str = "", *, targets: str | None = None) -> Html:
    """Insert ``content`` before the target's children. Children with the same id are replaced."""
    return _on("prepend", target, targets, content)


def before(target: str | None = None, content: str = "", *, targets: str | None = None) -> Html:
    """Insert ``content`` before the target."""
    return _on("before", target, targets, content)


def after(target: str | None = None, content: str = "", *, targets: str | None = None) -> Html:
    """Insert ``content`` after the target."""
    return _on("after", target, targets, content)


def replace(target: str | None = None, content: str = "", *, targets: str | None = None) -> Html:
    """Replace the target by ``content``."""
    return _on("replace", target, targets, content)


def update(target: str | None = None, content: str = "", *, targets: str | None = None) -> Html:
    """Replace the target's children by ``content``."""
    return _on("update", target, targets, content)


def morph(
    target: str | None = None, content: str = "", *, targets: str | None = None, children_only: bool = False
) -> Html:
    """Morph the target into ``content``, or only its children with ``children_only``.

    Elements that are the same in both are kept, and with them focus, scroll positions and open ``<details>``.
    """
    return _on("update" if children_only else "replace", target, targets, content, method="morph")


def remove(target: str | None = None, *, targets: str | None = None) -> Html:
    """Remove the target."""
    return _on("remove", target, targets)


def refresh(*, morph: bool = False, keep_scroll: bool = False, request_id: str | None = None) -> Html:
    """Reload the page, by replacing its body, or with ``morph`` by morphing it. ``keep_scroll`` keeps the scroll position.

    A page ignores the action if ``request_id`` is the X-Turbo-Request-Id of a request that it sent itself.
    """
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
        raise InvalidArgument(
            f"a Turbo action takes either target, the id of an element, or targets=, a CSS selector; {action} was given"
            f" {'both' if target else 'neither'}"
        )
    return _element(action, {"method": method, "target": target or None, "targets": targets or None}, content)


def _element(action: str, attributes: dict[str, str | None], content: str | None = None) -> Html:
    written = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items() if value is not None)
    inside = "" if content is None else f"<template>{content}</template>"
    return Html(f'<turbo-stream action="{action}"{written}>{inside}</turbo-stream>')
