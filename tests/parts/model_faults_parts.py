"""Faults that are planted in copies of the model of the database, to show that the comparison with the real one finds them."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tests.simulation import database

SOURCE = Path(str(database.__file__)).parent


class Fault(NamedTuple):
    """``old`` is replaced by ``new`` in a file of the model."""

    name: str
    file: str
    old: str
    new: str


FAULTS = [
    # ids and prev_id
    Fault(
        "a transaction with one snapshot names the previous id that it sees",
        "publishing.py",
        "None if transaction.has_one_snapshot else head, fresh",
        "head, fresh",
    ),
    Fault(
        "the first of a batch names no previous id",
        "publishing.py",
        "    yield from insert(server, transaction, ids, head, messages)\n    return ids[-1]",
        "    yield from insert(server, transaction, ids, None, messages)\n    return ids[-1]",
    ),
    Fault(
        "all messages of a batch name the id before the batch", "publishing.py", "        prev = id\n", "        pass\n"
    ),
    Fault(
        "a rollback gives the ids back",
        "server.py",
        "        value = sequence.next()\n",
        "        value = sequence.next()\n"
        "        transaction.on_undo(lambda: setattr(sequence, 'last', (sequence.last or 0) - 1))\n",
    ),
    Fault("the head of a pruned stream is 0", "server.py", "snapshot)), horizon)", "snapshot)), 0)"),
    Fault(
        "an id of an earlier epoch is taken",
        "ids.py",
        "    return server.jumped.last == epoch(server) and floor",
        "    return floor",
    ),
    Fault(
        "an id below the head of its stream is taken", "ids.py", "if ids[0] <= head or ids[0] <= given or not", "if not"
    ),
    Fault(
        "nobody notices that the sequence was set back",
        "ids.py",
        "ids[0] <= head or ids[0] <= given or",
        "ids[0] <= head or",
    ),
    Fault("a jump does not raise the floor", "ids.py", "            server.floor.set(last)\n", ""),
    Fault("a jump is short", "ids.py", "LEAP = 100_000", "LEAP = 1_000"),
    Fault(
        "ids are drawn when a message is queued",
        "publishing.py",
        '    transaction.settings["flush"] = "yes"\n',
        '    transaction.settings["flush"] = "yes"\n    server.draw(server.message_ids, transaction)\n',
    ),
    # locks
    Fault(
        "the lock of a stream ends with the statement",
        "publishing.py",
        "[message])\n    return ids[0]",
        "[message])\n    transaction.locks.clear()\n    server.give_back(transaction)\n    return ids[0]",
    ),
    Fault("each stream has a lock of its own", "publishing.py", "server.lock_number(stream))\n", "hash(stream))\n"),
    Fault(
        "the lock of a stream is not taken",
        "publishing.py",
        "    if not server.locks.take(key, transaction):\n        yield key",
        "    if not key:\n        yield key",
    ),
    Fault(
        "a savepoint keeps the locks that were taken after it",
        "session.py",
        "        transaction.rollback_to(name)\n        self.server.give_back(transaction)",
        "        kept = list(transaction.locks)\n        transaction.rollback_to(name)\n"
        "        transaction.locks[:] = kept",
    ),
    Fault(
        "the last one that waits is the first to go on",
        "locks.py",
        "                self.leave(key, queue[0])\n                self.take(key, queue[0].transaction)\n"
        "                woken.append(queue[0])",
        "                self.leave(key, queue[-1])\n                self.take(key, queue[-1].transaction)\n"
        "                woken.append(queue[-1])",
    ),
    Fault(
        "an error keeps the locks until the rollback",
        "server.py",
        "        else:\n            self.abort(transaction)\n\n    def _close",
        "        else:\n            pass\n\n    def _close",
    ),
    Fault(
        "streams are locked in the order in which they were queued",
        "publishing.py",
        "key=lambda name: (server.lock_number(name), name.encode()))",
        "key=[message.stream for message in mine].index)",
    ),
    Fault(
        "two removals run at once",
        "retention.py",
        "    if not server.locks.take(PRUNING, transaction):\n        yield PRUNING\n    now",
        "    if not PRUNING:\n        yield PRUNING\n    now",
    ),
    # snapshots
    Fault(
        "READ COMMITTED keeps its first snapshot",
        "server.py",
        "if not transaction.has_one_snapshot:",
        "if not transaction:",
    ),
    Fault("REPEATABLE READ sees new commits", "server.py", "if not transaction.has_one_snapshot:", "if transaction:"),
    Fault(
        "the snapshot is taken at BEGIN",
        "server.py",
        "        transaction = Transaction(session, isolation)\n",
        "        transaction = Transaction(session, isolation)\n        self.snapshot(transaction)\n",
    ),
    Fault(
        "a transaction does not see its own messages",
        "transactions.py",
        "return transaction is self.own or (",
        "return (",
    ),
    Fault(
        "uncommitted messages are visible",
        "transactions.py",
        "(transaction.csn is not None and transaction.csn <= self.csn)",
        "(transaction.csn is None or transaction.csn <= self.csn)",
    ),
    Fault(
        "an old snapshot loses what was pruned since",
        "transactions.py",
        "(row.died is None or not self._includes(row.died))",
        "(row.died is None or row.died.csn is None)",
    ),
    Fault(
        "a rollback commits",
        "session.py",
        "            self.server.abort(transaction)",
        "            self.server.finish(transaction)",
    ),
    Fault(
        "a savepoint keeps the messages that were written after it",
        "server.py",
        "        transaction.on_undo(lambda: self.messages.remove(row))\n",
        "",
    ),
    # keys
    Fault("a key does not count", "publishing.py", "(is_first and not server", "(is_first or not server"),
    Fault(
        "a key counts once in a batch and again in the next",
        "publishing.py",
        "            fresh.append(message)",
        "            fresh.append(message._replace(key=None))",
    ),
    Fault(
        "a key of another stream counts",
        "tables.py",
        "self._keys.get((stream, key), [])",
        "[row for (_, own), rows in self._keys.items() for row in rows if own == key]",
    ),
    Fault(
        "an unseen key is no failure to serialize",
        "publishing.py",
        "if transaction.has_one_snapshot and is_taken(",
        "if not transaction and is_taken(",
    ),
    # notifications
    Fault(
        "a notification is sent before the commit",
        "doorbell.py",
        "    if (name, payload) not in transaction.notifications:",
        "    if transaction.session is not None:\n        for ear in transaction.session.server.ears:\n"
        "            ear.hear(name, payload)\n    elif (name, payload) not in transaction.notifications:",
    ),
    Fault(
        "equal notifications of a transaction are sent twice",
        "doorbell.py",
        "    if (name, payload) not in transaction.notifications:",
        "    if transaction:",
    ),
    Fault(
        "a savepoint keeps the notifications that were sent after it",
        "transactions.py",
        "        del self.notifications[savepoint.notes :]\n"
        "        self.settings = dict(savepoint.settings)\n        del self.savepoints",
        "        self.settings = dict(savepoint.settings)\n        del self.savepoints",
    ),
    Fault(
        "a savepoint keeps what is to ring",
        "transactions.py",
        "        self.settings = dict(savepoint.settings)\n        del self.savepoints",
        "        del self.savepoints",
    ),
    Fault("there is one bell", "doorbell.py", "or server.locks.take((BELL, 1), transaction)", ""),
    Fault(
        "there are three bells",
        "doorbell.py",
        "server.locks.take((BELL, 1), transaction)",
        "server.locks.take((BELL, 1), transaction) or server.locks.take((BELL, 2), transaction)",
    ),
    Fault(
        "a ring names only its own stream",
        "doorbell.py",
        "moved = ANY if len(moved.encode()) > LONG_LIST else moved + name",
        "moved = name",
    ),
    Fault(
        "a ring carries its message although others moved",
        "doorbell.py",
        "        if not moved and row.size < LARGE:",
        "        if row.size < LARGE:",
    ),
    Fault("a large message is in its ring", "doorbell.py", "LARGEST = 7900", "LARGEST = 79000"),
    Fault("a transaction rings only once", "doorbell.py", '    transaction.settings["ring"] = ""\n', ""),
    Fault(
        "the ring does not wait for what was queued",
        "doorbell.py",
        '    if transaction.setting("flush"):',
        "    if not transaction:",
    ),
    Fault(
        "all streams have one channel",
        "doorbell.py",
        "channel(server.doorbell, bucket_of(stream)), payload",
        "channel(server.doorbell, 0), payload",
    ),
    # reads
    Fault(
        "a page that is just full says that there is no more",
        "reading.py",
        "    return taken, None, total >= size\n",
        "    return taken, None, False\n",
    ),
    Fault(
        "a page does not look beyond its limit",
        "reading.py",
        "            return taken, row, False\n",
        "            return taken, None, False\n",
    ),
    Fault(
        "the anchor of a page is its cursor",
        "reading.py",
        "        more = full or beyond",
        "        anchor = cursor\n        more = full or beyond",
    ),
    Fault(
        "an opening is complete from the row that was left out",
        "reading.py",
        "floor = max(floor, beyond.id)",
        "floor = max(floor, beyond.id - 1)",
    ),
    Fault("an opening begins one message too late", "reading.py", "replay or 0, None)", "(replay or 1) - 1, None)"),
    Fault(
        "a head above the table counts as not moved",
        "reading.py",
        "if newest > head or (newest < head and stream not in pruned):",
        "if newest > head:",
    ),
    Fault(
        "an inventory counts its floor",
        "reading.py",
        "max(floor, horizon), snapshot) if row.id <= head]",
        "max(floor, horizon) - 1, snapshot) if row.id <= head]",
    ),
    Fault("a tail brings no holes", "reading.py", "for id in sorted(set(holes))", "for id in ()"),
    Fault(
        "a tail is not bounded",
        "reading.py",
        "    found += islice(server.messages.of_all_above(above, snapshot), limit)\n",
        "    found += server.messages.of_all_above(above, snapshot)\n",
    ),
    Fault(
        "a tail brings the data of every stream",
        "reading.py",
        "row.size < LARGE and (streams is None or row.stream in streams)",
        "row.size < LARGE",
    ),
    Fault(
        "a transaction that has not ended counts as ended",
        "server.py",
        "        return min((one.xid for one in self.open_transactions if one.xid is not None), default=self.next_xid)",
        "        return self.next_xid",
    ),
    Fault(
        "a revocation is read only after its transaction's number",
        "reading.py",
        "row.xid >= after.xid",
        "row.xid > after.xid",
    ),
    # retention
    Fault("pruning keeps one message more", "retention.py", "snapshot), count, None)", "snapshot), count + 1, None)"),
    Fault("pruning ignores the age", "retention.py", "if row.created_at >= since), HIGHEST)", "if row), HIGHEST)"),
    Fault("pruning exceeds its limit", "retention.py", "            if len(gone) < left:\n", "            if row:\n"),
    Fault(
        "pruning leaves no horizon",
        "retention.py",
        "            _note_horizon(server, transaction, stream, gone[-1].id, now)\n",
        "",
    ),
    Fault(
        "a stream that has messages is forgotten",
        "retention.py",
        " and server.head(name, snapshot) == known[name].id",
        "",
    ),
    Fault(
        "nobody remembers what was forgotten",
        "retention.py",
        "        server.forgotten.set(highest)\n",
        "        pass\n",
    ),
]


def planted(fault: Fault, directory: Path, number: int) -> ModuleType:
    """Return a copy of the model with a fault."""
    name = f"model_with_fault_{number}"
    copy = directory / name
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / fault.file).read_text()
    assert text.count(fault.old) == 1, f"{fault.name}: {text.count(fault.old)} places in {fault.file}"
    (copy / fault.file).write_text(text.replace(fault.old, fault.new))
    sys.path.insert(0, str(directory))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(directory))


def forget(module: ModuleType) -> None:
    """Remove a copy from the loaded modules."""
    for name in [name for name in sys.modules if name == module.__name__ or name.startswith(f"{module.__name__}.")]:
        del sys.modules[name]
