"""The kit's options, as flags and in the ini file: the deadline of tests, and which tests are checked for leaks."""

from __future__ import annotations

import pytest

DEFAULT_TIMEOUT = 30.0
"""The default deadline in seconds of tests that use the kit's fixtures."""

_LEAKS = ("all", "fixtures", "off")


def add(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("pgbus_gevent", "live updates by pgbus_gevent")
    timeout = (
        "seconds after which a test fails and the stacks of all greenlets are shown; 0: never."
        " Default: 30 for tests that use fixtures of pgbus_gevent"
    )
    leaks = "which tests are checked for leaks: all, fixtures (tests that use fixtures of pgbus_gevent, the default), or off"
    group.addoption("--pgbus-timeout", metavar="SECONDS", help=timeout)
    group.addoption("--pgbus-leaks", choices=_LEAKS, help=leaks)
    parser.addini("pgbus_timeout", timeout, default="")
    parser.addini("pgbus_leaks", leaks, default="fixtures")


def check(config: pytest.Config) -> None:
    """Register the markers. Raises UsageError for an option that is not allowed."""
    _timeout(config)
    _leaks(config)
    config.addinivalue_line("markers", "pgbus_timeout(seconds): the deadline of this test; 0 for none")
    config.addinivalue_line(
        "markers", "pgbus_leaks(which): 'off' exempts this test from the check for leaks, 'all' checks it"
    )


def timeout_of(item: pytest.Item) -> float:
    """Return the deadline of a test in seconds, or 0 for none."""
    marker = item.get_closest_marker("pgbus_timeout")
    if marker is not None:
        if len(marker.args) != 1 or marker.kwargs:
            pytest.fail("pgbus_timeout takes one number of seconds, as in @pytest.mark.pgbus_timeout(5)", pytrace=False)
        return _seconds(marker.args[0])
    configured = _timeout(item.config)
    if configured is not None:
        return configured
    return DEFAULT_TIMEOUT if _uses_kit(item) else 0.0


def checks_leaks(item: pytest.Item) -> bool:
    """Whether a test is checked for leaks."""
    marker = item.get_closest_marker("pgbus_leaks")
    which = marker.args[0] if marker is not None and marker.args else _leaks(item.config)
    return which == "all" or (which == "fixtures" and _uses_kit(item))


def _uses_kit(item: pytest.Item) -> bool:
    names = getattr(item, "fixturenames", ())
    return any(name.startswith("pgbus_") or name == "assert_broadcasts" for name in names)


def _timeout(config: pytest.Config) -> float | None:
    given = config.getoption("--pgbus-timeout") or config.getini("pgbus_timeout")
    return _seconds(given) if given else None


def _seconds(given: object) -> float:
    try:
        seconds = float(str(given))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise pytest.UsageError(
            f"pgbus_timeout={given!r} is not allowed: it takes seconds, such as 30 or 0.5, or 0 for no deadline"
        )
    return seconds


def _leaks(config: pytest.Config) -> str:
    given = config.getoption("--pgbus-leaks") or config.getini("pgbus_leaks")
    if given not in _LEAKS:
        raise pytest.UsageError(f"pgbus_leaks={given!r} is not allowed: it is one of {', '.join(_LEAKS)}")
    return str(given)
