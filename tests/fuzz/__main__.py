"""``python -m tests.fuzz [TARGET…] [--seconds N] [--seed S]``: fuzz targets by hand."""

import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "parts"))

from gevent import monkey

monkey.patch_all()

instrumented: Any = nullcontext()
if "atheris" in sys.argv:
    import atheris  # it sees which code an input reaches only in modules that are imported in this block

    instrumented = atheris.instrument_imports(include=["pgbus_gevent"])
with instrumented:
    from fuzzing.program import main

signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, so that the servers are ended
try:
    sys.exit(main())
except KeyboardInterrupt:
    sys.exit("interrupted")
