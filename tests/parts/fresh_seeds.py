"""Seeds that are fresh with each change, so that a commit passes or fails every time."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pgbus_gevent

PACKAGE = Path(pgbus_gevent.__file__).parent


def fresh_seed(*folders: Path) -> int:
    """Return a seed that follows from the sources of the package and of ``folders``: a number of 31 bits."""
    digest = sha256()
    for folder in (PACKAGE, *folders):
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".sql")):
            digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:4], "big") >> 1
