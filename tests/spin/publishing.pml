/*
 * Publishing: ids, the locks of the streams, appends now and at the commit, rollbacks, REPEATABLE READ, and prev_id.
 *
 * The rules are those of pgbus_gevent/database/sql/0001_messages.sql and 0002_publishing.sql, and of docs/decisions/0001 and 0002.
 * Three transactions publish one or two messages each, in two streams, which may share a lock. A reader takes snapshots.
 *
 * Checked in every interleaving:
 *   - an id becomes visible only above every id of its stream that was visible before, and so above every head that a reader saw;
 *   - a prev_id that is not null is the id before, so a reader whose head it is has missed nothing;
 *   - transactions that publish at their commit never wait for one another in a circle (pan: invalid end state).
 */

#define STREAMS   2
#define WRITERS   3
#define UNKNOWN   255                   /* null */

byte last_value;                        /* the sequence pgbus.message_ids; a rollback does not take it back */
byte holder[STREAMS];                   /* the advisory locks 'pgbs': 0, or the number of the transaction */
bool shared;                            /* whether the streams share a lock: _lock_number hashes their names to 2048 locks */
byte newest[STREAMS];                   /* pgbus.messages: the newest committed id of each stream */
byte cursor;                            /* what a reader of stream 0 has seen */

#define LOCK(s)  (shared -> 0 : s)

/* The rows of a transaction that has not committed: the last one of each stream, and the one before that. */
typedef Rows { byte last; byte prev; byte first; byte first_prev };

/* select m.msg_id into head ... order by m.msg_id desc limit 1: what is committed, and the transaction's own rows */
inline find_head(s) {
  head = (rows[s].last > newest[s] -> rows[s].last : newest[s])
}

inline lock_stream(s) {                 /* _lock_stream: pg_advisory_xact_lock, which a transaction may take twice */
  atomic { holder[LOCK(s)] == 0 || holder[LOCK(s)] == me -> holder[LOCK(s)] = me }
}

inline draw_id() {                      /* id := nextval('pgbus.message_ids') */
  atomic { last_value++; id = last_value }
}

inline append(s) {                      /* broadcast, _append_once */
#ifdef FAULT_ID_BEFORE_LOCK
  draw_id();
#endif
#ifdef FAULT_HEAD_BEFORE_LOCK
  find_head(s);                         /* one statement, whose snapshot is older than its wait for the lock */
#endif
#ifndef FAULT_NO_LOCK
  lock_stream(s);
#endif
#ifndef FAULT_ID_BEFORE_LOCK
  draw_id();
#endif
#ifndef FAULT_HEAD_BEFORE_LOCK
  if
  :: !old -> find_head(s)               /* READ COMMITTED: each statement has a snapshot of its own */
#ifdef FAULT_PREV_IN_REPEATABLE_READ
  :: old -> head = (rows[s].last > 0 -> rows[s].last : snapshot[s])
#else
  :: old -> head = UNKNOWN              /* _append_once: `case when old then null else d.head end` */
#endif
  fi;
#endif
  atomic {                              /* insert into pgbus.messages */
    rows[s].first = rows[s].last; rows[s].first_prev = rows[s].prev;
    rows[s].last = id; rows[s].prev = head;
    id = 0; head = 0
  }
#ifdef FAULT_UNLOCK_AFTER_APPEND
  holder[LOCK(s)] = 0;
#endif
}

inline reveal(s, row, before) {           /* a row becomes visible */
  if
  :: row > 0 ->
    assert(row > newest[s]);
    assert(before == UNKNOWN || before == newest[s]);
    assert(s == 1 || row > cursor);
    newest[s] = row; row = 0; before = 0
  :: else
  fi
}

inline commit() {                       /* all rows of a transaction become visible at once */
  atomic {
    reveal(0, rows[0].first, rows[0].first_prev); reveal(0, rows[0].last, rows[0].prev);
    reveal(1, rows[1].first, rows[1].first_prev); reveal(1, rows[1].last, rows[1].prev)
  }
}

inline unlock() {                       /* after the rows are visible */
  atomic {
    if :: holder[0] == me -> holder[0] = 0 :: else fi;
    if :: holder[1] == me -> holder[1] = 0 :: else fi
  }
}

proctype Publisher(byte me; bool old) {
  byte id, head;
  bit first;
  Rows rows[STREAMS];
#ifdef FAULT_PREV_IN_REPEATABLE_READ
  byte snapshot[STREAMS];
  atomic { snapshot[0] = newest[0]; snapshot[1] = newest[1] }
#endif
  if :: first = 0 :: first = 1 fi;
  if
  :: append(first);                     /* broadcast, once or twice */
     if :: append(first) :: skip fi;
     skip                               /* whatever else a long transaction does */
#ifdef FAULT_FLUSH_IN_ORDER_OF_CALLS
  :: append(first); append((1 - first))
#else
  :: append(0); append(1)               /* broadcast_on_commit: _flush appends in the order of the locks, at the commit */
#endif
  :: append(first)
  fi;
#ifdef FAULT_UNLOCK_BEFORE_COMMIT
  unlock();
#endif
  if
  :: commit()
  :: atomic {                           /* rollback: nothing was visible, and nothing will be; its ids are used up */
       rows[0].last = 0; rows[0].prev = 0; rows[0].first = 0; rows[0].first_prev = 0;
       rows[1].last = 0; rows[1].prev = 0; rows[1].first = 0; rows[1].first_prev = 0
     }
  fi;
  unlock()
}

/* read_after, by a program that keeps the last id as its cursor: it asks only for what is above. */
active proctype Reader() {
end:
  do
  :: atomic { newest[0] > cursor -> cursor = newest[0] }
  od
}

init {
  byte n;
  bool old;
  atomic {
    if :: shared = false :: shared = true fi;
    for (n : 1 .. WRITERS) {
      if :: old = true :: old = false fi;
      run Publisher(n, old)
    }
  }
}
