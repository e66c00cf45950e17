"""Tokens cannot be guessed by trying them one by one, and guesses do not lock out clients that have the right token."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest
from raw_http import Answer, ask
from site_parts import PUBLISH_TOKEN, Site, running_site
from support import PATIENCE, run, session

from pgbus_gevent.database.operators import GuessCounts
from pgbus_gevent.errors import DatabaseUnavailable
from pgbus_gevent.web import guesses
from pgbus_gevent.web.backstage import backstage_of
from pgbus_gevent.web.guesses import DIFFERENT, TRIES, WINDOW
from pgbus_gevent.web.stream_app import StreamApp

TOKEN = "operator-token-of-the-site"
WAYS = ("login", "bearer", "metrics", "publish")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL may stand still for some seconds before it counts a wrong token."""
    monkeypatch.setattr("pgbus_gevent.web.sessions._TIMEOUT", PATIENCE)


@pytest.fixture
def fellows(pgbus_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Site, Site]]:
    """Two workers on one database."""
    monkeypatch.setattr("pgbus_gevent.web.operators._WRONG_TOKEN_PAUSE", 0.0)
    with (
        running_site(pgbus_database, operator_token=TOKEN) as one,
        running_site(pgbus_database, operator_token=TOKEN) as two,
    ):
        yield one, two


def give(site: Site, way: str, token: str) -> Answer:
    bearer = {"Authorization": f"Bearer {token}"}
    if way == "publish":
        return ask(site.port, "/pgbus/streams/demo:x", "POST", b"data", **bearer)
    if way == "login":
        return ask(site.port, "/pgbus/console/login", "POST", f"token={token}")
    return ask(site.port, "/pgbus/metrics" if way == "metrics" else "/pgbus/console/streams", **bearer)


def right(site: Site, way: str) -> int:
    return give(site, way, PUBLISH_TOKEN if way == "publish" else TOKEN).status


WELCOME = {"login": 303, "bearer": 200, "metrics": 200, "publish": 201}
WRONG = {"login": 303, "bearer": 401, "metrics": 401, "publish": 401}


def from_elsewhere(site: Site, address: str) -> None:
    app = StreamApp(site.instance)
    site.app = lambda environ, start: app({**environ, "REMOTE_ADDR": address}, start)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", [lambda n: f"guess-{n}", lambda n: "guess"], ids=["different", "the same"])
def test_wrong_tokens_are_limited_over_all_workers_and_the_right_one_is_let_in(
    fellows: tuple[Site, Site], way: str, tokens: Callable[[int], str]
) -> None:
    for n in range(TRIES):
        answer = give(fellows[n % 2], way, tokens(n))
        assert answer.status == WRONG[way] and "set-cookie" not in answer.headers
    for site in fellows:
        answer = give(site, way, tokens(TRIES))
        assert (answer.status, answer.headers["retry-after"]) == (429, "60")
        assert right(site, way) == WELCOME[way]
        assert give(site, way, tokens(TRIES + 1)).status == 429
        # An IPv4 address mapped to IPv6 is the same client. From another address, a wrong token is answered as usual.
        from_elsewhere(site, "::ffff:127.0.0.1")
        assert give(site, way, tokens(0)).status == 429
    from_elsewhere(fellows[0], "192.0.2.1")
    assert give(fellows[0], way, tokens(0)).status == WRONG[way]


@pytest.mark.parametrize("way", WAYS)
def test_after_many_different_guesses_even_the_right_token_is_refused(
    fellows: tuple[Site, Site], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guesses, "DIFFERENT", TRIES + 6)
    for n in range(TRIES + 5):
        give(fellows[n % 2], way, f"guess-{n}")
        give(fellows[n % 2], way, f"guess-{n}")  # a repeated guess does not count
    assert [right(site, way) for site in fellows] == [WELCOME[way]] * 2
    # The last guess makes the first worker refuse all tokens; the next wrong one does so at the other worker.
    assert [give(site, way, "guess-last").status for site in fellows] == [429, 429]
    assert [right(site, way) for site in fellows] == [429, 429]
    other = "bearer" if way == "publish" else "publish"
    assert right(fellows[0], other) == WELCOME[other]
    from_elsewhere(fellows[0], "192.0.2.1")
    assert right(fellows[0], way) == WELCOME[way]


@pytest.mark.parametrize("way", WAYS)
def test_a_token_is_compared_in_constant_time(
    fellows: tuple[Site, Site], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def noting(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noting)
    token = PUBLISH_TOKEN if way == "publish" else TOKEN
    assert give(fellows[0], way, "guess").status == WRONG[way] and right(fellows[0], way) == WELCOME[way]
    assert compared == [(b"guess", token.encode()), (token.encode(), token.encode())]


def test_a_program_with_an_old_token_locks_out_no_other_client(fellows: tuple[Site, Site]) -> None:
    statements = []
    queries: Any = fellows[0].instance.database.operators
    note = queries.note_guess
    queries.note_guess = lambda *given: statements.append(given) or note(*given)
    for _ in range(2 * DIFFERENT):
        give(fellows[0], "publish", "the-token-of-last-year")
    assert right(fellows[0], "publish") == 201
    # It does not load the database either.
    assert len(statements) == TRIES


def test_a_right_token_makes_no_query(fellows: tuple[Site, Site]) -> None:
    site = fellows[0]
    queries: Any = site.instance.database.operators

    def away(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailable("away")

    queries._run = away
    for _ in range(TRIES):
        assert give(site, "bearer", "guess").status == 401
    assert give(site, "bearer", "guess").status == 429
    assert [right(site, way) for way in WAYS] == [WELCOME[way] for way in WAYS]


def test_guesses_are_forgotten_after_a_minute(pgbus_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "DIFFERENT", TRIES)
    late = 0.0
    with running_site(pgbus_database, operator_token=TOKEN) as site, session(pgbus_database) as connection:
        door: Any = backstage_of(site.instance).operators._door
        monkeypatch.setattr(door._guesses, "_clock", lambda: monotonic() + late)
        for n in range(TRIES):
            assert give(site, "bearer", f"guess-{n}").status == 401
        assert right(site, "bearer") == 429
        late = WINDOW / 2
        assert right(site, "bearer") == 429
        late = WINDOW
        run(connection, "update pgbus.token_guesses set at = at - interval '60 s'")
        assert right(site, "bearer") == 200
        assert give(site, "bearer", "guess").status == 401


def test_guesses_are_cleared_and_limited(pgbus_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_site(pgbus_database, operator_token=TOKEN) as site, session(pgbus_database) as connection:
        run(
            connection,
            "insert into pgbus.token_guesses select 'operator', '127.0.0.1', n, now() - interval '61 s'"
            " from generate_series(1, 200) n",
        )
        assert give(site, "bearer", "guess").status == 401
        assert right(site, "bearer") == 200
        assert run(connection, "select count(*) from pgbus.token_guesses") == [(1,)]
        monkeypatch.setattr("pgbus_gevent.database.operators.MOST_GUESSES", 3)
        for n in range(5):
            give(site, "bearer", f"guess-{n}")
        assert run(connection, "select count(*) from pgbus.token_guesses") == [(3,)]


def test_the_database_does_not_store_the_guessed_token(pgbus_database: str) -> None:
    with running_site(pgbus_database, operator_token=TOKEN) as site:
        give(site, "bearer", "a-slip-in-the-right-token")
        with session(pgbus_database) as connection:
            [(row,)] = run(connection, "select g::text from pgbus.token_guesses g")
    assert "slip" not in row


def test_a_worker_remembers_a_limited_number_of_addresses() -> None:
    class Nothing:
        note_guess = staticmethod(lambda *_: GuessCounts(1, 1, 0.0))

    queries: Any = Nothing()
    kept = guesses.Guesses("operator", queries)
    for n in range(2 * guesses.REMEMBERED):
        kept.note(f"192.0.2.{n}", n)
    assert len(kept._sources) == guesses.REMEMBERED and f"192.0.2.{2 * guesses.REMEMBERED - 1}" in kept._sources
