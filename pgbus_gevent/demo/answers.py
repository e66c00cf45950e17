"""An answer that is written word by word. One process writes at a time; if it ends, another process continues.

Each step locks the answer's row, publishes the next word and increases ``written``, in one transaction. So each word is
published once, by any process, and a page that follows the stream from the answer's first message gets all words.
"""

from __future__ import annotations

import json
import logging
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
from gevent.event import Event as Signal

from ..errors import PgbusError

if TYPE_CHECKING:
    from pgbus_gevent import Bus

STREAM = "demo:answer"

PACE = 0.14
"""Seconds between two words."""
LEASE = 3
"""Seconds after a word in which only the same process may write the next one."""
FRESH = "30 minutes"
"""How long an answer is shown. Its messages must be retained as long."""


class Topic(NamedTuple):
    """A question that visitors can ask, and its answer, from a book in the public domain."""

    question: str
    source: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words that are published one by one."""
        return self.text.split()


TOPICS = {
    "woods": Topic(
        "Why the woods?",
        "Henry David Thoreau, Walden",
        "I went to the woods because I wished to live deliberately, to front only the essential facts of life, and see if I"
        " could not learn what it had to teach, and not, when I came to die, discover that I had not lived. I did not wish to"
        " live what was not life, living is so dear; nor did I wish to practise resignation, unless it was quite necessary.",
    ),
    "sea": Topic(
        "Why go to sea?",
        "Herman Melville, Moby-Dick",
        "Some years ago, never mind how long precisely, having little or no money in my purse, and nothing particular to"
        " interest me on shore, I thought I would sail about a little and see the watery part of the world. It is a way I have"
        " of driving off the spleen and regulating the circulation. Whenever I find myself growing grim about the mouth;"
        " whenever it is a damp, drizzly November in my soul; then, I account it high time to get to sea as soon as I can.",
    ),
    "late": Topic(
        "Who is late?",
        "Lewis Carroll, Alice’s Adventures in Wonderland",
        "There was nothing so very remarkable in that; nor did Alice think it so very much out of the way to hear the Rabbit"
        " say to itself, “Oh dear! Oh dear! I shall be late!” but when the Rabbit actually took a watch out of its"
        " waistcoat-pocket, and looked at it, and then hurried on, Alice started to her feet, for it flashed across her mind"
        " that she had never before seen a rabbit with either a waistcoat-pocket, or a watch to take out of it.",
    ),
}

_TABLES = """
select pg_advisory_xact_lock(hashtext('pgbus_gevent.demo'));  -- without it, two concurrent "create ... if not exists" can fail
create table if not exists demo_answers (
    id bigint generated always as identity primary key,
    topic text not null,
    words integer not null,
    written integer not null default 0,
    first_id bigint not null default 0,
    started_at timestamptz not null default now(),
    owner text,
    leased_until timestamptz
);
create unique index if not exists demo_answers_unfinished on demo_answers ((true)) where written < words;
"""

_START = "insert into demo_answers (topic, words) values (%(topic)s, %(words)s) on conflict do nothing returning id"

_FIRST = """
update demo_answers set first_id = pgbus.broadcast(%(stream)s, %(data)s, event => 'answer.start') where id = %(id)s
"""

_TAKE = """
select id, topic, words, written from demo_answers
where written < words and (owner = %(owner)s or leased_until is null or leased_until < now())
for update skip locked
"""

_WRITTEN = """
update demo_answers
set written = %(written)s, owner = %(owner)s, leased_until = now() + %(lease)s * interval '1 s'
where id = %(id)s
"""

_LATEST = """
select id, topic, words, written, coalesce(
  (select m.msg_id from pgbus.messages m where m.stream = %(stream)s and m.msg_id < first_id order by m.msg_id desc limit 1), 0)
from demo_answers
where started_at > now() - %(fresh)s::interval order by id desc limit 1
"""

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """The answer that is shown, finished or not. ``before`` is the cursor after which all of its messages follow."""

    id: int
    topic: str
    words: int
    written: int
    before: int

    @property
    def finished(self) -> bool:
        return self.written >= self.words


def prepare(database_cursor: Any) -> None:
    """Make the table if it is missing."""
    database_cursor.execute(_TABLES)


def latest(database_cursor: Any) -> Answer | None:
    """Return the newest answer, or None if there is none or it is older than :data:`FRESH`."""
    database_cursor.execute(_LATEST, {"fresh": FRESH, "stream": STREAM})
    row = database_cursor.fetchone()
    return row and Answer(*row)


def start(database_cursor: Any, topic: str) -> bool:
    """Start an answer in the caller's transaction. Returns False if another one is being written."""
    words = len(TOPICS[topic].words)
    database_cursor.execute("delete from demo_answers where started_at < now() - interval '1 day'")
    database_cursor.execute(_START, {"topic": topic, "words": words})
    row = database_cursor.fetchone()
    if row is None:
        return False
    data = json.dumps({"answer": row[0], "topic": topic, "words": words})
    database_cursor.execute(_FIRST, {"stream": STREAM, "data": data, "id": row[0]})
    return True


class Writer:
    """Writes the answer, in a greenlet that runs while there are words to write.

    :meth:`wake` may be called at any time, in any number of processes. One process writes. If it ends, the next process that is
    woken continues.
    """

    def __init__(self, bus: Bus, *, pace: float = PACE) -> None:
        self._bus = bus
        self._pace = pace
        self._owner = uuid.uuid4().hex
        self._stopping = Signal()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def wake(self) -> None:
        """Start to write if there is an answer to write."""
        if not self._stopping.is_set() and (self._greenlet is None or self._greenlet.ready()):
            self._greenlet = gevent.spawn(self._run)

    def stop(self, timeout: float = 5.0) -> None:
        """Stop writing, within ``timeout`` seconds. Another process can continue at once."""
        self._stopping.set()
        if self._greenlet is not None:
            self._greenlet.join(timeout)
            self._greenlet.kill()

    def _run(self) -> None:
        try:
            while self.step():
                if self._stopping.wait(self._pace):
                    self._release()
                    return
        except PgbusError as error:
            log.warning("stopped writing the answer; the next process that is woken continues: %s", error)

    def step(self) -> bool:
        """Publish the next word. Returns False if there is no further word, or another process writes the answer."""
        with self._bus.transaction() as database_cursor:
            database_cursor.execute(_TAKE, {"owner": self._owner})
            row = database_cursor.fetchone()
            if row is None:
                return False
            id, topic, words, written = row
            # Another release of this package may have started the answer, with another text.
            text = [*TOPICS[topic].words[written : written + 1]] if topic in TOPICS else []
            after = written + len(text) if text else words
            stream = self._bus.stream(STREAM)
            if text:
                word = {"answer": id, "at": written, "text": text[0]}
                stream.broadcast(json.dumps(word), event="answer.word", using=database_cursor)
            if after >= words:
                stream.broadcast(json.dumps({"answer": id}), event="answer.end", using=database_cursor)
            database_cursor.execute(_WRITTEN, {"id": id, "written": after, "owner": self._owner, "lease": LEASE})
        return bool(after < words)

    def _release(self) -> None:
        with self._bus.transaction() as database_cursor:
            database_cursor.execute(
                "update demo_answers set leased_until = null where owner = %(owner)s", {"owner": self._owner}
            )
