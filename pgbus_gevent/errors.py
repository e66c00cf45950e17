"""Every exception that the package raises on purpose, in one tree.

::

    PgbusError
    ├── InvalidArgument (also ValueError)   an argument or a setting has a value that is not allowed
    │   ├── InvalidName
    │   ├── InvalidEvent
    │   ├── InvalidCursor
    │   └── InvalidSetting
    │       └── MissingSetting              a setting is needed and was not given
    ├── BadToken                            a signed stream name does not verify
    │   └── TokenExpired
    ├── GapDetected                         messages that a tail wanted are gone
    ├── DatabaseError                       PostgreSQL refused a statement, or could not be reached
    │   ├── DatabaseUnavailable             PostgreSQL was not reached, went away, or did not answer in time
    │   │   └── OriginUnready               the origin of an edge answers that it cannot serve now
    │   ├── RedisUnavailable                Redis was not reached, went away, or has no relay
    │   │   └── RedisRefused                Redis answers, and refuses the login or a command
    │   ├── RolledBack                      a transaction could not be committed, because a statement in it had failed
    │   ├── Deaf                            a LISTEN session hears nothing, although the server answers
    │   ├── OriginRefused                   the origin of an edge answers, but does not serve this edge
    │   ├── PoolTimeout                     every pooled connection stayed busy
    │   ├── SchemaTooNew                    the schema belongs to a newer release and does not support this one
    │   ├── SchemaTooOld                    the schema is missing, or has not been migrated to this release
    │   └── SchemaMismatch                  the schema is not one that a release makes
    ├── EmbeddedError                       the embedded server is missing or cannot be started
    └── NotPatched (also RuntimeError)      the process is not patched for gevent

The message of each says what is wrong and what to do. Data that a handler may need are attributes.
"""

from __future__ import annotations

from typing import Any

NO_RIGHT = "42501"
"""PostgreSQL's code for a statement that the role has no right to run."""


class PgbusError(Exception):
    """The base class of all errors that pgbus_gevent raises on purpose."""


class InvalidArgument(PgbusError, ValueError):
    """An argument has a value that is not allowed. Nothing was done."""


class InvalidName(InvalidArgument):
    """The stream name is not allowed. A name has 1 to 255 UTF-8 bytes and no control characters."""


class InvalidEvent(InvalidArgument):
    """The event name is not allowed: it contains a line break or NUL, or starts with ``pgbus:``."""


class InvalidCursor(InvalidArgument):
    """The cursor is not allowed. A cursor consists of ASCII digits and is below 2**53."""


class InvalidSetting(InvalidArgument):
    """A setting has a value that is not allowed, or no setting has this name.

    ``name`` (str) is the setting, ``value`` is what was given, and ``allowed`` (str) says what is allowed. Secrets and passwords
    in ``value`` are replaced by ``***``.
    """

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name}={value!r} is not allowed: {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed


class MissingSetting(InvalidSetting):
    """A setting is needed, and was not given. ``allowed`` (str) says how to give it; ``value`` is None."""

    def __init__(self, name: str, remedy: str) -> None:
        super().__init__(name, None, remedy)
        self.args = (f"{name} is not set: {remedy}",)


class BadToken(PgbusError):
    """The signed stream name does not verify with any of the secrets."""


class TokenExpired(BadToken):
    """The signed stream name has expired. ``expired_at`` (float) is in Unix seconds."""

    def __init__(self, expired_at: float) -> None:
        super().__init__("the signed stream name has expired; render the page again to get a new one")
        self.expired_at = expired_at


class GapDetected(PgbusError):
    """Messages that a tail wanted are gone. ``gap`` is a :class:`pgbus_gevent.aio.Gap`, which says which and why.

    The tail can be read on: it continues with what follows the gap.
    """

    def __init__(self, gap: Any) -> None:
        why = {
            "expired": "the messages after {0.requested} and before {0.oldest} are no longer retained",
            "ahead": "{0.requested} is above the last id of the database, {0.last}; all messages that it has follow",
        }[gap.reason]
        super().__init__(f"{gap.stream}: {why.format(gap)}")
        self.gap = gap


class DatabaseError(PgbusError):
    """PostgreSQL refused a statement. ``sqlstate`` (str or None) is PostgreSQL's five-character error code, if it sent one."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class RolledBack(DatabaseError):
    """A transaction was to be committed in which a statement had failed, and the program had caught that error.

    PostgreSQL commits nothing of such a transaction. Put a savepoint around a statement that may fail.
    """

    def __init__(self) -> None:
        super().__init__(
            "nothing was committed, because a statement of the transaction had failed, and its error was caught:"
            " put a savepoint around a statement that may fail",
            "25P02",
        )


class DatabaseUnavailable(DatabaseError):
    """PostgreSQL was not reached, went away, or did not answer in time. The statement may or may not have been executed."""


class OriginUnready(DatabaseUnavailable):
    """The origin of an edge answers that it cannot serve now, as while its database is away. ``reason`` (str) says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the origin answers that it cannot serve now: {reason}")
        self.reason = reason


class RedisUnavailable(DatabaseError):
    """Redis was not reached, went away, refused a command, or no relay publishes there. Nothing is lost: PostgreSQL is asked."""


class RedisRefused(RedisUnavailable):
    """Redis answers, and refuses the login or a command of this user.

    ``reason`` (str) says what it refuses, and ``todo`` (str) which setting or right to correct. ``kind`` (str) is the same for
    refusals of the same cause, also if they come from different servers.
    """

    def __init__(self, reason: str, todo: str, kind: str) -> None:
        super().__init__(f"{reason}: {todo}")
        self.reason = reason
        self.todo = todo
        self.kind = kind


class Deaf(DatabaseError):
    """A LISTEN session hears nothing, although the server answers. ``cause`` (str) says why."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(
            f"LISTEN is deaf: {cause}. Set PGBUS_LISTEN_URL to a direct URL, or set wake=poll to poll. Until then the"
            " database is polled for messages"
        )


class OriginRefused(DatabaseError):
    """The origin of an edge answers, but does not serve this edge. ``reason`` (str) says why, and what to do.

    ``known`` (bool) says that the pulse was refused for the same reason. It logs the reason, so the other parts need not.
    """

    def __init__(self, reason: str, *, known: bool = False) -> None:
        super().__init__(f"the origin does not serve this edge: {reason}")
        self.reason = reason
        self.known = known


class PoolTimeout(DatabaseError):
    """All ``size`` pooled connections stayed busy for ``timeout`` seconds (float)."""

    def __init__(self, timeout: float, size: int) -> None:
        super().__init__(
            f"all {size} pooled database connections stayed busy for {timeout:g} s; raise pool_size, or find out what keeps"
            " them busy"
        )
        self.timeout = timeout
        self.size = size


class SchemaTooNew(DatabaseError):
    """A newer release has migrated the schema, and its schema no longer supports this release.

    ``found`` (int) is the version of the schema, ``serves`` the lowest version that a release must know to use it, and ``known``
    the highest version that this release knows.
    """

    def __init__(self, found: int, known: int, serves: int) -> None:
        super().__init__(
            f"schema pgbus is at version {found} and supports only releases that know version {serves} or later, but this one"
            f" knows versions up to {known}; upgrade pgbus-gevent here too"
        )
        self.found = found
        self.known = known
        self.serves = serves


class SchemaTooOld(DatabaseError):
    """The schema has version ``found`` (int; 0 if there is no schema), and this release needs version ``known``."""

    def __init__(self, found: int, known: int) -> None:
        what = f"is at version {found}, but this release needs version {known}" if found else "is not in this database"
        super().__init__(
            f"schema pgbus {what}; run `python -m pgbus_gevent migrate`, or start without --no-migrate",
            None if found else "3F000",
        )
        self.found = found
        self.known = known


class SchemaMismatch(DatabaseError):
    """The schema differs from the one that a release makes, so it cannot be used or migrated. ``difference`` (str) is the first."""

    def __init__(self, difference: str) -> None:
        self.difference = difference
        super().__init__(
            f"schema pgbus is not as this release makes it: {difference}; correct that, or use a database without schema pgbus"
        )


class EmbeddedError(PgbusError):
    """The embedded PostgreSQL is missing or cannot be started. The message says why."""


class NotPatched(PgbusError, RuntimeError):
    """The process is not patched for gevent, so a single blocking call would stop every client."""


def is_known(error: object) -> bool:
    """Whether the pulse logs the error: the origin of an edge refuses all that this edge asks, for one reason."""
    return isinstance(error, OriginRefused) and error.known
