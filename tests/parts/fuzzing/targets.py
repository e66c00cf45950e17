"""All targets, and what they need: databases, Redis, a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from fuzzing import applications, hooks, origin, pure, redis, sql, streams, web, wire
from fuzzing.engine import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *pure.TARGETS,
        *web.TARGETS,
        *hooks.TARGETS,
        *applications.TARGETS,
        *sql.TARGETS,
        *origin.TARGETS,
        *redis.TARGETS,
        streams.STREAM,
        streams.BROWSER,
        *wire.TARGETS,
    )
}
"""By name."""


@contextmanager
def provided() -> Iterator[Callable[[Target, ExitStack], tuple[Any, ...]]]:
    """Give a function that provides what a target needs, for as long as its stack."""
    from pgbus_gevent.testing.databases import TestDatabases

    databases: list[TestDatabases] = []

    def needs(target: Target, stack: ExitStack) -> tuple[Any, ...]:
        if target.needs == "database":
            if not databases:
                databases.append(TestDatabases())
            url = databases[0].make()
            stack.callback(databases[0].drop, url)
            return (url,)
        if target.needs == "browser":
            from browser_parts import Browser

            browser = Browser()
            stack.callback(browser.close)
            return (browser,)
        return ()

    try:
        yield needs
    finally:
        for each in databases:
            each.close()
