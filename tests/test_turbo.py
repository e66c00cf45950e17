"""Turbo's actions as HTML, checked with the standard library's parser."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from pgbus_gevent import turbo
from pgbus_gevent.errors import InvalidArgument

NASTY = "\"><script>alert(1)</script>&quot;'é"


def attributes(html: str) -> dict[str, str | None]:
    """Return the attributes and the content of the only turbo-stream element in the text."""
    found: list[dict[str, str | None]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "turbo-stream":
                found.append(dict(attrs))
            else:
                assert tag == "template"

    Parser().feed(html)
    (one,) = found
    return one


@pytest.mark.parametrize("action", ["append", "prepend", "before", "after", "replace", "update"])
def test_an_action_has_its_target_and_its_content(action: str) -> None:
    html = getattr(turbo, action)("orders", "<li>7</li>")
    assert html == f'<turbo-stream action="{action}" target="orders"><template><li>7</li></template></turbo-stream>'


def test_a_removal_has_no_content() -> None:
    assert turbo.remove("order-7") == '<turbo-stream action="remove" target="order-7"></turbo-stream>'


@pytest.mark.parametrize(("children_only", "action"), [(False, "replace"), (True, "update")])
def test_two_actions_can_morph(children_only: bool, action: str) -> None:
    assert attributes(turbo.morph("a", "", children_only=children_only)) == {
        "action": action,
        "method": "morph",
        "target": "a",
    }


def test_a_refresh_has_no_target() -> None:
    assert turbo.refresh() == '<turbo-stream action="refresh"></turbo-stream>'
    assert attributes(turbo.refresh(morph=True, keep_scroll=True, request_id=NASTY)) == {
        "action": "refresh",
        "method": "morph",
        "scroll": "preserve",
        "request-id": NASTY,
    }


def test_targets_is_a_selector() -> None:
    assert attributes(turbo.remove(targets='.a > [b="c"]')) == {"action": "remove", "targets": '.a > [b="c"]'}


@pytest.mark.parametrize("action", [turbo.append, turbo.morph, turbo.remove])
def test_no_attribute_breaks_out(action: Callable[..., str]) -> None:
    assert attributes(action(NASTY))["target"] == NASTY
    assert attributes(action(targets=NASTY))["targets"] == NASTY


@pytest.mark.parametrize("targets", [{}, {"target": ""}, {"target": "a", "targets": "b"}])
def test_an_action_without_one_target_is_refused(targets: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="target"):
        turbo.update(**targets)


def test_templates_insert_an_action_as_html() -> None:
    assert turbo.remove("a").__html__() == turbo.remove("a")
