"""Patches the process for gevent when it is imported: pytest's ``-p pgbus_gevent.testing.patch``, first of all plugins.

A conftest.py would be too late: pytest and its plugins have imported ssl and others by then, which keep what they imported.
"""

from __future__ import annotations

import os
import sys

import pytest
from gevent import get_hub, monkey

if not monkey.is_module_patched("socket"):
    if "ssl" in sys.modules:
        raise pytest.UsageError(
            "pgbus_gevent.testing.patch comes too late, as ssl is imported already: name it in addopts, as in"
            ' addopts = "-p pgbus_gevent.testing.patch", and in no conftest.py; or run'
            " `python -m gevent.monkey --module pytest`"
        )
    monkey.patch_all()

_keep_alive = None
if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker waits for orders that a native thread takes in. That alone is nothing that gevent's hub could wait for: without a
    # timer it would say that the main greenlet waits for ever.
    _keep_alive = get_hub().loop.timer(1.0, 1.0)
    _keep_alive.start(lambda: None)
