"""The result of a check of ``doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"


class Finding(NamedTuple):
    """The result of a check. ``level`` is ok, warn, fail, or skip for a check that could not be made.

    ``todo`` says what to do, in one line or several, and is empty if there is no problem. ``figures`` are the numbers and other
    values in ``text``, for programs; docs/reference/doctor.schema.json describes those of each check.
    """

    check: str
    level: str
    text: str
    todo: str = ""
    figures: Mapping[str, Any] = MappingProxyType({})


def lasting(seconds: float) -> str:
    """Return a duration, as text."""
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} seconds"


def rounded(seconds: float) -> float:
    """Return a duration for :attr:`Finding.figures`, in seconds, to a tenth of a millisecond."""
    return round(seconds, 4)
