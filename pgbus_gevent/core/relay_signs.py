"""What a worker knows of the relay, and how often it asks the database for itself."""

from __future__ import annotations

POLL_SHARE = 0.1
"""The factor by which intervals between questions to the database are shortened while no notifications are heard."""

POLL_PER_WORKER = 0.01
"""Seconds for each worker between two such questions, so that a large fleet does not overwhelm the database."""

RELAYED_PER_WORKER = 2.0
"""Seconds for each worker between two questions to the database that nothing has caused, while a relay's beacons are heard."""

RELAYED_MOST = 300.0
"""The longest time between two such questions of one worker, in seconds."""

SPREAD = 0.005
"""Seconds for each worker of the fleet over which the workers turn to the database after the relay has failed."""

MOST_SPREAD = 10.0
"""The most seconds over which they do."""


def spread(workers: int) -> float:
    """Return the seconds over which a fleet of so many workers turns to the database."""
    return min(MOST_SPREAD, SPREAD * workers)


class RelaySigns:
    """The state of the way through a relay. A worker without one leaves it as it is."""

    def __init__(self) -> None:
        self.heard = False
        """Whether wakes come through a relay, whose beacons show that none is missing."""
        self.until = 0.0
        """Until when the relay counts as alive, in monotonic seconds."""
        self.reaches: bool | None = None
        """Whether this worker reaches the servers through which relays publish. None: it uses no relay."""

    def can_hear(self, listening: bool) -> bool:
        """Whether wakes can reach this worker: notifications, if it is ``listening``, or those of a relay."""
        return listening or bool(self.reaches)


def until_next(interval: float, *, workers: int, listening: bool, relayed: bool) -> float:
    """Return the seconds until a worker's next question to the database, which otherwise come each ``interval``.

    ``listening`` says whether wakes are heard, and ``relayed`` whether they come through a relay. ``workers`` is the size of the
    fleet: in a large one it is longer, because all workers ask the same database.
    """
    if relayed:
        return max(interval, min(RELAYED_PER_WORKER * workers, RELAYED_MOST))
    if listening:
        return interval
    return max(interval * POLL_SHARE, min(interval, POLL_PER_WORKER * workers))
