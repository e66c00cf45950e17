"""The commands: ``measure``, ``check``, ``predict`` and ``write``."""

from __future__ import annotations

import argparse
import sys

from .check import check
from .tables import predict, write


def main() -> int:
    """Run a command. Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="measure the constants and the points on this machine (5 minutes)")
    measure.add_argument("--data-dir", help="the directory of the database, so that its disk counts")
    measure.add_argument("parts", nargs="*", help="what to measure; default: everything")
    commands.add_parser(
        "check", help="compare the model with the points; the status is 1 if one is off by 25 percent or more"
    )
    commands.add_parser("predict", help="print the tables for large fleets")
    commands.add_parser("write", help="write the tables and plots into docs/scaling.md and docs/images")
    arguments = parser.parse_args()
    if arguments.command == "measure":
        from .measure import PARTS
        from .measure import measure as measure_all

        measure_all(arguments.data_dir, arguments.parts or PARTS)
    elif arguments.command == "check":
        return 0 if check() else 1
    elif arguments.command == "predict":
        print(predict())
    else:
        write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
