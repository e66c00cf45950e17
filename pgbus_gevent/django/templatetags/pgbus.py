"""``{% load pgbus %}{% pgbus_stream "orders" %}``: the element that connects a page to streams."""

from __future__ import annotations

from django import template
from django.db import connections
from django.template import Context

from ...core.markup import Html
from ..project import database_alias, get_bus, page_request

register = template.Library()


@register.simple_tag(takes_context=True)  # type: ignore[untyped-decorator]  # Django has no types
def pgbus_stream(context: Context, *names: str, expires_in: float | None = None) -> Html:
    """The element of :meth:`Bus.stream_tag` for these streams, made for the user of the request that the page answers.

    The watermark comes from Django's connection: from the snapshot of the view's transaction if that is REPEATABLE READ, otherwise
    from this moment. Write the tag above what it keeps up to date, so that the watermark is not newer than the page.
    """
    token = page_request.set(context.get("request"))
    try:
        return get_bus().stream_tag(*names, expires_in=expires_in, using=connections[database_alias()])
    finally:
        page_request.reset(token)
