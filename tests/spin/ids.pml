/*
 * Ids never go back: the epoch of the ids, and the jump to the clock, when the database has gone back in time.
 *
 * The rules are those of pgbus._good_id and pgbus._jump in pgbus_gevent/database/sql/0001_messages.sql, and of docs/decisions/0006.
 * Two publishers append to one stream each, under its lock. Meanwhile the database loses rows, or its sequence goes back: a restored backup, a promoted standby, a crash, a copy of the rows without the sequence; and the clock may be set back.
 *
 * Checked in every interleaving: an id that is committed was never committed before, in either stream, and is above every id
 * that its stream ever had, also above those that were lost.
 *
 * Assumed, as in the code: the clock is ahead of the ids (fewer than one is drawn in a microsecond, a server runs for longer than
 * jumps put the ids ahead), and if it is set back, fewer ids are lost at the same time than AHEAD.
 */

#define STREAMS  2
#define APPENDS  2                      /* of each publisher */
#define TRIES    2                      /* 20 in _jump */
#define AHEAD    2                      /* 100,000 in _jump */
#define MAX(a, b)  ((a) > (b) -> (a) : (b))

byte clock = 1;                         /* in microseconds */
byte last_value = 1;                    /* the sequence message_ids */
byte jumped = 1;                        /* the sequence jumped: the number of the epoch in which the ids jumped */
byte floor = 1;                         /* the sequence floor */
byte number = 1;                        /* pgbus._epoch_number(): one run of the server on one set of files */
byte server = 1;                          /* the run of the server; its end ends all sessions */
byte jumping;                           /* the lock on the table pgbus.jumping: who holds it */
byte reading;                           /* how many transactions have a lock on pgbus.messages, for which TRUNCATE waits */
byte head[STREAMS];                     /* the newest id of each stream in the table */

byte seen[STREAMS];                     /* the highest id that each stream ever had */
byte top;                               /* the highest id that was committed in earlier epochs */
int used;                               /* the ids above that were committed in this one, as bits */

#ifdef FAULT_ONLY_THE_HEAD
#define GOOD(id)  true
#elif defined(FAULT_NO_FLOOR)
#define GOOD(id)  (jumped == number)
#else
#define GOOD(id)  (jumped == number && floor < (id))    /* pgbus._good_id */
#endif

#define ALIVE  (server == my_server)          /* the session: each of its statements fails when the server has ended */

inline draw_id() {                      /* nextval; meanwhile the clock goes on */
  atomic { ALIVE -> last_value++; clock++; id = last_value }
}

proctype Publisher(byte s) {
  byte id, before, last, highest, my_server, done, tries;
begin:
  do
  :: done == APPENDS -> break
  :: atomic { else -> my_server = server };
    {                                   /* what the broadcasting transaction does */
      draw_id();
      /* It reads the head of the stream, and so locks the table. */
      atomic { ALIVE -> before = head[s]; reading++ };
      if
      :: atomic { ALIVE && !(id <= before || !GOOD(id)) -> skip }
      :: atomic { ALIVE && (id <= before || !GOOD(id)) -> skip };      /* _jump */
again:
        atomic { ALIVE && jumping == 0 -> jumping = s + 1 };           /* lock table pgbus.jumping in exclusive mode */
        atomic { ALIVE -> last = last_value; highest = MAX(before, floor) };
        if
        :: atomic { ALIVE && (last <= highest || !GOOD(last)) ->
#ifdef FAULT_NO_CLOCK
             last = MAX(last + AHEAD, highest + AHEAD);
#elif defined(FAULT_ONLY_THE_CLOCK)
             last = MAX(clock, highest);
#else
             last = MAX(clock, MAX(last + AHEAD, highest + AHEAD));
#endif
             last_value = last
           };
#ifdef FAULT_NUMBER_BEFORE_FLOOR
           atomic { ALIVE -> jumped = number };
           atomic { ALIVE -> floor = last }
#else
           atomic { ALIVE -> floor = last };
           atomic { ALIVE -> jumped = number }
#endif
        :: atomic { ALIVE && !(last <= highest || !GOOD(last)) -> skip }
        fi;
        atomic { ALIVE -> jumping = 0 };
        draw_id();
        if
        :: atomic { ALIVE && id > before && GOOD(id) -> skip }
        :: atomic { ALIVE && !(id > before && GOOD(id)) ->             /* another session has jumped meanwhile */
             tries++;
             if
             :: tries < TRIES -> goto again
             :: else -> id = 0; before = 0; last = 0; highest = 0; tries = 0; reading--; done++; goto begin    /* an error */
             fi
           }
        fi
      fi;
      atomic {                          /* the commit */
        ALIVE ->
        assert(id > top && id < top + 31 && !(used & (1 << (id - top))));
        assert(id > seen[s]);
        used = used | (1 << (id - top)); seen[s] = id; head[s] = id; reading--; done++;
        id = 0; before = 0; last = 0; highest = 0; tries = 0
      }
    } unless {                          /* the server has ended, and with it this session */
      atomic { !ALIVE -> id = 0; before = 0; last = 0; highest = 0; tries = 0; goto begin }
    }
  od
}

/* Another server takes over, or the files of an earlier one: some or all of the rows are lost, and any of the sequences. */
inline lose(rows, ids) {
  if
  :: head[0] = MAX(head[0], rows) - rows
  :: head[0] = head[0]
  fi;
  if
  :: head[1] = MAX(head[1], rows) - rows
  :: head[1] = head[1]
  fi;
  if
  :: last_value = MAX(last_value, ids + 1) - ids; floor = (floor > last_value -> last_value : floor)
  :: last_value = last_value
  fi
}

active proctype Database() {
  do
  :: number < 2 -> atomic {
       clock = clock + STREAMS * AHEAD;
       number++;
       top = MAX(seen[0], seen[1]); used = 0;
       if
       :: server++; jumping = 0; reading = 0;                    /* a new run of the server */
          if
          :: jumped = 0; lose(31, 31)                         /* a promotion or a crash, which resets an unlogged sequence */
          :: lose(31, 31)                                     /* files that were copied */
          :: jumped == number - 1 ->                          /* a crash that lost the last commit, and the clock is set back */
             jumped = 0; lose(1, 1); clock = 1; break
          fi
       :: reading == 0 -> lose(31, 31)                        /* TRUNCATE, and rows from a dump, in a server that runs on */
       fi
     }
  :: break
  od
}

init { atomic { run Publisher(0); run Publisher(1) } }
