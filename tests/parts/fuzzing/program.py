"""The program ``python -m tests.fuzz``."""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import os
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fresh_seeds import fresh_seed

from fuzzing.engine import Finding, Judge, Target, fuzz, judging, shrunk
from fuzzing.streams import BROWSER, fuzz_in_browser
from fuzzing.targets import TARGETS, provided
from pgbus_gevent.database import green


def main(arguments: list[str] | None = None) -> int:
    """Fuzz, and return the exit status: 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz targets, each for some seconds.")
    parser.add_argument("target", nargs="*", help=f"all by default: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="default: any")
    parser.add_argument("--engine", choices=["hypothesis", "atheris"], default="hypothesis")
    given = parser.parse_args(arguments)
    for name in given.target:
        if name not in TARGETS:
            parser.error(f"there is no target {name!r}: there are {', '.join(TARGETS)}")
    seed = random.randrange(1 << 31) if given.seed is None else given.seed
    faulthandler.enable()
    green.install()
    found = 0
    with provided() as needs:
        for name in given.target or TARGETS:
            found += _fuzz(TARGETS[name], needs, given.engine, given.seconds, seed)
    return 1 if found else 0


def seed_in_the_suite() -> int:
    """Return ``FUZZ_SEED`` of the environment, or one that each change of the package or of the fuzzer makes anew."""
    return int(os.environ.get("FUZZ_SEED") or fresh_seed(Path(__file__).parent))


def in_the_suite(target: Target, *needs: Any, seconds: float) -> None:
    """Run the corpus of a target, and fresh inputs for some seconds. Raises :class:`Finding`. The seed is printed."""
    seed = seed_in_the_suite()
    assert target.corpus(), f"{target.folder} is empty"
    with judging(target, *needs) as judge:
        assert fuzz(judge, seconds=seconds, seed=seed) > 0


def _fuzz(target: Target, needs: Any, engine: str, seconds: float, seed: int) -> int:
    faulthandler.dump_traceback_later(seconds + 600, exit=True)  # an input that computes without an end
    try:
        with ExitStack() as stack:
            if target is BROWSER:
                fuzz_in_browser(*needs(target, stack), seconds=seconds, seed=seed)
                return 0
            judge = stack.enter_context(judging(target, *needs(target, stack)))
            if engine == "atheris":
                _atheris(judge, seconds, seed)
                return 0
            try:
                fuzz(judge, seconds=seconds, seed=seed)
            except Finding as error:
                raise shrunk(judge, error) from None
    except Finding as error:
        path = target.folder / f"found-{hashlib.sha256(error.data).hexdigest()[:10]}"
        target.folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(error.data)
        print(f"FOUND {error}\nwritten to {path}", file=sys.stderr, flush=True)
        return 1
    finally:
        faulthandler.cancel_dump_traceback_later()
    return 0


def _atheris(judge: Judge, seconds: float, seed: int) -> None:
    """Let atheris, which must be installed, find inputs that reach new code. It ends the process when the time is over."""
    import atheris  # type: ignore[import-not-found]

    found = tempfile.mkdtemp(prefix="pgbus-fuzz-")  # where atheris keeps inputs that reach new code
    options = [f"-max_total_time={round(seconds)}", f"-seed={seed & 0x7FFFFFFF}", f"-max_len={judge.target.most}"]
    atheris.Setup([sys.argv[0], *options, found, str(judge.target.folder)], judge.run)
    atheris.Fuzz()
