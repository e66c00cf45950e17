"""The secret that signs stream names if none is configured: a file in the data directory."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ..errors import InvalidArgument
from .program import PROGRAM


def read_or_make_secret(data_dir: str, create: bool) -> str:
    """Return the secret in the file ``<data_dir>/secret``. With ``create``, make the file if it is missing.

    Only its owner can read the file. Raises :class:`InvalidArgument` if it is missing or contains no secret, and OSError if it
    cannot be read or made.
    """
    path = Path(data_dir, "secret")
    if create and not path.exists():
        _make_secret(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise InvalidArgument(
            f"secret is not set: set PGBUS_SECRET to the server's secret, or start `{PROGRAM} serve` on its embedded"
            f" database, which makes {path}"
        ) from None
    if len(lines) != 1 or len(lines[0]) < 16:
        raise InvalidArgument(
            f"{path} contains no secret, which is one line of at least 16 characters: remove the file, and `{PROGRAM} serve`"
            " makes a new one (names that are signed already will no longer verify)"
        )
    return lines[0]


def _make_secret(path: Path) -> None:
    """Make the file in one step with a link, so that no process reads half of it.

    If several processes do this at the same time, the first one wins, and the others read its secret.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"secret.{secrets.token_hex(8)}")
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(new, path)
        except FileExistsError:
            pass
    finally:
        new.unlink()
