"""Patches the process for gevent when it is imported: pytest's ``-p pgbus_gevent.testing.patch``, first of all plugins.

A conftest.py would be too late: pytest and its plugins have imported ssl and others by then, which keep what they imported.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()
