"""What to change in a proxy: for each problem and each proxy, the same on the page as in the command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pgbus_gevent.commands.path_remedies import FRONTS, REMEDIES, fronts_in, remedy

PAGE = (Path(__file__).parents[2] / "docs/guides/doctor.md").read_text(encoding="utf-8")


def test_each_problem_has_a_remedy_for_each_proxy() -> None:
    assert {problem: tuple(known) for problem, known in REMEDIES.items()} == dict.fromkeys(REMEDIES, FRONTS)


def test_the_page_has_the_same_remedies_in_the_same_order() -> None:
    written = re.findall(r"^- (nginx|HAProxy|Caddy|Apache|Cloudflare|AWS ALB): (.+)$", PAGE, re.MULTILINE)
    assert written == [(front, known[front]) for known in REMEDIES.values() for front in FRONTS]


def test_an_unknown_front_gets_all_remedies_and_a_known_one_its_own() -> None:
    assert len(remedy("idle", {}).splitlines()) == len(FRONTS)
    assert remedy("idle", {"HAProxy": "…"}) == f"HAProxy: {REMEDIES['idle']['HAProxy']}"


@pytest.mark.parametrize(
    ("headers", "own_answer", "found"),
    [
        ({}, "HTTP/1.1 400 Bad Request\r\n\r\nthe head is malformed\n", []),
        ({"server": "nginx/1.22.1"}, "", ["nginx"]),
        ({"server": "openresty"}, "", ["nginx"]),
        ({"server": "cloudflare", "cf-ray": "8f2-FRA"}, "<center>cloudflare</center>", ["Cloudflare"]),
        ({}, "HTTP/1.1 400 Bad Request\r\nServer: awselb/2.0\r\n\r\n", ["AWS ALB"]),
        ({"via": "1.1 Caddy"}, "", ["Caddy"]),
        ({"server": "cloudflare", "set-cookie": "AWSALB=x"}, "", ["Cloudflare", "AWS ALB"]),
        ({}, "HTTP/1.0 400 Bad request\r\n\r\nYour browser sent an invalid request.\n", ["HAProxy"]),
    ],
)
def test_a_front_is_known_by_its_answers(headers: dict[str, str], own_answer: str, found: list[str]) -> None:
    assert list(fronts_in(headers, own_answer)) == found
