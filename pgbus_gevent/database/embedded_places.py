"""Where root puts what the embedded server's user has to reach: permissions of directories that are not ours stay as they are.

PostgreSQL does not run as root, and often the user that it runs as may not enter the directory of the data, or of the wheel: both
may be in root's home. Then they are put below ``/var/lib/pgbus-gevent``, and the data directory has a link to them.
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
    """Whether ``account`` gets to ``path``, and may do there what the letters of test(1) say, for root to ask."""
    return all(
        subprocess.run(
            ["test", kind, str(path)], cwd="/", user=account.uid, group=account.gid, extra_groups=[]
        ).returncode
        == 0
        for kind in kinds
    )


def programs(package: Path, version: str, account: Account) -> Path:
    """The folder of PostgreSQL's programs that ``account`` may run: the wheel's own, or a copy."""
    own = package / "pginstall"
    if reaches(account, own / "bin" / "postgres", "-r", "-x") and reaches(account, own / "lib", "-r", "-x"):
        return own
    copy = PLACE / f"programs-{version}"
    if not reaches(account, copy / package.name / "pginstall" / "bin" / "initdb", "-x"):
        shutil.rmtree(copy, ignore_errors=True)  # what is left of one that somebody removed in part
        _copy(package, copy)
        logger.warning(
            "user %d cannot reach the embedded PostgreSQL in %s: it was copied to %s", account.uid, package, copy
        )
    return copy / package.name / "pginstall"


def _copy(package: Path, copy: Path) -> None:
    """All or nothing, as others may be at the same."""
    _make_place()
    half = Path(tempfile.mkdtemp(prefix="programs-", dir=PLACE))
    try:
        # The libraries beside it are found by their relative place.
        for tree in (package, *package.parent.glob(f"{package.name}.libs")):
            # Files, not links: an installer may have linked the wheel's into a cache, which the user cannot reach, or which goes.
            shutil.copytree(tree, half / tree.name)
        for path in (half, *half.rglob("*")):
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.stat().st_mode & 0o100 else 0o044))
        with suppress(OSError):  # another process was quicker
            half.rename(copy)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def new_home(data_dir: Path) -> Path:
    """A folder of our own for the cluster of ``data_dir``; a file in it says whose it is."""
    _make_place()
    home = Path(tempfile.mkdtemp(prefix="data-", dir=PLACE))
    home.chmod(0o711)
    (home / "data-dir").write_text(f"{data_dir}\n")
    return home


def move(cluster: Path, home: Path, account: Account) -> None:
    """Take a cluster, whose server does not run, to another folder, and leave a link to it."""
    there = home / cluster.name
    shutil.move(cluster, there)
    for path in (there, *there.rglob("*")):
        # After a move to another file system it is root's.
        os.chown(path, *account, follow_symlinks=False)
    cluster.symlink_to(there)
    logger.warning(
        "user %d, who owns the embedded database in %s, cannot get there: it was moved to %s, and a link is in its place",
        account.uid,
        cluster.parent,
        there,
    )


def _make_place() -> None:
    PLACE.mkdir(mode=0o711, parents=True, exist_ok=True)
