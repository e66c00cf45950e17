"""``python -m pgbus_gevent COMMAND``, also installed as ``pgbus-gevent``."""

from __future__ import annotations

import sys

from . import early_signals

if sys.argv[1:2] == ["serve"]:
    early_signals.hold()

from gevent import monkey

# Patch before anything else is imported: a module keeps what it imported from an unpatched one.
monkey.patch_all()

from .commands.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
