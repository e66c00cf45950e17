"""The yardstick in C: compiles ``loop.c`` and runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pgbus_gevent.bench.program import answer


def main() -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        answer(missing="there is no C compiler: apt-get install gcc")
        return
    with tempfile.TemporaryDirectory(prefix="pgbus-bench-loop-") as directory:
        program = Path(directory, "loop")
        subprocess.run([compiler, "-O2", "-o", program, Path(__file__).with_name("loop.c")], check=True)
        # Its stdin is a pipe to which we write nothing. The pipe ends with this process, and so does the program.
        with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdin is not None
            port = int(process.stdout.readline())
            answer(pids=[process.pid], port=port, path="/", marker="\r\n\r\n", way="raw", options={"port": port})
            sys.stdin.read()
            process.stdin.close()


if __name__ == "__main__":
    main()
