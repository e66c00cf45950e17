"""Publishes at a steady rate from several sessions. A transaction that failed is tried again with the same keys."""

from __future__ import annotations

import random
import sys
import threading
import time

import psycopg2

_SESSIONS = 10


def publish(url: str, rate: float, streams: int, number: int) -> None:
    """Publish, for ever. A transaction has one to three messages of different streams. One in ten is rolled back."""
    chance = random.Random(number)
    connection = None
    due = time.monotonic()
    serial = 0
    while True:
        count = chance.choice([1, 1, 1, 2, 3])
        due += count / rate
        time.sleep(max(0.0, due - time.monotonic()))
        due = max(due, time.monotonic() - 1)  # after an outage, do not catch up
        serial += 1
        names = [f"room:{n}" for n in sorted(chance.sample(range(streams), count))]
        # Only a transaction with one stream may append at once: two that append to two streams could deadlock.
        function = chance.choice(["broadcast", "broadcast_on_commit"]) if count == 1 else "broadcast_on_commit"
        keys = [f"{number}.{serial}.{n}" for n in range(count)]
        rolled_back = chance.random() < 0.1
        done = False
        while not done:
            try:
                if connection is None or connection.closed:
                    connection = psycopg2.connect(
                        url, connect_timeout=3, options="-c statement_timeout=5000", tcp_user_timeout=5000
                    )
                with connection.cursor() as cursor:
                    for name, key in zip(names, keys, strict=True):
                        cursor.execute(
                            f"select pgbus.{function}(%s, %s, key => %s)", (name, f"{time.time():.4f} {number}", key)
                        )
                if rolled_back:
                    connection.rollback()
                else:
                    connection.commit()
                done = True
            except psycopg2.Error:
                time.sleep(0.5)
                if connection is not None:
                    connection.close()
                connection = None


def main() -> None:
    """Publish from several threads."""
    url, rate, streams = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    threads = [
        threading.Thread(target=publish, args=(url, rate / _SESSIONS, streams, number), daemon=True)
        for number in range(_SESSIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
