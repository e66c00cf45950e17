"""The publishers of a run: a program with one thread for each publisher. :mod:`.publishing` has the kinds.

A transaction that publishes also writes its messages to the table ``chaos.ledger``, so that the two can be compared. The journal
has what was tried, and what the publisher believes has become of it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from pathlib import Path

import psycopg2

from ...bus import Bus
from ...errors import PgbusError
from .journal import Attempt, Journal
from .publishing import KINDS, Kind, RolledBack, Ways

_PAUSE = 0.3  # seconds after a failure
_NUMBERS = 1_000_000  # the messages of a publisher are numbered from this times its own number


class Publisher(threading.Thread):
    """Publishes in one way, at random intervals, until ``stopping`` is set."""

    def __init__(self, number: int, kind: Kind, ways: Ways, journal: Journal, stopping: threading.Event) -> None:
        super().__init__(name=kind.name, daemon=True)
        self._kind, self._ways, self._journal, self._stopping = kind, ways, journal, stopping
        self._chance = random.Random(number)
        self._next = number * _NUMBERS
        self.counts = dict.fromkeys(("committed", "rolled back", "unknown"), 0)
        self.error = ""

    def run(self) -> None:
        """Publish."""
        try:
            while not self._stopping.wait(self._chance.expovariate(1 / self._kind.interval)):
                self._once()
        except Exception as error:
            # A fault of this program, not of the parts: the conductor fails the run.
            self.error = f"{self.name}: {type(error).__name__}: {error}"
            raise

    def _once(self) -> None:
        stream = self._chance.choice(self._kind.streams)
        messages = [self._number() for _ in range(self._chance.randint(*self._kind.size))]
        self._ways.asked = time.monotonic()
        try:
            outcome = self._kind.publish(self._ways, self._chance, stream, messages)
        except RolledBack:
            outcome = "rolled back"
            self._ways.forget()
        except (psycopg2.Error, PgbusError, OSError):
            outcome = "unknown"
            self._ways.forget()
        for message in messages:
            self._journal.write(Attempt(message, stream, self._kind.name, self._ways.asked, outcome))
        self.counts[outcome] += len(messages)
        if outcome == "unknown":
            self._stopping.wait(_PAUSE)

    def _number(self) -> int:
        self._next += 1
        return self._next


def main() -> None:
    """Publish until stdin ends. Each line on stdin is answered with the counts so far."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("url")
    parser.add_argument("places", nargs="+", help="the URLs of the workers")
    parser.add_argument("--first", type=int, default=1, help="the number of the first publisher")
    parser.add_argument("--kinds", default="", help="only these kinds, separated by commas")
    parser.add_argument("--token", required=True)
    arguments = parser.parse_args()
    journal = Journal(arguments.folder / "journal.jsonl")
    stopping = threading.Event()
    wanted = [kind for kind in KINDS if not arguments.kinds or kind.name in arguments.kinds.split(",")]
    secret = "the secret of a chaos run"  # nosec B105 # of servers that only a run starts
    with Bus(arguments.url, secret=secret, migrate=False) as bus:
        publishers = []
        all_of_them = [kind for kind in wanted for _ in range(kind.number)]
        for number, kind in enumerate(all_of_them, start=arguments.first):
            ways = Ways(arguments.url, bus, arguments.places, arguments.token, arguments.folder)
            publishers.append(Publisher(number, kind, ways, journal, stopping))
        for publisher in publishers:
            publisher.start()
        while sys.stdin.readline():
            counts: dict[str, dict[str, int]] = {}
            for publisher in publishers:
                mine = counts.setdefault(publisher.name, dict.fromkeys(publisher.counts, 0))
                for outcome, count in publisher.counts.items():
                    mine[outcome] += count
            failed = [publisher.error for publisher in publishers if publisher.error]
            print(json.dumps({"counts": counts, "failed": failed}), flush=True)
        stopping.set()
        ending = time.monotonic() + 30
        for publisher in publishers:
            publisher.join(max(0.0, ending - time.monotonic()))


if __name__ == "__main__":
    main()
