"""The ways in which pages with other libraries follow a stream: with the element beside the library, or with the library alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pgbus_gevent import datastar, turbo

TURBO = '<script type="module" src="/lib/turbo.js"></script>'
HTMX = '<script src="/lib/htmx.js"></script>'
HX_SSE = HTMX + '<script src="/lib/hx-sse.js"></script>'
HTMX_2 = '<script src="/lib/htmx-2.js"></script>'
HTMX_2_SSE = HTMX_2 + '<script src="/lib/htmx-2-sse.js"></script>'
DATASTAR = '<script type="module" src="/lib/datastar.js"></script>'

LIST = '<ul id="list"><li>on the page</li></ul>'
ITEMS = "[...document.querySelectorAll('#list li')].map((item) => item.textContent).join()"

ELEMENT = '<pgbus-stream-source id="source" src="/pgbus/streams/STREAM" since-id="SINCE"'
FOLLOW = "@get('/pgbus/streams/STREAM?since=SINCE', {retry: 'always', retryMaxCount: Infinity, openWhenHidden: true})"


class Way(NamedTuple):
    """One way. ``message`` returns data and event of the message that adds an item to the list."""

    head: str
    body: str
    message: Callable[[str], tuple[str, str | None]]

    def page(self, stream: str, since: int) -> str:
        """Return the body of a page that shows the list as it was at the id ``since``."""
        return self.body.replace("STREAM", stream).replace("SINCE", str(since))


def action(text: str) -> str:
    return turbo.append("list", f"<li>{text}</li>")


def _action(text: str) -> tuple[str, str | None]:
    return action(text), None


def _named(text: str) -> tuple[str, str | None]:
    return f"<li>{text}</li>", "item"


def _unnamed(text: str) -> tuple[str, str | None]:
    return f"<li>{text}</li>", None


def _patch(text: str) -> tuple[str, str | None]:
    event = datastar.patch_elements(f"<li>{text}</li>", selector="#list", mode="append")
    return event["data"], event["event"]


def _swapped(attribute: str) -> str:
    return LIST.replace("<ul", f'<ul hx-swap="beforeend" {attribute}')


WAYS = {
    "Turbo, with the element": Way(TURBO, f"{LIST}{ELEMENT}></pgbus-stream-source>", _action),
    "Turbo alone": Way(
        TURBO,
        f'{LIST}<turbo-stream-source src="/pgbus/streams/STREAM?since=SINCE"></turbo-stream-source>',
        _action,
    ),
    "htmx 4, with the element": Way(HTMX, f"{ELEMENT}>{_swapped('sse-swap=item')}</pgbus-stream-source>", _named),
    "htmx 4 alone": Way(HX_SSE, _swapped('hx-sse:connect="/pgbus/streams/STREAM?since=SINCE"'), _unnamed),
    "htmx 2, with the element": Way(HTMX_2, f"{ELEMENT}>{_swapped('sse-swap=item')}</pgbus-stream-source>", _named),
    "htmx 2 alone": Way(
        HTMX_2_SSE,
        f'<div hx-ext="sse" sse-connect="/pgbus/streams/STREAM?since=SINCE">{_swapped("sse-swap=item")}</div>',
        _named,
    ),
    "Datastar, with the element": Way(
        DATASTAR,
        '<ul id="list" data-signals:shown="\'on the page\'"><li data-text="$shown">on the page</li></ul>'
        f"{ELEMENT} data-on:item=\"$shown += ',' + evt.data\"></pgbus-stream-source>",
        lambda text: (text, "item"),
    ),
    "Datastar alone": Way(DATASTAR, f'{LIST}<div data-init="{FOLLOW}"></div>', _patch),
}
