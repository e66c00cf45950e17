-- The roll of the workers: each tells every few seconds that it lives, and what it counts. Unlogged, as it is worth nothing after a
-- crash; room is left on each page, so that an update stays there and no index is touched. A row is its role's: another role that
-- serves can add workers of its own, and not change these.
create unlogged table pgbus.workers (
  id          text collate "C" primary key,
  teller      name        not null default session_user,
  host        text        not null,
  pid         integer     not null,
  started_at  timestamptz not null,
  seen_at     timestamptz not null default clock_timestamp(),
  facts       jsonb       not null
) with (fillfactor = 50);

-- Who is logged in at the console, on all workers: hashes of the cookies, and of the token that they were given for.
create unlogged table pgbus.operator_sessions (
  id         bytea       primary key,
  token      bytea       not null,
  created_at timestamptz not null default clock_timestamp()
);

-- Wrong tokens of the last minute, by what they were to open and the address that sent them. "guess" tells two of them apart.
create unlogged table pgbus.token_guesses (
  door    text collate "C" not null,
  address text collate "C" not null,
  guess   integer          not null,
  at      timestamptz      not null default clock_timestamp()
);
create index on pgbus.token_guesses (door, address, at);

-- Who calls a function that has its owner's rights.
create function pgbus.caller() returns name
language sql stable
return case current_setting('role') when 'none' then session_user else current_setting('role')::name end;

-- Tells that a worker lives; the database's time, in Unix seconds, and the least distance of two rings, in milliseconds.
create function pgbus.beat(id text, host text, pid integer, started_at float8, facts jsonb, out instant float8, out pause bigint)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  -- What one worker tells, all the others read.
  if pgbus.good_stream(id) is not true or pgbus.good_stream(host) is not true or pid is null
     or (started_at between 0 and 1e11) is not true
     or jsonb_typeof(facts) is distinct from 'object' or octet_length(facts::text) > 1000000
     or jsonb_path_exists(facts, '$.** ? (@.type() == "number" && (@ > 1e18 || @ < -1e18))')
  then
    raise exception 'bad facts of a worker: its id and host are names, its start is in Unix seconds, and the facts are a JSON object '
                    'with numbers below 1e18' using errcode = 'invalid_parameter_value';
  end if;
  -- Who is long gone is removed by who comes by; two who come at once do not wait for one another.
  delete from pgbus.workers g
  where g.id in (
    select w.id from pgbus.workers w
    where w.seen_at < clock_timestamp() - interval '5 minutes' and w.id <> beat.id limit 20 for update skip locked);
  insert into pgbus.workers as w (id, teller, host, pid, started_at, facts)
  values (id, pgbus.caller(), host, pid, to_timestamp(started_at), facts)
  on conflict on constraint workers_pkey do update set seen_at = excluded.seen_at, facts = excluded.facts
  where w.teller = excluded.teller;
  if not found then
    raise exception 'the worker % is another role''s', to_json(id) using errcode = 'insufficient_privilege';
  end if;
  instant := extract(epoch from clock_timestamp());
  pause := pgbus.pace_rings();
end
$$;

-- A worker ends.
create function pgbus.leave_roll(id text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  delete from pgbus.workers w where w.id = leave_roll.id and w.teller = pgbus.caller();
end
$$;

-- Sets the pause of the rings by the number of the workers, and returns it. Each ring wakes every worker, and each of them looks a few
-- milliseconds later for what did not ring. So in a large fleet rings have to keep a distance, or they cost the publishers a good part
-- of what the database can do; in a small one they are cheap, and each message that rings is there the sooner. A quarter of a
-- millisecond for each: a hundred are then woken no more than forty times a second.
create function pgbus.pace_rings() returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  pause bigint := least(25, (
    select count(*) / 4 from pgbus.workers w where w.seen_at > clock_timestamp() - interval '20 seconds'));
begin
  if pause <> coalesce(pg_sequence_last_value('pgbus.ring_pause'), 0) then
    perform setval('pgbus.ring_pause', pause);
  end if;
  return pause;
end
$$;
