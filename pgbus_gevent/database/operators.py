"""Who is logged in at the console, and who tried to guess the token: see sql/0006_workers.sql."""

from __future__ import annotations

from typing import Any

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

_NOTE = """
with old as (
  delete from pgbus.operator_guesses where at < clock_timestamp() - make_interval(secs => %(window)s))
insert into pgbus.operator_guesses (address)
select %(address)s where (select count(*) from (select from pgbus.operator_guesses limit %(most)s) g) < %(most)s
"""

_COUNT = """
select count(*) from pgbus.operator_guesses
where address = %(address)s and at > clock_timestamp() - make_interval(secs => %(window)s)
"""


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

    def note_guess(self, address: str, window: float) -> None:
        """A wrong token came from there; forget those of before ``window``."""
        self._run(_NOTE, address=address, window=window, most=MOST_GUESSES)

    def guesses(self, address: str, window: float) -> int:
        """How many wrong tokens came from there within ``window``."""
        return int(self._run(_COUNT, address=address, window=window)[0])
