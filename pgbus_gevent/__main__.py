"""``python -m pgbus_gevent COMMAND``, also installed as ``pgbus-gevent``."""

from __future__ import annotations

import sys

from . import early_signals

if sys.argv[1:2] == ["serve"]:
    early_signals.hold()

from gevent import monkey

# Before everything else is imported: what was imported unpatched stays so.
monkey.patch_all()

from .commands.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
