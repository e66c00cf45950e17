-- Retention: messages that are past their age, or beyond their number, are removed from the old end of each stream.
--
-- Lock class (see 0001_messages.sql for the others):
--   1885823598  'pgbn'  removing: at most one transaction of the whole database removes messages or horizons at a time
--
-- Nothing here takes the lock of the appends. What is removed is the oldest of what is committed, and an append that is
-- under way, having drawn its id under the stream's lock, has a higher one. It reads the stream's newest id and the
-- horizon in one snapshot, and a removal commits both together, so that it sees either the message or the horizon that
-- says the same: ids and prev_id go on as if nothing had been removed.


-- When a stream was last pruned; of a stream that has no messages, when it lost the last one.
alter table pgbus.horizons add column pruned_at timestamptz not null default now();

-- Rows come and go at the same rate, so the usual fifth of the table would be dead before anybody cleans up; and each
-- vacuum reads all of the indexes, so that it must not come for every few rows either.
alter table pgbus.messages set (
  autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_analyze_scale_factor = 0.1,
  autovacuum_vacuum_cost_delay = 1);

-- A row of each pruned stream changes in every round. With room on its page, and no index on what changes, no index has
-- to learn of it.
alter table pgbus.horizons set (
  fillfactor = 50,
  autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

-- One row: how far the present round over all streams has come, and when the next one may begin. Rounds go down the
-- names: the newest message of a stream, where such a step lands, is almost always still there, while the oldest ones
-- are what was just removed and would be stepped over one by one until a vacuum has taken them out of the index.
create table pgbus.prune_round (
  single boolean     primary key default true check (single),
  below  text collate "C",
  due    timestamptz not null
);

insert into pgbus.prune_round (due) values (now());


-- What servers keep, one row for all that have the same settings; it counts for every server until then, so that where they
-- disagree nobody removes what another one keeps.
create table pgbus.retentions (
  kept   text collate "C" primary key,
  teller text        not null,
  until  timestamptz not null
);

-- Tells what this server keeps, which counts for so long from now on.
create function pgbus.tell_retention(kept text, teller text, holds interval) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  if (octet_length(kept) between 1 and 1000000) is not true or pgbus.good_stream(teller) is not true
     or (holds between interval '1 second' and interval '1 day') is not true then
    raise exception 'bad retention: what a server keeps is a text, its teller a name, and it holds for a second to a day'
      using errcode = 'invalid_parameter_value';
  end if;
  delete from pgbus.retentions r where r.until < clock_timestamp() - interval '1 day' and r.kept <> tell_retention.kept;
  insert into pgbus.retentions as r (kept, teller, until)
  values (kept, teller, clock_timestamp() + holds)
  on conflict on constraint retentions_pkey do update
    set teller = excluded.teller, until = greatest(r.until, excluded.until);
end
$$;

-- What servers keep; each counts for `holds` seconds yet.
create function pgbus.told_retentions() returns table (kept text, teller text, holds float8)
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  select r.kept, r.teller, extract(epoch from r.until - clock_timestamp())::float8
  from pgbus.retentions r where r.until > clock_timestamp() order by r.kept
$$;


-- The streams that have messages, down from a name (null: from the highest), at most so many.
create function pgbus.streams_below(below text, max integer) returns setof text
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  return query
    with recursive walk(stream, n) as (
      -- Longer than any name, and so above all.
      select coalesce(streams_below.below, repeat(chr(1114111), 64)) collate "C", 0
      union all
      select (select m.stream from pgbus.messages m where m.stream < w.stream
              order by m.stream desc, m.msg_id desc limit 1), w.n + 1
      from walk w
      where w.stream is not null and w.n < streams_below.max
    )
    select w.stream from walk w where w.n > 0 and w.stream is not null;
end
$$;

-- The next streams to prune, for one of the many workers that ask: null where it is not the time, or where another one
-- is at it just now; an empty array where a round has come to its end. Rounds begin at least `every` apart.
create function pgbus.prune_turn(every interval, max integer default 200) returns text[]
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  round pgbus.prune_round;
  found text[];
begin
  if not pg_try_advisory_xact_lock(1885823598, 0) then
    return null;
  end if;
  select r.* into round from pgbus.prune_round r;
  -- One that is further ahead is from a clock, or a setting, of former times.
  if round.due > clock_timestamp() and round.due <= clock_timestamp() + every then
    return null;
  end if;
  found := array(select pgbus.streams_below(round.below, max));
  if cardinality(found) < max then
    update pgbus.prune_round set below = null, due = clock_timestamp() + every;
  else
    update pgbus.prune_round set below = found[max], due = clock_timestamp();
  end if;
  return found;
end
$$;

-- Removes from each of some streams what is older than its age, and what is beyond its newest `counts` messages (null:
-- any number), oldest first, at most `max` messages in all: where so many are gone, there may be more. Gives the streams
-- from which something was removed, with how many messages and up to which id.
--
-- Each stream loses its oldest messages without a hole, so that no horizon ever lies above a message that is there: where
-- the clock was set back, a message that seems old waits for the one before it.
create function pgbus.prune(streams text[], ages interval[], counts bigint[] default null, max integer default 1000)
returns table (stream text, removed bigint, horizon bigint)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  at timestamptz := clock_timestamp();
begin
  if cardinality(streams) is distinct from cardinality(ages)
     or counts is not null and cardinality(counts) <> cardinality(streams) then
    raise exception 'streams, ages and counts are arrays of one length' using errcode = 'invalid_parameter_value';
  end if;
  if exists (select from unnest(ages) a where a is null or a <= interval '0')
     or exists (select from unnest(counts) c where c < 1) then
    raise exception 'bad retention: an age is above 0, and a count is null or at least 1'
      using errcode = 'invalid_parameter_value';
  end if;
  if prune.max is null or prune.max < 1 then
    raise exception 'bad limit %: "max" is at least 1', coalesce(prune.max::text, 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  if not pg_try_advisory_xact_lock(1885823598, 0) then
    perform pgbus.wait_for(1885823598, 0, 'the removal of messages');
  end if;
  return query
    -- Materialized, as otherwise each of the steps would be made again for every reference to it. Nothing is at or below
    -- a horizon but what was removed and may still be in the index, so every look begins above it.
    with wanted as materialized (
      -- A subselect, as for a join the planner may read all horizons.
      select s.n, s.stream collate "C" as stream, at - s.age as since, s.count,
             coalesce((select h.msg_id from pgbus.horizons h where h.stream = s.stream collate "C"), 0) as horizon
      from unnest(prune.streams, prune.ages, prune.counts) with ordinality as s(stream, age, count, n)
    ),
    -- The limits that are subselects are hidden from the planner, which else reads and sorts all that a stream has.
    bounds as materialized (
      select w.n, w.stream, w.horizon, greatest(
        -- The oldest message that is young enough; none among the first max + 1 means that max may go.
        coalesce(
          (select o.msg_id
           from (select m.msg_id, m.created_at from pgbus.messages m
                 where m.stream = w.stream and m.msg_id > w.horizon
                 order by m.msg_id limit (select prune.max + 1)) o
           where o.created_at >= w.since order by o.msg_id limit 1),
          9223372036854775807),
        -- An offset of null would be one of 0.
        case when w.count is not null then
          (select m.msg_id + 1 from pgbus.messages m
           where m.stream = w.stream and m.msg_id > w.horizon
           order by m.msg_id desc offset w.count limit 1)
        end) as below
      from wanted w
    ),
    sized as materialized (
      select b.n, b.stream, b.horizon, b.below,
             (select count(*)
              from (select from pgbus.messages m
                    where m.stream = b.stream and m.msg_id > b.horizon and m.msg_id < b.below
                    order by m.msg_id limit (select prune.max)) d) as size
      from bounds b
    ),
    shares as materialized (
      select z.stream, z.horizon, z.below,
             least(z.size, prune.max - (sum(z.size) over (order by z.n) - z.size))::bigint as share
      from sized z
    ),
    -- By their places, as a join could read the whole table. No vacuum gives such a place to another row while this
    -- statement sees the one that is there.
    gone as (
      delete from pgbus.messages m
      where m.ctid = any (array(
        select d.ctid
        from shares s
        cross join lateral (
          select o.ctid from pgbus.messages o
          where o.stream = s.stream and o.msg_id > s.horizon and o.msg_id < s.below
          order by o.msg_id limit s.share) d
        where s.share > 0))
      returning m.stream, m.msg_id
    ),
    counted as (
      select g.stream, count(*) as removed, max(g.msg_id) as horizon from gone g group by g.stream
    ),
    noted as (
      insert into pgbus.horizons as h (stream, msg_id, pruned_at)
      select c.stream, c.horizon, at from counted c
      on conflict (stream) do update
        set msg_id = greatest(h.msg_id, excluded.msg_id), pruned_at = greatest(h.pruned_at, excluded.pruned_at)
    )
    select c.stream, c.removed, c.horizon from counted c;
end
$$;

-- Forgets streams that have had no messages for so long: their horizons, which are all that is left of them. Looks at
-- `max` horizons, down from a name (null: from the highest), and gives the name to go on from, null at the end.
create function pgbus.forget(below text, unused interval, max integer default 1000) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  names  text[];
  empty  text[];
  passed integer;
  lowest text;
  highest bigint;
begin
  if not pg_try_advisory_xact_lock(1885823598, 0) then
    perform pgbus.wait_for(1885823598, 0, 'the removal of messages');
  end if;
  select array_agg(h.stream) filter (where h.pruned_at < clock_timestamp() - unused), count(*), min(h.stream)
  into names, passed, lowest
  from (select h.stream, h.pruned_at from pgbus.horizons h
        where h.stream < coalesce(forget.below, repeat(chr(1114111), 64)) collate "C"
        order by h.stream desc limit (select forget.max)) h;
  -- Not `not exists`, which the planner may turn into a join that reads the whole table.
  empty := array(
    select n.stream from unnest(names) as n(stream)
    where pgbus.head(n.stream) = pgbus.horizon(n.stream));
  highest := (select max(h.msg_id) from pgbus.horizons h where h.stream = any (empty collate "C"));
  if highest > coalesce(pg_sequence_last_value('pgbus.forgotten'), 0) then
    perform setval('pgbus.forgotten', highest);
  end if;
  delete from pgbus.horizons h where h.stream = any (empty collate "C");
  return case when passed = forget.max then lowest end;
end
$$;

-- Removes large ephemeral messages that every worker has had its time to fetch; how many. Publishers do the same as
-- they go, but where they cease, nobody else would.
create function pgbus.prune_ephemerals(max integer default 1000) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  removed bigint;
begin
  delete from pgbus.ephemerals e
  where e.id in (
    select o.id from pgbus.ephemerals o
    where o.id in (select p.id from pgbus.ephemerals p order by p.id limit prune_ephemerals.max)
          and o.created_at < clock_timestamp() - interval '1 minute'
    for update skip locked);
  get diagnostics removed = row_count;
  return removed;
end
$$;
