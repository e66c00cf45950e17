/*
 * The steward: its lease, its sweeps, and the workers that rely on it. Nothing depends on there being exactly one.
 *
 * The rules are those of pgbus._duty in pgbus_gevent/database/sql/0006_fleet.sql, of pgbus_gevent/streamer/steward.py,
 * steward_sweeps.py and sweeper.py, and of docs/decisions/0033. Messages of one stream are committed, and none of them rings. Two
 * workers take part in the election. A lease may seem to end at any moment, because a worker was suspended or a clock was set, so
 * both may lead at once. One worker may die.
 *
 * Checked in every interleaving:
 *   - each worker takes each message once, in order, however many stewards ring for it;
 *   - when all is quiet, each living worker has everything, although nobody made the probe of catch_up_interval.
 */

#define LAST  2                         /* the newest message in the end */
#define BIT(i)   (1 << (i))

byte newest;                            /* the newest committed message; the ids are 1 and 2 */
bool calm;

/* The sequences of the lease, which everybody sees at once. */
byte asked[2];                          /* how often a worker has asked before all is calm: at most 2 and 1 times */
byte steward;                           /* 1 or 2; 0 before the first election */
bool fresh;                             /* whether the last sign is younger than the lease */
bool says_rings;                        /* what the sign says of the steward */
byte lock;                              /* the advisory lock 'pgbd' */

byte head[2];
byte rung[2];                           /* notifications that the worker has not read, a bit for each message */
bool look[2];                           /* a notification to everybody, or a probe that is due: board.unsure */
bool dead[2];
bool elected[2], relies[2];             /* a worker takes itself for the steward; it relies on one */

#define STEWARD_IS_DEAD  (steward > 0 && dead[steward - 1])

active proctype Publisher() {
  do
  :: newest < LAST -> newest++
  :: newest == LAST -> calm = true; break
  od
}

active proctype Time() {                /* the lease ends: in the end only that of a steward that is dead */
end:
  do
  :: atomic { fresh && (!calm || STEWARD_IS_DEAD) -> fresh = false }
  :: atomic { !calm && elected[0] && elected[1] -> skip }  /* reached: two stewards at once */
  :: atomic { !calm && !dead[0] && steward == 1 -> dead[0] = true }
  od
}

proctype Worker(byte me) {
  byte top, id;
  bool begins, rings, was, ended;
end:
  do
  :: atomic { dead[me] -> elected[me] = false; break }

  /* Listener._take: plainly the next, or known, or the table is asked */
  :: atomic { !dead[me] && rung[me] ->
       if :: id = 1 :: id = 2 fi;
       if
       :: rung[me] & BIT(id) ->
         rung[me] = rung[me] & ~BIT(id);
         if
#ifdef FAULT_REPEATED_RING_IS_TAKEN
         :: true -> assert(id == head[me] + 1); head[me] = id
#else
         :: id == head[me] + 1 -> head[me] = id
         :: id > head[me] + 1 -> look[me] = true
         :: id <= head[me] -> skip
#endif
         fi
       :: else
       fi;
       id = 0
     }

  /* A look, or a probe; a worker that does not rely on the steward also makes tails */
  :: atomic { !dead[me] && (look[me] || (!relies[me] && head[me] < newest)) -> look[me] = false; head[me] = newest }

  /* pgbus._duty; when all is calm, only if something has to change */
  :: atomic { !dead[me] && ((!calm && asked[me] < 2 - me) || (calm && !fresh) || (calm && relies[me] != says_rings && !elected[me])) ->
       if :: !calm -> asked[me]++ :: else -> asked[me] = 2 - me fi;
       was = (steward == me + 1); ended = !fresh };
     if
     :: atomic { !was && ended && lock == 0 -> lock = me + 1 };
        atomic { was = (steward == me + 1); ended = !fresh };        /* once more, under the lock */
        if
        :: !was && ended -> steward = me + 1; was = true
        :: else
        fi
     :: else
     fi;
     atomic {                           /* the sign, the end of the transaction, and Steward._note */
       if :: lock == me + 1 -> lock = 0 :: else fi;
       if
       :: was ->
         if :: !elected[me] -> begins = true; rings = false :: else fi;
         fresh = true; says_rings = rings; elected[me] = true
       :: else -> elected[me] = false; begins = false; rings = false; top = 0
       fi;
       /* Steward._rely, Sweeper._relies: whichever way it changes, a probe is next */
       if
       :: relies[me] != (fresh && says_rings) ->
         relies[me] = (fresh && says_rings);
         look[me] = true
       :: else
       fi;
       was = false; ended = false
     }

  /* StewardSweeps._begin: first it knows where it begins, then everybody looks, and only then it says that it rings */
  :: !dead[me] && elected[me] && begins ->
#ifdef FAULT_EVERYBODY_LOOKS_BEFORE_IT_BEGINS
     atomic { look[0] = true; look[1] = true };
     atomic { top = newest; begins = false; rings = true; if :: steward == me + 1 -> says_rings = true :: else fi }
#else
     atomic { top = newest };
     atomic {
#ifndef FAULT_NOBODY_LOOKS_WHEN_IT_BEGINS
       look[0] = true; look[1] = true;
#endif
       begins = false; rings = true; if :: steward == me + 1 -> says_rings = true :: else fi
     }
#endif

  /* A tail, and the rings for what it found: StewardSweeps._read, _hand_on */
  :: atomic {
       !dead[me] && elected[me] && !begins && top < newest ->
       do
       :: top < newest -> top++; rung[0] = rung[0] | BIT(top); rung[1] = rung[1] | BIT(top)
       :: else -> break
       od
     }
  od
}

active proctype Judge() {
  atomic {
    timeout && calm ->
    assert(dead[0] || head[0] == LAST);
    assert(head[1] == LAST);
  }
}

init { atomic { run Worker(0); run Worker(1) } }
