"""Child processes that never outlive the conductor.

Three measures, because each has a hole: the kernel kills a child whose parent ends (PR_SET_PDEATHSIG), which a grandchild does not
inherit; a guard (:mod:`.guard`) kills every process with the run's mark in its environment or with its working directory in the
run's folder; and :class:`Part` kills whole process groups at an orderly end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

MARK = "CHAOS_RUN_OF_PGBUS"
"""The environment variable that every process of a run has. Its value is the folder of the run."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class Account(NamedTuple):
    """The user and the group, by number, that a process runs as."""

    uid: int
    gid: int


class ChaosFailed(Exception):
    """A part of the run cannot be started or used. The message says which, and why."""


class Part:
    """A process in a session of its own, which can be started again. Its output is appended to ``log``.

    Start it from the main thread: the kernel takes the end of the thread that started a child for the end of the parent.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        account: Account | None = None,
        cwd: Path | None = None,
        talks: bool = False,
    ) -> None:
        self.command, self.environment = list(command), dict(environment)
        self._log, self._account, self._cwd, self._talks = log, account, cwd, talks
        self._process: subprocess.Popen[str] | None = None

    def start(self, extra: Mapping[str, str] | None = None) -> None:
        """Start it, or start it again after it has ended. ``extra`` is added to its environment, this time only."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE if self._talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self._talks else log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.environment, **(extra or {})},
                user=self._account.uid if self._account else None,
                group=self._account.gid if self._account else None,
                extra_groups=[] if self._account else None,
                cwd=self._cwd,
                preexec_fn=_die_with(os.getpid()),
                text=True,
                bufsize=1,
            )

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of the process, which is also that of its session."""
        assert self._process is not None
        return self._process.pid

    @property
    def stdin(self) -> IO[str]:
        """The standard input of a process that talks."""
        assert self._process is not None and self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[str]:
        """The standard output of a process that talks."""
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout

    def send(self, number: int) -> None:
        """Send a signal to the process alone."""
        if self.running:
            os.kill(self.pid, number)

    def send_all(self, number: int) -> None:
        """Send a signal to the process and all of its descendants, also those in other sessions."""
        for pid in (*descendants(self.pid), self.pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def last_words(self) -> str:
        """Return the last line of its log."""
        lines = self._log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it has said nothing"

    def children(self) -> list[int]:
        """Return the ids of all descendants."""
        return descendants(self.pid)

    def wait(self, seconds: float) -> bool:
        """Return whether it ends within so many seconds."""
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20.0) -> None:
        """Send a signal, wait for the end, and kill what is left of it and its descendants after ``seconds``."""
        if self._process is None:
            return
        family = descendants(self.pid)
        self.send(number)
        if not self.wait(seconds):
            self.send_all(signal.SIGKILL)
            self.wait(10)
        for pid in family:
            _kill(pid)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass  # what was not yet written cannot be, because the process has ended

    def kill(self) -> None:
        """End it and its descendants at once."""
        if self._process is not None:
            self.send_all(signal.SIGKILL)
            self.stop(signal.SIGKILL)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _die_with(parent: int) -> Callable[[], None]:
    def in_child() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent has ended in between
            os._exit(1)

    return in_child


def descendants(pid: int) -> list[int]:
    """Return the ids of the children of a process, of their children, and so on."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue  # it has ended
            # The name of the program, in brackets, may contain anything.
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found, waiting = [], [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            found.append(child)
            waiting.append(child)
    return found


class Guard:
    """The process that clears up after the conductor, also after one that was killed: :mod:`.guard`."""

    def __init__(self, folder: Path, *, keep: bool) -> None:
        command = [sys.executable, "-m", f"{__package__}.guard", str(folder), *(["--keep"] if keep else [])]
        # Without PR_SET_PDEATHSIG: the guard ends by itself when its stdin does, and has to outlive the conductor until then.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def close(self) -> None:
        """Have it clear up, and wait until it has."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def until(happened: Callable[[], object], seconds: float, what: str, pause: float = 0.05) -> None:
    """Wait until ``happened`` returns something true. Raises :class:`ChaosFailed` after ``seconds``."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise ChaosFailed(f"after {seconds:.0f} s: {what}")
        time.sleep(pause)
