"""``python -m tests.fuzz [TARGET…] [--seconds N] [--seed S]``: fuzz targets by hand."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "parts"))

from gevent import monkey

monkey.patch_all()

from fuzzing.program import main  # noqa: E402

sys.exit(main())
