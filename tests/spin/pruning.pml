/*
 * Pruning: the horizon, and what clients behind it are told.
 *
 * The rules are those of pgbus.prune, pgbus._forget and pgbus._head in pgbus_gevent/database/sql, and of PageFrames, missed() and
 * make_chunk in pgbus_gevent/core. One stream. A publisher appends; each append reads the head in one snapshot, and commits later.
 * A pruner removes the oldest messages, some of which only seem old, because the clock was set back. A client reads pages from its
 * cursor; between two pages it may stay away for as long as it likes, but not for longer than forget_after.
 *
 * Checked in every interleaving:
 *   - prev_id is the id before, although that message may have been pruned;
 *   - no horizon lies above a message that is still there;
 *   - a client gets each message directly after the one before it; or, if messages between were removed, it is told of a gap first,
 *     unless it has asked for all that is retained;
 *   - it is told of no gap if it has missed nothing.
 */

#define LAST     5                      /* the highest id */
#define UNKNOWN  15                     /* null */
#define BIT(i)   (1 << (i))
#define MAX(a, b)  ((a) > (b) -> (a) : (b))

byte rows;                              /* pgbus.messages: what is committed and not removed */
byte old;                               /* the rows whose created_at is older than the retention */
byte horizon;                           /* pgbus.horizons; 0 if the stream has none */
byte before[LAST + 1];                  /* the id before it, in truth */
byte prev_id[LAST + 1];
byte last;                              /* the newest id that was ever committed */
bool forgotten;                         /* the horizon was removed, and is the last that anybody knew of the stream */
bool away;                              /* the client has a cursor, and is between two pages */
byte cursor;

inline find_newest(set, id) { id = LAST; do :: id > 0 && !(set & BIT(id)) -> id-- :: else -> break od }
inline find_next(set, after, id) { id = after + 1; do :: id <= LAST && !(set & BIT(id)) -> id++ :: else -> break od }

inline read_head(id) {                  /* pgbus._head: rows and horizon in one snapshot */
  find_newest(rows, id);
#ifndef FAULT_HEAD_WITHOUT_HORIZON
  id = (id > 0 -> id : horizon)
#endif
}

active proctype Publisher() {           /* each transaction in turn holds the stream's lock: publishing.pml */
  byte id, head;
  do
  :: id < LAST ->
     atomic { id++; read_head(head) };
     atomic {                           /* the commit */
       before[id] = last;
       if
       :: prev_id[id] = head;
          assert(head == last || (forgotten && head == 0))                   /* the stream may begin anew */
       :: prev_id[id] = UNKNOWN         /* from REPEATABLE READ */
       fi;
       last = id;
       rows = rows | BIT(id);
       head = 0;
       if :: old = old | BIT(id) :: skip fi      /* the clock was set back, so it seems older than those before it */
     }
  :: break
  od
}

active proctype Pruner() {              /* pgbus.prune: one statement, whose snapshot may be older than its commit */
  byte id, gone, upto;
end:
  do
  :: atomic {
       rows ->
       gone = 0; upto = 0;
       find_next(rows, 0, id);
       do
       :: id <= LAST && (gone == 0 || (old & BIT(id))) -> gone = gone | BIT(id); upto = id; find_next(rows, upto, id); if :: skip :: break fi
#ifdef FAULT_HOLES_ARE_PRUNED
       :: id <= LAST && !(old & BIT(id)) -> upto = id; find_next(rows, upto, id)
#endif
       :: id > LAST || !(old & BIT(id)) -> break
       od;
       id = 0
     };
     atomic {                           /* the commit */
       rows = rows & ~gone;
#ifndef FAULT_HORIZON_IN_A_LATER_TRANSACTION
       horizon = MAX(horizon, upto);
       find_next(rows, 0, id);
       assert(id > horizon);
       gone = 0; upto = 0; id = 0
#endif
     };
#ifdef FAULT_HORIZON_IN_A_LATER_TRANSACTION
     atomic { horizon = MAX(horizon, upto); gone = 0; upto = 0; id = 0 }
#endif
  :: atomic { horizon > 0 && rows == 0 && !away -> horizon = 0; forgotten = true; break }        /* pgbus._forget */
  od
}

/* A client that is below the ring: Queries.pages, StreamEventDispatcher._send_page. */
active proctype Client() {
  byte next, seen;
  bool told;
end:
  do
  :: atomic {
       rows || horizon > cursor ->
#ifdef FAULT_HORIZON_IN_AN_EARLIER_SNAPSHOT
       seen = horizon
     };
     atomic {
       find_next(rows, cursor, next);
#else
       seen = horizon;
       find_next((rows & ~(BIT(seen + 1) - 1)), cursor, next);             /* m.msg_id > greatest(s.after, h.msg_id) */
#endif
       told = false;
#ifdef FAULT_ONLY_THE_HORIZON_IS_ASKED
       if :: cursor && cursor < seen && next > LAST -> told = true :: else fi;
#else
       if :: cursor && cursor < seen -> told = true :: else fi;             /* missed(): expired */
#endif
       /* No false alarm: a message after the cursor is gone. */
       assert(!told || cursor < seen);
       if
       :: told && next > LAST -> cursor = seen
       :: next <= LAST ->
         if
         :: !told && cursor && prev_id[next] != UNKNOWN && cursor < prev_id[next] -> told = true       /* make_chunk: a gap */
         :: else
         fi;
         assert(told || cursor == 0 || before[next] == cursor);
         assert(!told || before[next] != cursor);
         cursor = next;
         away = true
       :: else
       fi;
       next = 0; seen = 0; told = false
     }
  od
}
