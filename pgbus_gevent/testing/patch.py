"""Patches the process for gevent when it is imported, as pytest's first plugin: ``-p pgbus_gevent.testing.patch``.

A conftest.py would be too late: by then pytest and its plugins have imported ssl and other modules, which keep references to
unpatched functions.
"""

from __future__ import annotations

import os
import sys

import pytest
from gevent import get_hub, monkey

if not monkey.is_module_patched("socket"):
    if "ssl" in sys.modules:
        raise pytest.UsageError(
            "pgbus_gevent.testing.patch comes too late, because ssl is imported already: name it in addopts, as in"
            ' addopts = "-p pgbus_gevent.testing.patch", and not in a conftest.py; or run'
            " `python -m gevent.monkey --module pytest`"
        )
    monkey.patch_all()

_keep_alive = None
if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker of pytest-xdist waits for orders from a native thread, which gevent's hub cannot see. Without a timer, the hub would
    # have nothing to wait for, and raise LoopExit in the main greenlet.
    _keep_alive = get_hub().loop.timer(1.0, 1.0)
    _keep_alive.start(lambda: None)
