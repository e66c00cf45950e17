-- Retention: messages that exceed their age or their number are removed from the old end of each stream.
--
-- Nothing here takes the locks of the appends. Pruning removes the oldest committed messages, and an append in
-- progress, which has drawn its id under the stream's lock, has a higher id. The append reads the stream's newest id
-- and the horizon in one snapshot, and a removal commits both together. So the append sees either the message or the
-- horizon that says the same, and ids and prev_id go on as if nothing had been removed.


-- removing ----------------------------------------------------------------------------------------------------

-- Each stream loses its oldest messages without a hole, so that no horizon ever lies above a message that is still
-- there. If the clock was set back, a message that seems old waits for the one before it.
create function pgbus.prune(streams text[], ages interval[], counts bigint[] default null, max integer default 1000)
returns table (stream text, removed bigint, horizon bigint, overdue interval)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  at timestamptz := clock_timestamp();
begin
  if cardinality(streams) is distinct from cardinality(ages)
     or counts is not null and cardinality(counts) <> cardinality(streams) then
    raise exception 'bad arguments: streams, ages and counts must have one length' using errcode = 'invalid_parameter_value';
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
    perform pgbus._wait_for(1885823598, 0, 'the removal of messages');
  end if;
  return query
    -- Materialized, because otherwise each step would be repeated for every reference to it. At and below a horizon
    -- there are only removed rows, which may still be in the index, so every search begins above it.
    with wanted as materialized (
      -- A subselect, because for a join the planner may read all horizons.
      select s.n, s.stream collate "C" as stream, at - s.age as since, s.count,
             coalesce((select h.msg_id from pgbus.horizons h where h.stream = s.stream collate "C"), 0) as horizon
      from unnest(prune.streams, prune.ages, prune.counts) with ordinality as s(stream, age, count, n)
    ),
    -- Subselects hide the limits from the planner, which could otherwise read and sort the whole stream.
    bounds as materialized (
      select w.n, w.stream, w.horizon, greatest(
        -- The oldest message that is young enough. If there is none among the first max + 1, then max may be removed.
        coalesce(
          (select o.msg_id
           from (select m.msg_id, m.created_at from pgbus.messages m
                 where m.stream = w.stream and m.msg_id > w.horizon
                 order by m.msg_id limit (select prune.max + 1)) o
           where o.created_at >= w.since order by o.msg_id limit 1),
          9223372036854775807),
        -- The condition is needed because an offset of null means 0.
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
    -- By ctid, because a join could read the whole table. No vacuum reuses a ctid for another row while this
    -- statement sees the row there.
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
      returning m.stream, m.msg_id, m.created_at
    ),
    counted as (
      select g.stream, count(*) as removed, max(g.msg_id) as horizon, min(g.created_at) as oldest from gone g group by g.stream
    ),
    noted as (
      insert into pgbus.horizons as h (stream, msg_id, pruned_at)
      select c.stream, c.horizon, at from counted c
      on conflict (stream) do update
        set msg_id = greatest(h.msg_id, excluded.msg_id), pruned_at = greatest(h.pruned_at, excluded.pruned_at)
    )
    select c.stream, c.removed, c.horizon,
           greatest(interval '0', (select max(w.since) from wanted w where w.stream = c.stream) - c.oldest)
    from counted c;
end
$$;

comment on function pgbus.prune(text[], interval[], bigint[], integer) is
'Removes from each stream the messages that are older than its age, and those beyond its newest "counts" (null: any
number), oldest first, at most "max" in all; if that many were removed, there may be more. streams, ages and counts
have one length. Returns the streams from which messages were removed, with their number, the highest id that was
removed, and by how much the oldest of them was beyond the age.
Errors: 22023 for a bad argument; 55P03 if a session keeps the lock for nothing.';

-- Forgets streams that have had no messages for the time `unused`: removes their horizons, which are all that is left
-- of them. Looks at `max` horizons, downwards from a name (null: from the highest), and returns the name to continue
-- from; null at the end.
create function pgbus._forget(below text, unused interval, max integer default 1000) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  names  text[];
  empty  text[];
  passed integer;
  lowest text;
  highest bigint;
begin
  if not pg_try_advisory_xact_lock(1885823598, 0) then
    perform pgbus._wait_for(1885823598, 0, 'the removal of messages');
  end if;
  select array_agg(h.stream) filter (where h.pruned_at < clock_timestamp() - unused), count(*), min(h.stream)
  into names, passed, lowest
  from (select h.stream, h.pruned_at from pgbus.horizons h
        where h.stream < coalesce(_forget.below, repeat(chr(1114111), 64)) collate "C"
        order by h.stream desc limit (select _forget.max)) h;
  -- Not `not exists`: the planner may turn that into a join that reads the whole table.
  empty := array(
    select n.stream from unnest(names) as n(stream)
    where pgbus._head(n.stream) = pgbus._horizon(n.stream));
  highest := (select max(h.msg_id) from pgbus.horizons h where h.stream = any (empty collate "C"));
  if highest > coalesce(pg_sequence_last_value('pgbus.forgotten'), 0) then
    perform setval('pgbus.forgotten', highest);
  end if;
  delete from pgbus.horizons h where h.stream = any (empty collate "C");
  return case when passed = _forget.max then lowest end;
end
$$;

-- Removes large ephemeral messages that every worker has had time to fetch; returns how many. Publishers do the same
-- when they publish, but not if they have stopped.
create function pgbus._prune_ephemerals(max integer default 1000) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  removed bigint;
begin
  delete from pgbus.ephemerals e
  where e.id in (
    select o.id from pgbus.ephemerals o
    where o.id in (select p.id from pgbus.ephemerals p order by p.id limit _prune_ephemerals.max)
          and o.created_at < clock_timestamp() - interval '1 minute'
    for update skip locked);
  get diagnostics removed = row_count;
  return removed;
end
$$;


-- rounds ------------------------------------------------------------------------------------------------------

-- One row: how far the present round over all streams has come, and when the next one may begin. A round goes down
-- the names. Each of its steps lands on a stream's newest message, which is almost always still there. Going up, it
-- would land on the oldest ones, which were just removed, and would step over them one by one until a vacuum has
-- taken them out of the index.
create table pgbus.prune_round (
  single boolean     primary key default true check (single),
  below  text collate "C",
  due    timestamptz not null
);

insert into pgbus.prune_round (due) values (now());

-- Returns the next streams to prune to one of the workers that ask: null if it is not time, or if another worker is
-- pruning; an empty array at the end of a round. Rounds begin at least `every` apart. A worker with `patience` leaves the
-- round to the others until nobody has gone on with it for that long.
create function pgbus._prune_turn(every interval, max integer default 200, patience interval default '0') returns text[]
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  round pgbus.prune_round;
  found text[];
begin
  if not pg_try_advisory_xact_lock(1885823598, 0) then
    return null;
  end if;
  select r.* into round from pgbus.prune_round r;
  -- A time further ahead was written with another clock or another setting.
  if round.due > clock_timestamp() - patience and round.due <= clock_timestamp() + every then
    return null;
  end if;
  found := array(select pgbus._streams_below(round.below, max));
  if cardinality(found) < max then
    update pgbus.prune_round set below = null, due = clock_timestamp() + every;
  else
    update pgbus.prune_round set below = found[max], due = clock_timestamp();
  end if;
  return found;
end
$$;

-- Returns the streams that have messages, downwards from a name (null: from the highest), at most `max`.
create function pgbus._streams_below(below text, max integer) returns setof text
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  return query
    with recursive walk(stream, n) as (
      -- It sorts above every name.
      select coalesce(_streams_below.below, repeat(chr(1114111), 64)) collate "C", 0
      union all
      select (select m.stream from pgbus.messages m where m.stream < w.stream
              order by m.stream desc, m.msg_id desc limit 1), w.n + 1
      from walk w
      where w.stream is not null and w.n < _streams_below.max
    )
    select w.stream from walk w where w.n > 0 and w.stream is not null;
end
$$;


-- the rules of the servers ------------------------------------------------------------------------------------

-- What servers keep, one row for all that have the same settings. Each row counts for every server until `until`, so
-- that if servers disagree, none removes what another one keeps.
create table pgbus.retentions (
  kept   text collate "C" primary key,
  teller text        not null,
  until  timestamptz not null
);

-- Records what this server keeps, which counts for the time `holds` from now on.
create function pgbus._tell_retention(kept text, teller text, holds interval) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  if (octet_length(kept) between 1 and 1000000) is not true or pgbus._good_stream(teller) is not true
     or (holds between interval '1 second' and interval '1 day') is not true then
    raise exception 'bad retention: kept is a text of 1 to 1000000 bytes, teller is a name, and holds is a second to a day'
      using errcode = 'invalid_parameter_value';
  end if;
  delete from pgbus.retentions r where r.until < clock_timestamp() - interval '1 day' and r.kept <> _tell_retention.kept;
  insert into pgbus.retentions as r (kept, teller, until)
  values (kept, teller, clock_timestamp() + holds)
  on conflict on constraint retentions_pkey do update
    set teller = excluded.teller, until = greatest(r.until, excluded.until);
end
$$;

-- Returns what servers keep; each rule counts for `holds` more seconds.
create function pgbus._told_retentions() returns table (kept text, teller text, holds float8)
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  select r.kept, r.teller, extract(epoch from r.until - clock_timestamp())::float8
  from pgbus.retentions r where r.until > clock_timestamp() order by r.kept
$$;
