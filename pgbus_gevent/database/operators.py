"""Who is logged in at the console, and who tried to guess a token: see sql/0006_workers.sql."""

from __future__ import annotations

from typing import Any, NamedTuple

from .pool import Pool

MOST_GUESSES = 10_000
"""Rows of guesses; beyond, each worker counts for itself alone."""

_OPEN = """
with old as (delete from pgbus.operator_sessions where created_at < clock_timestamp() - make_interval(secs => %(lifetime)s))
insert into pgbus.operator_sessions (id, token) values (decode(%(id)s, 'hex'), decode(%(token)s, 'hex'))
"""

_IS_OPEN = """
select exists (
  select from pgbus.operator_sessions
  where id = decode(%(id)s, 'hex') and token = decode(%(token)s, 'hex')
    and created_at > clock_timestamp() - make_interval(secs => %(lifetime)s))
"""

# What one statement inserts it does not see itself.
_NOTE = """
with old as (
  delete from pgbus.token_guesses where at < clock_timestamp() - make_interval(secs => %(window)s)),
noted as (
  insert into pgbus.token_guesses (door, address, guess)
  select %(door)s, %(address)s, %(guess)s
  where (select count(*) from (select from pgbus.token_guesses limit %(most)s) g) < %(most)s)
select count(*) + 1, count(distinct guess) filter (where guess <> %(guess)s) + 1,
  coalesce(extract(epoch from clock_timestamp() - min(at)), 0)
from pgbus.token_guesses
where door = %(door)s and address = %(address)s and at > clock_timestamp() - make_interval(secs => %(window)s)
"""


class Told(NamedTuple):
    """Wrong tokens of one address, the newest included; the oldest came so many seconds ago."""

    all: int
    different: int
    oldest: float


class OperatorQueries:
    """On connections of a pool. Raises the exceptions of :mod:`pgbus_gevent.errors` alone. Durations are seconds."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def _run(self, statement: str, **parameters: Any) -> Any:
        with self._pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchone() if cursor.description else None

    def open_session(self, id: bytes, token: bytes, lifetime: float) -> None:
        """Keep a session, which the hash of its cookie names, and the hash of its token; forget those of before ``lifetime``."""
        self._run(_OPEN, id=id.hex(), token=token.hex(), lifetime=lifetime)

    def session_is_open(self, id: bytes, token: bytes, lifetime: float) -> bool:
        """Whether a session was opened with that token, within ``lifetime``, and not ended."""
        return bool(self._run(_IS_OPEN, id=id.hex(), token=token.hex(), lifetime=lifetime)[0])

    def end_session(self, id: bytes) -> None:
        """Forget a session."""
        self._run("delete from pgbus.operator_sessions where id = decode(%(id)s, 'hex')", id=id.hex())

    def note_guess(self, door: str, address: str, guess: int, window: float) -> Told:
        """A wrong token came to ``door`` from there; what came within ``window``. Those of before are forgotten."""
        found = self._run(_NOTE, door=door, address=address, guess=guess, window=window, most=MOST_GUESSES)
        return Told(int(found[0]), int(found[1]), float(found[2]))
