"""What a standby shows of what its primary wrote, and whether its answers may be used.

The primary sets a mark: its time, and a number of the run of its server. A standby that shows a mark of this run has replayed what
this server wrote, so it follows it. After a failover, the number is another one.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import DatabaseError, DatabaseUnavailable

LAG_LIMIT = 30.0
"""Seconds. A standby that is further behind serves nothing, because it has messages that were removed long ago."""

_RUN = (1 << 28) - 1  # the bits of a mark that number the run of the primary

_NEVER = "the standby has replayed nothing that this primary wrote since it started"
_STRANGER = "; if this lasts, it follows another primary: give the URL of a standby of the database in database_url"


class Mark(NamedTuple):
    """The primary's answer: the mark that it has set, its position in the WAL, its time in Unix seconds, and the newest id of all
    streams (0: none). ``taken`` is when we got it, on the monotonic clock."""

    mark: int
    position: int
    instant: float
    newest: int
    taken: float


class State(NamedTuple):
    """What a session of a standby shows: whether the server is a standby, its position in the WAL, and its mark (None: none)."""

    recovering: bool
    position: int | None
    mark: int | None

    def reaches(self, mark: Mark) -> bool:
        """Whether the standby has replayed everything that was visible on the primary when ``mark`` was taken."""
        return self.position is not None and self.position >= mark.position

    def lag(self, mark: Mark, now: float) -> float:
        """Return how many seconds the standby is behind the primary, at most. ``now`` is the monotonic time.

        The time of a mark is exact to about a second, or to the interval of the only worker that sets marks.
        """
        if self.reaches(mark):
            return max(0.0, now - mark.taken)
        return max(0.0, mark.instant + (now - mark.taken) - ((self.mark or 0) >> 28) / 10)

    def fault(self, mark: Mark, now: float) -> str:
        """Return why nothing that was read in this session may be used; empty if it may be."""
        if not self.recovering:
            return "the server is not a standby: it was promoted, or the URL leads to a primary; give a standby's URL"
        if self.mark is None or (self.mark ^ mark.mark) & _RUN:
            return _NEVER + _STRANGER
        lag = self.lag(mark, now)
        if lag > LAG_LIMIT:
            return (
                f"the standby is {lag:.0f} s behind: look at pg_stat_replication on the primary, and for paused replay"
                " (pg_wal_replay_resume) or recovery_min_apply_delay on the standby"
            )
        return ""


def trouble(error: DatabaseError) -> str:
    """Return what an error of a standby means for the operator."""
    if error.sqlstate == "40001":
        return (
            f"a read was cancelled, because replay needed what it was reading ({error}): set hot_standby_feedback, or raise"
            " max_standby_streaming_delay on the standby"
        )
    if error.sqlstate in ("3F000", "42P01", "42883"):
        return f"the standby does not have the schema of this release ({error}): it lags, or it is another database"
    if isinstance(error, DatabaseUnavailable):
        return f"the standby does not answer: {error}"
    return str(error)
