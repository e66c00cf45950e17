"""Finds out whether the streams of an application have their own database, before ``serve`` starts an embedded server for it.

Only the imported application can tell, and it needs the URL when it is imported. So if ``serve`` was given no URL, the application
is imported once more, in another process: ``python -m pgbus_gevent.hosts.app_probe APP``.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace

from ..settings.passing import environment
from ..settings.table import Settings
from ..streamer.instance import instances
from .serving import load_app, with_streams

logger = logging.getLogger("pgbus_gevent.serve")

_TIMEOUT = 30.0  # seconds for the import

_NOWHERE = "postgresql:///postgres?host=/nonexistent/pgbus"
"""A stand-in for the embedded server's URL. Every attempt to connect to it fails at once."""


def with_own_database(settings: Settings, app_name: str) -> Settings:
    """``settings`` with the database of the application's own streams, or unchanged if it has none."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pgbus_gevent.hosts.app_probe", app_name],
            env=environment(replace(settings, database_url=_NOWHERE)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT,
        )
        found = json.loads(done.stdout.splitlines()[-1]) if done.stdout else None
    except (subprocess.TimeoutExpired, ValueError):
        return settings  # the same error appears when the application is served
    if found is None:
        return settings
    logger.info("no database is set for serve, so it uses that of the application's own streams")
    return replace(settings, **found)


def main(app_name: str) -> None:
    """Print the settings that count as JSON, or null. It ends the process, also if the application has started threads."""
    found = None
    try:
        load_app(app_name)
        own = [instance.settings for instance in with_streams() or instances()]
        if own and all(each.database_url != _NOWHERE for each in own):
            found = {"database_url": own[0].database_url, "migrate": own[0].migrate}
        for instance in instances():
            instance.shutdown(0.0)
    except (Exception, SystemExit):
        pass  # the same error appears when the application is served
    print(f"\n{json.dumps(found)}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
