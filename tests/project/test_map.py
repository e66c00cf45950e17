"""A test file has the name of the module that it tests, in a folder that mirrors the package."""

from __future__ import annotations

from pathlib import Path

import pgbus_gevent

TESTS = Path(__file__).parents[1]
PACKAGE = Path(pgbus_gevent.__file__).parent

SUBJECTS = {
    "browser": "the element and the pages in a real browser",
