"""``python -m tests.simulation``: see docs/simulation.md."""

from __future__ import annotations

import sys

from .command import main

sys.exit(main())
