/*
 * A worker's log of one stream, and a client of it: lost, late and repeated notifications, looks, pages, probes, rewinds.
 *
 * The rules are those of pgbus_gevent/core/stream_log.py, core/board.py, core/replay.py, streamer/listener.py, streamer/reader.py,
 * streamer/sweeper.py and streamer/dispatcher.py, and of docs/decisions/0004 and 0005. That ids follow commits, and are never used
 * twice, is taken from publishing.pml and ids.pml. Pruning is in pruning.pml.
 *
 * Messages are committed, and once the database may lose the newest of them: a failover, a restore, a crash. A notification may be
 * heard at any time after its commit, again and again, or never. A statement of the worker sees the table at any moment between
 * its question and its answer. The client may come back once, to this worker or to one that did not see the loss.
 *
 * Checked in every interleaving:
 *   - the client gets each message directly after the one before it in its stream, once; or is told of a gap first, and then gets
 *     all that is retained;
 *   - it is told of no gap that there is not;
 *   - when all is quiet, and one probe has been made, it has everything.
 */

#define LAST     4                      /* the highest id */
#define PAGE     1                      /* messages in a page: page_size */
#define RING     2                      /* messages in the ring: ring_messages */
#define BIT(i)   (1 << (i))
#define KNOWN(i)  (!(unknown & BIT(i)))
#define MAX(a, b)  ((a) > (b) -> (a) : (b))

/* The database. Sets of ids are bits. */
byte rows;                              /* pgbus.messages */
byte before[LAST + 1];                  /* the id before it, when it was committed */
byte unknown;                           /* the messages whose prev_id is null */
byte sent;                              /* messages whose notifications may be heard */
bool lost_some;                         /* the table has lost messages */
bool calm;                              /* nothing happens any more but what the worker does */

/* The log: StreamLog. Its ring has every message above the floor. */
byte head, floor, ring;
byte lost_ids;                          /* was_lost(): the ids that rewinds have removed */
bool look;                              /* board.looks */
bool under_way[2];                      /* statements of the readers */
bool rewound[2];                        /* whether the epoch has changed since the statement began */
#define LOOKER 0
#define PAGER  1

/* The client: a Subscription. */
byte got;                               /* the last id that it received, 0 after a gap event: what it comes back with */
byte since, cursor, lost;
bool admitted, verified;
bool waiting;                           /* board.waiting(): for a look if it is not admitted, else for a page */
bool elsewhere;                         /* to a worker that did not see the loss */

/* The page that was read. */
bool page_ready;
byte page_row, page_start, page_anchor;

inline find_newest(set, id) { id = LAST; do :: id > 0 && !(set & BIT(id)) -> id-- :: else -> break od }
inline find_next(set, after, id) { id = after + 1; do :: id <= LAST && !(set & BIT(id)) -> id++ :: else -> break od }

inline extend(id) {                     /* StreamLog.extend, with one message; _trim */
  ring = ring | BIT(id);
  head = id;
  lost_ids = lost_ids & (BIT(id) - 1);
  find_next(ring, floor, n);
  find_next(ring, n, m);
  find_next(ring, m, k);
  if :: k <= LAST -> floor = n; ring = ring & ~BIT(n) :: else fi;      /* three messages: RING is 2 */
  n = 0; m = 0; k = 0
}

inline rewind(to) {                     /* Board.rewind, StreamLog.rewind */
  lost_ids = lost_ids | ((BIT(head + 1) - 1) & ~(BIT(to + 1) - 1));
#ifndef FAULT_RING_SURVIVES_REWIND
  ring = 0;
  floor = to;
#endif
  head = to;
  sent = sent & rows;                   /* assumed: the session that could bring what is lost has ended */
  rewound[LOOKER] = under_way[LOOKER]; rewound[PAGER] = under_way[PAGER];
  if
  :: admitted && cursor > to -> lost = MAX(cursor, lost); cursor = 0
  :: else
  fi
}


inline begin(who) { under_way[who] = true }
inline finish(who) { under_way[who] = false; rewound[who] = false }

/* What the client sees. */
inline tell_gap() { got = 0; since = 0 }

inline deliver(id) {
  assert(id > got);
  /* No worker that did not see the loss can know that the cursor was lost, if the row after it names no other (decision 5). */
  assert(before[id] == got || (elsewhere && got == since && !KNOWN(id)));
  got = id;
  cursor = id;
  since = 0                             /* from now on, the cursor is proven */
}

active proctype Database() {            /* and its publishers */
  byte id, n;
  do
  :: id < LAST -> atomic {
       id++;
       find_newest(rows, n);
       before[id] = n;
       if :: skip :: unknown = unknown | BIT(id) fi;       /* REPEATABLE READ */
       rows = rows | BIT(id);
       sent = sent | BIT(id);           /* it may be heard: nobody has to */
       n = 0
     }
  :: id < LAST - 1 && rows && !lost_some -> atomic {       /* it goes back in time; ids do not */
       do
       :: rows -> find_newest(rows, n); rows = rows & ~BIT(n); if :: skip :: break fi
       :: else -> break
       od;
       id++;                            /* pgbus._jump */
       lost_some = true; n = 0
     }
  :: calm = true; break
  od
}

/* Listener, and the tails of the sweeper, which bring messages in the same way. */
active proctype Listener() {
  byte id, n, m, k;
end:
  do
  :: atomic {                           /* Listener._take, Board.take_next */
       sent && !calm ->
       if :: id = 1 :: id = 2 :: id = 3 :: id = 4 fi;
       if
       :: (sent & BIT(id)) && id > head ->
         if
#ifdef FAULT_ANY_NOTIFICATION_IS_NEXT
         :: true -> extend(id)
#else
         :: before[id] == head && KNOWN(id) -> extend(id)              /* StreamLog.follows */
#endif
         :: else -> look = true
         fi
       :: else
       fi;
       id = 0
     }
  :: atomic { !calm && !look -> look = true }              /* a wake that names no message, or a probe */
  od
}

/* Reader._look_some, Reader._follow */
active proctype Looker() {
  byte start, anchor, row, n, m, k;
  bool more, for_client;
end:
  do
  :: atomic { look ->
#ifndef FAULT_LOOK_DONE_AFTER_ITS_STATEMENT
       look = false;
#endif
       start = head; begin(LOOKER);
       for_client = waiting && !admitted
     };
     atomic {                           /* the statement: _PAGES, and its answer */
       find_next(rows, start, row); find_next(rows, row, n);
       more = n <= LAST;
       if :: row > LAST -> row = 0 :: else fi;
       find_newest(rows & (BIT(start + 1) - 1), anchor);
       n = 0;
#ifdef FAULT_LOOK_DONE_AFTER_ITS_STATEMENT
       look = false;
#endif
       if
#ifndef FAULT_ANSWER_OF_AN_EARLIER_EPOCH
       :: rewound[LOOKER] -> look = true; if :: for_client -> verified = false :: else fi
#endif
#ifndef FAULT_HEAD_NOT_ASKED_FOR
       :: !rewound[LOOKER] && anchor < start ->            /* Reader._is_lost */
         rewind(anchor); look = true; if :: for_client -> verified = false :: else fi
#endif
#ifndef FAULT_HEAD_OF_MEANWHILE_NOT_ASKED_FOR
       /* Reader._lacks_head: the log was extended during the statement, by a message that the table has lost since */
       :: !rewound[LOOKER] && anchor >= start && start < head && head < row ->
         look = true; if :: for_client -> verified = false :: else fi
#endif
       :: else ->
         if :: row > head -> extend(row) :: else fi;
         if :: more -> look = true :: else fi;
         if :: for_client -> verified = !more :: else fi
       fi;
       if :: for_client -> waiting = false :: else fi;     /* Board.stop_waiting */
       start = 0; row = 0; anchor = 0; more = false; for_client = false;
       finish(LOOKER)
     }
  od
}

/* Reader._page_some */
active proctype Pager() {
  byte start, top, anchor, row;
end:
  do
  :: atomic {
       waiting && admitted && !page_ready ->
       start = cursor; top = head; begin(PAGER);
       find_next(rows, start, row);     /* _PAGES */
       find_newest(rows & (BIT(start + 1) - 1), anchor);
       if :: row > LAST -> row = 0 :: else fi;
       if :: row > head -> row = 0; look = true :: else fi;       /* Reader._up_to_the_head */
       if
       :: !row && start < top -> look = true              /* lost: Reader._follow, and then another page */
       :: else -> page_ready = true; page_row = row; page_start = start; page_anchor = anchor
       fi;
       if :: !page_ready -> finish(PAGER) :: else fi;       /* until the page has been sent: Page.current */
       start = 0; top = 0; row = 0; anchor = 0
     }
  od
}

/* StreamEventDispatcher: each step is atomic, as between two yields. */
active proctype Dispatcher() {
  byte next;
end:
  do
  :: atomic {                           /* _admit, core.replay.admit */
       !admitted && !waiting ->
       if
       :: since <= head ->
         if
#ifndef FAULT_LOST_IDS_FORGOTTEN
         ::(lost_ids & BIT(since)) -> tell_gap(); cursor = 0
#endif
         :: else -> cursor = since
         fi;
         admitted = true
       :: since > head && verified -> tell_gap(); cursor = 0; admitted = true
       :: since > head && !verified -> waiting = true; look = true
       fi
     }
  :: atomic {                           /* _pass, _step */
       admitted && !waiting && (cursor < head || lost) ->
       if
       :: lost || cursor < floor -> waiting = true
       :: else ->
         find_next(ring, cursor, next);
         assert(next <= LAST);
         if
#ifndef FAULT_CURSOR_NOT_SUSPECTED
         :: KNOWN(next) && before[next] < cursor && cursor == since -> waiting = true          /* Chunk.suspect, Subscription.unproven */
#endif
         :: else ->
           assert(cursor == 0 || !KNOWN(next) || before[next] <= cursor);   /* make_chunk would tell of a gap */
           deliver(next)
         fi;
         next = 0
       fi
     }
  :: atomic {                           /* _serve, _send_page */
       page_ready ->
       page_ready = false;
       if
#ifndef FAULT_PAGE_OVER_A_REWIND
       :: rewound[PAGER] -> skip        /* Page.current */
#endif
       :: else ->
         if
         :: waiting && admitted && cursor == page_start ->                      /* Page.serves */
           waiting = false;
           if
           :: cursor && cursor == since && !lost && page_row && page_anchor != cursor && KNOWN(page_row) &&    /* refutes() */
              (before[page_row] > 0 -> before[page_row] < cursor : cursor < page_row - 1) ->
             lost = cursor; cursor = 0
           :: else ->
             if :: lost -> tell_gap(); lost = 0 :: else fi;                      /* missed() */
             if :: page_row -> next = page_row; deliver(next); next = 0 :: else fi
           fi
         :: else
         fi
       fi;
       page_row = 0; page_start = 0; page_anchor = 0;
       finish(PAGER)
     }
  od
}

/* Sweeper._probe, at the end of catch_up_interval: when all is calm, and nothing else is left to do. */
active proctype Sweeper() {
  byte newest;
  do
  :: atomic {
       timeout && calm ->
       find_newest(rows, newest);       /* _MOVED */
       if
#ifdef FAULT_HEADS_COMPARED_IN_ONE_DIRECTION
       :: newest > head -> look = true
#else
       :: newest != head -> look = true
#endif
       :: else -> break
       fi
     }
  od;
  assert(admitted && !lost && got == newest && head == newest)
}

active proctype Client() {
  byte n;
end:
  if
  :: atomic { admitted && !calm ->      /* its connection ends, and it comes back with the last id that it has */
       since = got; cursor = 0; lost = 0; admitted = false; verified = false; waiting = false;
       if
       :: skip
       :: elsewhere = true;             /* another worker opens the log with what the table has: Reader._open */
          find_newest(rows, n);
          head = n; floor = n; ring = 0; lost_ids = 0; look = false;
          rewound[LOOKER] = under_way[LOOKER]; rewound[PAGER] = under_way[PAGER]; sent = 0
       fi
     }
  fi
}
