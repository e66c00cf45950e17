"""Who may see what in a run, and the page of the clients that are browsers."""

from __future__ import annotations

from typing import Any

import pytest

from pgbus_gevent.testing.chaos import hooks


@pytest.mark.parametrize("user", range(6))
@pytest.mark.parametrize("label", ["odd", "user:3", "user:4"])
def test_the_judge_and_the_workers_agree_about_labels(user: int, label: str) -> None:
    found = hooks.authorize({"HTTP_COOKIE": f"login={user}"}, "chaos:audience")
    assert not isinstance(found, bool)
    permitted = label in (found.labels or ()) or hooks.filters.permits(label, found.context, "chaos:audience")
    assert permitted is hooks.entitled(user, label)


def test_a_client_without_a_login_is_refused() -> None:
    assert hooks.authorize({}, "chaos:audience") is False


def test_the_page_sets_the_login() -> None:
    answered: dict[str, Any] = {}
    environ = {"PATH_INFO": "/page", "QUERY_STRING": "client=7&stream=x"}
    body = hooks.application(environ, lambda status, headers: answered.update(status=status, headers=dict(headers)))
    assert answered["status"] == "200 OK"
    assert answered["headers"]["Set-Cookie"] == "login=7; Path=/"
    assert b"new EventSource" in b"".join(body)
