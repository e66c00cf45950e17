"""``python -m tests.simulation``: see docs/simulation.md."""

from __future__ import annotations

import os
import sys

if os.environ.get("PYTHONHASHSEED") != "0":
    # The order of sets of texts depends on it, and a seed must always give the same simulation.
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])

from tests.simulation import clock

clock.install()

from tests.simulation.command import main  # noqa: E402 - after the clock

sys.exit(main())
