"""Every exception that the package raises on purpose, in one tree.

::

    PgbusError
    ├── InvalidArgument (also ValueError)   a name, an event, a cursor or a setting that makes no sense
    │   ├── InvalidName
    │   ├── InvalidEvent
    │   ├── InvalidCursor
    │   └── InvalidSetting
    ├── BadToken                            a signed stream name that does not verify
    │   └── TokenExpired
    ├── DatabaseError                       PostgreSQL refused or could not be reached
    │   ├── DatabaseUnavailable             not reached, went away, or did not answer in time
    │   ├── Deaf                            a LISTEN session that hears nothing, though the server answers
    │   ├── PoolTimeout                     every pooled connection stayed busy
    │   ├── SchemaTooNew                    the schema is a newer release's, and does not serve this one
    │   ├── SchemaTooOld                    the schema is missing, or has not been migrated to this release
    │   └── SchemaMismatch                  the schema is one that no release makes
    ├── EmbeddedError                       the embedded server cannot be had
    └── NotPatched                          the process is not patched for gevent

A message says what is wrong and what to do; what a handler needs besides is an attribute.
"""

from __future__ import annotations


class PgbusError(Exception):
    """The base of all of them."""


class InvalidArgument(PgbusError, ValueError):
    """A value that the caller gave makes no sense; nothing was done."""


class InvalidName(InvalidArgument):
    """Not a stream name: 1 to 255 UTF-8 bytes without control characters."""


class InvalidEvent(InvalidArgument):
    """Not an event name: it has a line break or NUL, or starts with ``pgbus:``."""


class InvalidCursor(InvalidArgument):
    """Not a cursor: ASCII digits, below 2**53."""


class InvalidSetting(InvalidArgument):
    """A setting was refused. ``name`` is the setting, ``value`` what was given."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name}={value!r} is not allowed: {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed


class BadToken(PgbusError):
    """A signed stream name that none of the secrets verifies."""


class TokenExpired(BadToken):
    """A signed stream name past its time. ``expired_at`` is in Unix seconds."""

    def __init__(self, expired_at: float) -> None:
        super().__init__("the signed stream name has expired; render the page again to get a new one")
        self.expired_at = expired_at


class DatabaseError(PgbusError):
    """PostgreSQL refused a statement. ``sqlstate`` is its five-character code, if there was one."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class DatabaseUnavailable(DatabaseError):
    """PostgreSQL was not reached, went away, or did not answer in time; whether it did the work is unknown."""


class Deaf(DatabaseError):
    """A LISTEN session hears nothing, though the server answers."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(
            f"LISTEN is deaf: {cause}. Give a direct URL in PGBUS_LISTEN_URL, or set listen=False; meanwhile the database is"
            " polled for messages"
        )


class PoolTimeout(DatabaseError):
    """No pooled connection became free within ``timeout`` seconds."""

    def __init__(self, timeout: float, size: int) -> None:
        super().__init__(
            f"all {size} pooled database connections stayed busy for {timeout:g} s; raise pool_size, or find what holds them"
        )
        self.timeout = timeout
        self.size = size


class SchemaTooNew(DatabaseError):
    """The schema was migrated by a newer release than this one, and serves code of version ``serves`` at the oldest."""

    def __init__(self, found: int, known: int, serves: int) -> None:
        super().__init__(
            f"schema pgbus is at version {found}, which serves releases that know version {serves} or later, and this one knows"
            f" up to {known}; upgrade pgbus-gevent here too"
        )
        self.found = found
        self.known = known
        self.serves = serves


class SchemaTooOld(DatabaseError):
    """The schema has version ``found``, or 0 where there is none, and this release needs version ``known``."""

    def __init__(self, found: int, known: int) -> None:
        what = f"is at version {found}, and this release needs version {known}" if found else "is not in this database"
        super().__init__(
            f"schema pgbus {what}; run `python -m pgbus_gevent migrate`, or start without --no-migrate",
            None if found else "3F000",
        )
        self.found = found
        self.known = known


class SchemaMismatch(DatabaseError):
    """The schema is not one that a release makes, so that nothing can be built on it."""

    def __init__(self, difference: str) -> None:
        super().__init__(
            f"schema pgbus is not as this release makes it: {difference}; put that right, or use a database without schema pgbus"
        )


class EmbeddedError(PgbusError):
    """The embedded PostgreSQL cannot be had; the message says why."""


class NotPatched(PgbusError, RuntimeError):
    """The process is not patched for gevent, so that one wait would stop every client."""
