"""Logins at the console, and wrong tokens, in ``pgbus.operator_sessions`` and ``pgbus.token_guesses``."""

from __future__ import annotations

from typing import Any, NamedTuple

from .pool import Pool

MOST_GUESSES = 10_000
"""The most rows of guesses. When the table is full, guesses are counted only within each worker."""

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

# The final select does not see the row that the same statement inserts, so it adds 1.
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


class GuessCounts(NamedTuple):
    """The wrong tokens of one address, including the newest. ``oldest`` is the age of the oldest in seconds."""

    all: int
    different: int
    oldest: float


class OperatorQueries:
    """Uses connections of a pool. Raises only the exceptions of :mod:`pgbus_gevent.errors`. Durations are in seconds."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def _run(self, statement: str, **parameters: Any) -> Any:
        with self._pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchone() if cursor.description else None

    def open_session(self, id: bytes, token: bytes, lifetime: float) -> None:
        """Store a session: ``id`` is the hash of its cookie, ``token`` that of its token. Deletes those older than ``lifetime``."""
        self._run(_OPEN, id=id.hex(), token=token.hex(), lifetime=lifetime)

    def session_is_open(self, id: bytes, token: bytes, lifetime: float) -> bool:
        """Whether the session was opened with that token less than ``lifetime`` ago and has not been ended."""
        return bool(self._run(_IS_OPEN, id=id.hex(), token=token.hex(), lifetime=lifetime)[0])

    def end_session(self, id: bytes) -> None:
        """End a session."""
        self._run("delete from pgbus.operator_sessions where id = decode(%(id)s, 'hex')", id=id.hex())

    def note_guess(self, door: str, address: str, guess: int, window: float) -> GuessCounts:
        """Store a wrong token that ``address`` tried at ``door``. Returns its count within ``window``; deletes older guesses."""
        found = self._run(_NOTE, door=door, address=address, guess=guess, window=window, most=MOST_GUESSES)
        return GuessCounts(int(found[0]), int(found[1]), float(found[2]))
