"""An answer that is written word by word, in PostgreSQL: by one process at a time, and to its end whichever process goes.

A step publishes the next word and moves ``written`` on in one transaction that has the answer's row locked. So each word
is published once, whoever does it, and a page that follows the stream from the answer's first message has them all.
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
"""Seconds from word to word."""
LEASE = 3
"""Seconds for which who wrote the last word keeps the others off the answer."""
FRESH = "30 minutes"
"""For how long an answer is shown; its messages have to be retained for as long."""


class Topic(NamedTuple):
    """A question that can be asked, and what is answered: out of books that are in the public domain."""

    question: str
    source: str
    text: str

    @property
    def words(self) -> list[str]:
        """What is published, one by one."""
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
select pg_advisory_xact_lock(hashtext('pgbus_gevent.demo'));  -- "if not exists" alone fails when two make it at once
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
    """The answer that is shown, finished or not. ``before`` is the cursor of who wants all of its messages."""

    id: int
    topic: str
    words: int
    written: int
    before: int

    @property
    def finished(self) -> bool:
        return self.written >= self.words


def prepare(cursor: Any) -> None:
    """Make the table, where it is missing."""
    cursor.execute(_TABLES)


def latest(cursor: Any) -> Answer | None:
    """The newest answer, if it is not too old to be shown."""
    cursor.execute(_LATEST, {"fresh": FRESH, "stream": STREAM})
    row = cursor.fetchone()
    return row and Answer(*row)


def start(cursor: Any, topic: str) -> bool:
    """Begin an answer in the caller's transaction; False while another one is being written."""
    words = len(TOPICS[topic].words)
    cursor.execute("delete from demo_answers where started_at < now() - interval '1 day'")
    cursor.execute(_START, {"topic": topic, "words": words})
    row = cursor.fetchone()
    if row is None:
        return False
    data = json.dumps({"answer": row[0], "topic": topic, "words": words})
    cursor.execute(_FIRST, {"stream": STREAM, "data": data, "id": row[0]})
    return True


class Writer:
    """Writes what has been asked, in a greenlet of its own while there is something to write.

    :meth:`wake` may be called at any time, in any number of processes: one writes, and when that one is gone, the next that
    is woken goes on.
    """

    def __init__(self, bus: Bus, *, pace: float = PACE) -> None:
        self._bus = bus
        self._pace = pace
        self._owner = uuid.uuid4().hex
        self._stopping = Signal()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def wake(self) -> None:
        """See to it that the answer is being written."""
        if not self._stopping.is_set() and (self._greenlet is None or self._greenlet.ready()):
            self._greenlet = gevent.spawn(self._run)

    def stop(self, timeout: float = 5.0) -> None:
        """Write no more; another process can go on at once."""
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
            log.warning("the answer is left to whoever is woken next: %s", error)

    def step(self) -> bool:
        """Publish the next word; False where there is none, or another process is at it."""
        with self._bus.transaction() as cursor:
            cursor.execute(_TAKE, {"owner": self._owner})
            row = cursor.fetchone()
            if row is None:
                return False
            id, topic, words, written = row
            # Another release of this package may have begun it, with another text.
            text = [*TOPICS[topic].words[written : written + 1]] if topic in TOPICS else []
            after = written + len(text) if text else words
            stream = self._bus.stream(STREAM)
            if text:
                word = {"answer": id, "at": written, "text": text[0]}
                stream.broadcast(json.dumps(word), event="answer.word", using=cursor)
            if after >= words:
                stream.broadcast(json.dumps({"answer": id}), event="answer.end", using=cursor)
            cursor.execute(_WRITTEN, {"id": id, "written": after, "owner": self._owner, "lease": LEASE})
        return bool(after < words)

    def _release(self) -> None:
        with self._bus.transaction() as cursor:
            cursor.execute(
                "update demo_answers set leased_until = null where owner = %(owner)s", {"owner": self._owner}
            )
