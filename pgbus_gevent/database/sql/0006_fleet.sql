-- The fleet: the workers of all hosts, their steward, the end of connections, and logins at the console.


-- workers -----------------------------------------------------------------------------------------------------

-- The roll. Each worker writes every few seconds that it lives, and what it counts. Unlogged, because it is worth
-- nothing after a crash. Free space on each page keeps an update there, so that no index is touched. A row belongs to
-- the role that wrote it: another role that serves can add workers of its own, and not change these.
create unlogged table pgbus.workers (
  id          text collate "C" primary key,
  teller      name        not null default session_user,
  host        text        not null,
  pid         integer     not null,
  started_at  timestamptz not null,
  seen_at     timestamptz not null default clock_timestamp(),
  facts       jsonb       not null,
  relayed     boolean     not null default false  -- it hears a relay, and does not LISTEN
) with (fillfactor = 50);

-- How many workers live, and when they were counted: the milliseconds of Unix time, times 10,000, plus the number. A
-- sequence, because writing to one leaves no dead row, and every session sees the change at once.
create sequence pgbus.counted_workers as bigint minvalue 0 start with 0;

-- Whether all other workers can read the facts of a worker: a JSON object of bounded size with numbers below 1e18.
-- PostgreSQL inlines this.
create function pgbus._good_facts(facts jsonb) returns boolean
language sql immutable parallel safe
return jsonb_typeof(facts) = 'object' and octet_length(facts::text) <= 1000000
       and not jsonb_path_exists(facts, '$.** ? (@.type() == "number" && (@ > 1e18 || @ < -1e18))');

-- Records that a worker lives. Returns the database's time, in Unix seconds, the least distance of two rings, in
-- milliseconds, and how many workers live.
create function pgbus._beat(id text, host text, pid integer, started_at float8, facts jsonb,
                            out instant float8, out pause bigint, out workers bigint)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  is_new  boolean;
  counted bigint;
begin
  -- All other workers read this row.
  if pgbus._good_stream(id) is not true or pgbus._good_stream(host) is not true or pid is null
     or (started_at between 0 and 1e11) is not true or pgbus._good_facts(facts) is not true
  then
    raise exception 'bad facts of a worker: its id and host are names, its start is in Unix seconds, and the facts are '
                    'a JSON object with numbers below 1e18' using errcode = 'invalid_parameter_value';
  end if;
  insert into pgbus.workers as w (id, teller, host, pid, started_at, facts, relayed)
  values (id, pgbus._caller(), host, pid, to_timestamp(started_at), facts, coalesce(facts->'relayed' = 'true', false))
  on conflict on constraint workers_pkey do update
  set seen_at = excluded.seen_at, facts = excluded.facts, relayed = excluded.relayed
  where w.teller = excluded.teller
  returning w.xmax = 0 into is_new;  -- a row that was updated has an xmax
  if not found then
    raise exception 'the worker % belongs to another role', to_json(id) using errcode = 'insufficient_privilege';
  end if;
  instant := extract(epoch from clock_timestamp());
  counted := coalesce(pg_sequence_last_value('pgbus.counted_workers'), 0);
  -- One beat in five seconds does what the fleet needs, so its cost does not grow with the number of beats. Nobody has
  -- to be elected for this: if two beats do it at once, both find the same.
  if is_new or abs(instant * 1000 - counted / 10000) >= 5000 then
    perform pgbus._tend_fleet();
    counted := pg_sequence_last_value('pgbus.counted_workers');
  end if;
  pause := coalesce(pg_sequence_last_value('pgbus.ring_pause'), 0);
  workers := greatest(1, counted % 10000);
end
$$;

-- Takes the reports of workers that have a row already, as a JSON object by their ids. Returns the ids that were taken.
-- A report that _beat would refuse is left out, and so is that of a worker of another role.
create function pgbus._beat_many(beats jsonb, out taken text[], out pause bigint, out workers bigint)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  counted bigint;
begin
  with updated as (
    update pgbus.workers w set seen_at = clock_timestamp(), facts = b.value, relayed = true
    from jsonb_each(beats) b
    where w.id = b.key and w.teller = pgbus._caller() and pgbus._good_facts(b.value)
    returning w.id)
  select coalesce(array_agg(u.id), '{}') into taken from updated u;
  counted := coalesce(pg_sequence_last_value('pgbus.counted_workers'), 0);
  if abs(extract(epoch from clock_timestamp()) * 1000 - counted / 10000) >= 5000 then
    perform pgbus._tend_fleet();
    counted := pg_sequence_last_value('pgbus.counted_workers');
  end if;
  pause := coalesce(pg_sequence_last_value('pgbus.ring_pause'), 0);
  workers := greatest(1, counted % 10000);
end
$$;

-- Removes the rows of workers that have been silent for long, and old revocations; counts the workers, and sets the
-- pause between rings. Two transactions that do so at once do not wait for one another.
create function pgbus._tend_fleet() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  -- Not in a transaction with one snapshot: it would fail on a row that another transaction has removed meanwhile.
  if current_setting('transaction_isolation') = 'read committed' then
    delete from pgbus.workers g
    where g.id in (
      select w.id from pgbus.workers w
      where w.seen_at < clock_timestamp() - interval '5 minutes' limit 100 for update skip locked);
    perform pgbus._clear_revocations();
  end if;
  perform pgbus._pace_rings();
end
$$;

-- Removes a worker that ends.
create function pgbus._leave_roll(id text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  delete from pgbus.workers w where w.id = _leave_roll.id and w.teller = pgbus._caller();
end
$$;

-- The role that called a function that runs with the rights of its owner.
create function pgbus._caller() returns name
language sql stable
return case current_setting('role') when 'none' then session_user else current_setting('role')::name end;

-- Sets the pause between rings by the number of workers that LISTEN, and returns it, in milliseconds. Each ring wakes
-- every such worker, or those that follow the bucket if the server wakes only these. In a large fleet rings keep a
-- distance, or they would cost the publishers a good part of what the database can do; the steward finds the messages
-- in between. In a small one they are cheap, and a message that rings arrives earlier. A quarter of a millisecond for
-- each worker: a hundred workers are then woken at most forty times a second.
create function pgbus._pace_rings() returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  living bigint;
  pause  bigint;
begin
  select count(*), least(25, count(*) filter (where not w.relayed) / 4) into living, pause
  from pgbus.workers w where w.seen_at > clock_timestamp() - interval '20 seconds';
  perform setval('pgbus.counted_workers',
                 (date_part('epoch', clock_timestamp()) * 1000)::bigint * 10000 + least(living, 9999));
  if pause <> coalesce(pg_sequence_last_value('pgbus.ring_pause'), 0) then
    perform setval('pgbus.ring_pause', pause);
  end if;
  return pause;
end
$$;


-- the steward -------------------------------------------------------------------------------------------------

-- One worker of the database is the steward: it does what is to be done once for all workers. The lease is in
-- sequences, because writing to one leaves no dead row, and every session sees the change at once. They are unlogged
-- where PostgreSQL has that, because nothing in them is worth keeping: after a crash or a failover, there is an
-- election.
-- - `steward` is the number of the steward;
-- - `steward_sign` is when it last gave a sign of life, in milliseconds of Unix time, times 16; plus 4 times its rank,
--   plus 2 if it rings for messages that did not ring, plus 1 if it hears notifications;
-- - `steward_company` is when another worker that hears last asked for the steward, in milliseconds.
create sequence pgbus.steward as bigint minvalue 0 start with 0;
create sequence pgbus.steward_sign as bigint minvalue 0 start with 0;
create sequence pgbus.steward_company as bigint minvalue 0 start with 0;

do $$
begin
  if current_setting('server_version_num')::integer >= 150000 then
    alter sequence pgbus.steward set unlogged;
    alter sequence pgbus.steward_sign set unlogged;
    alter sequence pgbus.steward_company set unlogged;
  end if;
end
$$;

-- Asks who is the steward, and renews the lease of the worker `me` if it is. If it is not, but `may_lead`, it becomes
-- the steward in these cases: nobody is; the steward has given no sign for `lease` milliseconds; the steward does not
-- hear, and this worker, of no lower rank, does; or the steward's rank is lower. The rank is 0 for a worker that cannot
-- relay to Redis, 1 for one that can, and 2 for one that does nothing else. Without a relay, no worker can use Redis.
--
-- Nothing breaks if two workers take themselves for the steward, as for a moment after one was stopped and continued.
-- The lock only keeps all workers from being elected at once. Any role can take any advisory lock, so after five leases
-- without a steward, a lock that is held by a session without a use for it does not count.
--
-- Returns whether `me` is the steward, the age of the steward's last sign in milliseconds (null if there is none),
-- whether the steward rings, and whether another worker that hears has asked within the last ten seconds.
create function pgbus._duty(me bigint, may_lead boolean, lease integer, hears boolean, inout rings boolean,
                            rank integer default 0,
                            out leads boolean, out age bigint, out company boolean)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  now_ms  bigint := date_part('epoch', clock_timestamp()) * 1000;
  sign    bigint;
  own     bigint := now_ms * 16 + rank * 4 + rings::integer * 2 + hears::integer;
  theirs  integer;
  ignored text;
begin
  for tries in 1 .. 2 loop
    leads := coalesce(pg_sequence_last_value('pgbus.steward'), 0) = me;
    sign := coalesce(pg_sequence_last_value('pgbus.steward_sign'), 0);
    -- abs(), here and below: a clock that was set back must not make a lease longer than it is.
    age := abs(now_ms - sign / 16);
    theirs := sign / 4 % 4;
    exit when leads or not may_lead
              or (age < lease and rank <= theirs and not (hears and sign % 2 = 0 and rank = theirs));
    if tries = 1 then
      -- Then again, because the one that had the lock may have become the steward.
      exit when not pg_try_advisory_xact_lock(1885823588, 0)
                and (age < 5 * lease or not exists (select from pgbus.squatters() s where s.class = 1885823588));
    else
      perform setval('pgbus.steward', me);
      leads := true;
      sign := 0;
    end if;
  end loop;
  -- The sequences are logged in PostgreSQL 14, and nobody needs to wait until they have been written.
  if leads and may_lead then
    if abs(own - sign) >= 1600 or own % 16 <> sign % 16 then
      ignored := set_config('synchronous_commit', 'off', true);
      perform setval('pgbus.steward_sign', own);
    end if;
    age := 0;
  else
    leads := false;
    rings := sign % 4 >= 2;
    if hears and current_setting('transaction_read_only') = 'off'
       and abs(now_ms - coalesce(pg_sequence_last_value('pgbus.steward_company'), 0)) >= 500
    then
      ignored := set_config('synchronous_commit', 'off', true);
      perform setval('pgbus.steward_company', now_ms);
    end if;
    age := case when sign > 0 then age end;
  end if;
  company := abs(now_ms - coalesce(pg_sequence_last_value('pgbus.steward_company'), 0)) < 10000;
end
$$;

-- Gives the lease of a worker that ends to the next one that asks.
create function pgbus._leave_duty(me bigint) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  if pg_sequence_last_value('pgbus.steward') = me then
    perform setval('pgbus.steward_sign', 0);
  end if;
end
$$;


-- Returns the number of the last steward, the age of its last sign in milliseconds (null if it has given its lease
-- back), and whether it heard notifications then. For operators; changes nothing.
create function pgbus._steward(out number bigint, out age bigint, out hears boolean)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  sign bigint := coalesce(pg_sequence_last_value('pgbus.steward_sign'), 0);
begin
  number := coalesce(pg_sequence_last_value('pgbus.steward'), 0);
  age := case when sign > 0 then abs((date_part('epoch', clock_timestamp()) * 1000)::bigint - sign / 16) end;
  hears := sign % 2 = 1;
end
$$;


-- Returns the wakes of messages, by their ids, in the order of the ids; of a message whose wake is longer than `size`
-- bytes, one that only names its stream.
create function pgbus._wakes(ids bigint[], size integer)
returns table (msg_id bigint, stream text, wake text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return query
    select m.msg_id, m.stream::text,
           case when octet_length(w.wake) <= size then w.wake else json_build_array('moved', m.stream)::text end
    from pgbus.messages m
    cross join lateral (
      -- octet_length() does not fetch a large text.
      select case when octet_length(m.data) <= size then
        json_build_array('message', m.stream, m.msg_id, m.prev_id, date_part('epoch', m.created_at), m.event, m.data,
                         m.visible_to, m.exclude)::text end as wake
      offset 0
    ) w
    where m.msg_id + 0 = any (ids)
    order by m.msg_id + 0;
end
$$;

-- Rings for messages that did not ring, by their ids. Returns false if the notification queue is half full: then
-- nothing was sent. One call may fill at most an eighth of the queue. In the first half of that, messages go with their
-- content, then only by the names of their streams. If that is not enough, everybody is told that something moved.
create function pgbus._ring_for(ids bigint[]) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  -- Bytes count twice, because a notification that does not fit on the rest of a page begins the next page.
  room    bigint := least(400000, coalesce(nullif(current_setting('max_notify_queue_pages', true), '')::bigint, 1048576) * 512);
  names   text[] := '{}';
  one     record;
  ignored text;
begin
  if not pgbus._can_notify() then
    return false;
  end if;
  -- A notification need not outlive a crash.
  ignored := set_config('synchronous_commit', 'off', true);
  for one in select w.stream, w.wake from pgbus._wakes(ids, 7900) w loop
    if octet_length(one.wake) <= room then
      room := room - octet_length(one.wake);
      ignored := pgbus._notify_stream(one.stream, one.wake);
    elsif one.stream <> all (names) then
      room := 0;
      names := names || one.stream;
      exit when cardinality(names) > 100;
    end if;
  end loop;
  if cardinality(names) > 100 then
    ignored := pgbus._ring_everybody();
  elsif cardinality(names) > 0 then
    ignored := pgbus._notify_moved(names[1], array_to_string(names, chr(10)) || chr(10));
  end if;
  return true;
end
$$;

-- Tells all workers that some streams have new messages. Returns false if the notification queue is half full.
create function pgbus._ring_everybody() returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  if not pgbus._can_notify() then
    return false;
  end if;
  perform set_config('synchronous_commit', 'off', true), pg_notify(c.control, '["moved"]') from pgbus.channel_names c;
  return true;
end
$$;


-- caps --------------------------------------------------------------------------------------------------------

-- How many connections the owners and addresses have that are near a cap, by the worker that serves them. A key is a
-- digest that only the workers can make. The three arrays have one length.
create unlogged table pgbus.cap_reports (
  worker   text collate "C" primary key,
  teller   name        not null default session_user,
  seen_at  timestamptz not null,
  grown_at timestamptz not null default clock_timestamp(),  -- when a count last grew that is near its cap
  keys     bigint[]    not null,
  counts   integer[]   not null,
  caps     integer[]   not null
) with (fillfactor = 50);

-- The one row is the last sum of the reports: the keys that have half of their cap or more, with their connections on
-- all workers. If a key is above its cap, `kept` says how many of them each of `holders` may keep; the last three arrays
-- have one length.
create unlogged table pgbus.cap_sums (
  single     boolean          primary key default true check (single),
  summed_at  double precision not null,        -- Unix seconds
  keys       bigint[]         not null default '{}',
  totals     bigint[]         not null default '{}',
  above      bigint[]         not null default '{}',
  holders    text[] collate "C" not null default '{}',
  kept       bigint[]         not null default '{}'
);

-- Replaces a worker's report, and returns the last sum: `instant` and `summed_at` are in Unix seconds, `above` and
-- `kept` are for this worker. If the last sum is older than `pause` seconds, the reports are summed first. `grew`: a count
-- that is near its cap has grown since the last report.
create function pgbus._report_caps(worker text, keys bigint[], counts integer[], caps integer[], pause double precision,
                                   grew boolean default false,
                                   out instant double precision, out summed_at double precision, out known bigint[],
                                   out totals bigint[], out above bigint[], out kept bigint[])
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  me text collate "C" := worker;
begin
  if pgbus._good_stream(me) is not true or cardinality(keys) > 1000
     or cardinality(keys) is distinct from cardinality(counts) or cardinality(keys) is distinct from cardinality(caps)
     or 0 >= any (counts) or 0 >= any (caps)
  then
    raise exception 'bad report of a worker: it has the counts and the caps of at most 1000 keys'
      using errcode = 'invalid_parameter_value';
  end if;
  insert into pgbus.cap_reports as r (worker, teller, seen_at, keys, counts, caps)
  values (me, pgbus._caller(), clock_timestamp(), keys, counts, caps)
  on conflict on constraint cap_reports_pkey do update
  set seen_at = excluded.seen_at, keys = excluded.keys, counts = excluded.counts, caps = excluded.caps,
      grown_at = case when grew then excluded.grown_at else r.grown_at end
  where r.teller = excluded.teller;
  if not found then
    raise exception 'the worker % belongs to another role', to_json(me) using errcode = 'insufficient_privilege';
  end if;
  instant := extract(epoch from clock_timestamp());
  if not exists (select from pgbus.cap_sums s where abs(instant - s.summed_at) < pause) then
    perform pgbus._sum_caps();
  end if;
  select s.summed_at, s.keys, s.totals,
         array(select a.key from unnest(s.above, s.holders) with ordinality as a(key, holder, n)
               where a.holder = me order by a.n),
         array(select a.kept from unnest(s.kept, s.holders) with ordinality as a(kept, holder, n)
               where a.holder = me order by a.n)
  into summed_at, known, totals, above, kept
  from pgbus.cap_sums s;
end
$$;

-- Sums the reports of the last 12 seconds. If another transaction is doing it, this one does nothing. Above a cap, the
-- workers keep their connections in the order in which they last grew. The ones that have to end some are thus those that
-- have grown last, and these ask for the sum at once; the others may not ask for seconds.
--
-- Connections end only because of reports of the last 6 seconds; a worker that lives reports at least every 5. The clients of
-- a worker that was killed come back elsewhere while its report still counts, and must not be ended because of themselves.
--
-- `sum_reports` in pgbus_gevent/core/cap_sums.py has the same rules, for reports in Redis.
create function pgbus._sum_caps() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  insert into pgbus.cap_sums (summed_at) values (0) on conflict do nothing;
  perform from pgbus.cap_sums for update skip locked;
  if not found then
    return;
  end if;
  delete from pgbus.cap_reports d
  where d.worker in (
    select r.worker from pgbus.cap_reports r
    where r.seen_at < clock_timestamp() - interval '5 minutes' limit 100 for update skip locked);
  with reports as (
    select r.worker, r.grown_at, r.seen_at > clock_timestamp() - interval '6 seconds' as fresh, u.key, u.count, u.cap
    from pgbus.cap_reports r, unnest(r.keys, r.counts, r.caps) as u(key, count, cap)
    where r.seen_at > clock_timestamp() - interval '12 seconds'
  ), totals as (
    -- During a change of the setting, the workers have different caps. The smaller one counts.
    select r.key, sum(r.count) as total, min(r.cap) as cap
    from reports r
    group by r.key
    having sum(r.count) * 2 >= min(r.cap)
    order by sum(r.count)::float8 / min(r.cap) desc, r.key
    limit 1000
  ), shares as (
    select r.worker, r.key, r.count,
           greatest(0, t.cap - (sum(r.count) over (partition by r.key order by r.grown_at, r.worker) - r.count)) as kept
    from reports r join totals t on t.key = r.key
    where t.total > t.cap and r.fresh
  ), excess as (
    select s.worker, s.key, s.kept from shares s where s.count > s.kept order by s.key, s.worker limit 1000
  )
  update pgbus.cap_sums s
  set summed_at = extract(epoch from clock_timestamp()),
      keys = coalesce((select array_agg(t.key order by t.key) from totals t), '{}'),
      totals = coalesce((select array_agg(t.total order by t.key) from totals t), '{}'),
      above = coalesce((select array_agg(e.key order by e.key, e.worker) from excess e), '{}'),
      holders = coalesce((select array_agg(e.worker order by e.key, e.worker) from excess e), '{}'),
      kept = coalesce((select array_agg(e.kept order by e.key, e.worker) from excess e), '{}');
end
$$;

-- Returns whether a worker other than these has a report that counts. Workers that report through Redis ask, because then they
-- must all report here too.
create function pgbus._other_cap_reports(workers text[]) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return exists (
    select r.worker from pgbus.cap_reports r where r.seen_at > clock_timestamp() - interval '12 seconds'
    except
    select w.id collate "C" from unnest(workers) w(id));
end
$$;

-- Removes the report of a worker that ends.
create function pgbus._leave_caps(worker text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  delete from pgbus.cap_reports r where r.worker = _leave_caps.worker collate "C" and r.teller = pgbus._caller();
end
$$;


-- disconnecting -----------------------------------------------------------------------------------------------

-- Which owners lose their connections. The notification on the control channel is only a hint: workers read the
-- owners here, also after a time in which they did not listen. A worker knows by the id whether it has seen a
-- revocation. Ids are random, because a sequence may go back, with a lost commit or a restored dump, and a worker
-- would then take a new revocation for one that it knows.
--
-- `xid` is the transaction. A worker remembers up to which transaction it has read everything, so that it need not
-- read the rest again, and does not miss a transaction that commits late.
create table pgbus.revocations (
  id          bigint primary key default ('x' || substr(md5(gen_random_uuid()::text), 1, 13))::bit(52)::bigint,
  owner       text collate "C" not null,
  revoked_at  timestamptz not null default clock_timestamp(),
  xid         xid8 not null default pg_current_xact_id()
);

create index revocations_revoked_at on pgbus.revocations (revoked_at);
create index revocations_xid on pgbus.revocations (xid);

create function pgbus.disconnect(owner text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  if owner is null or owner = '' then
    raise exception 'bad owner: it must not be empty' using errcode = 'invalid_parameter_value';
  end if;
  insert into pgbus.revocations (owner) values (owner);
  perform pgbus._ring_control();
end
$$;

comment on function pgbus.disconnect(text) is
'Ends every connection of an owner, as the authorize hook named it, on every worker of every host, when the caller''s
transaction commits. A client that connects after that is authorized anew, so take its right away first, in the same
transaction.
Errors: 22023 for an empty owner.';


-- Has every worker read the revocations. Returns false if no notification can be sent now.
create function pgbus._ring_control() returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  if not pgbus._can_notify() then
    return false;
  end if;
  perform pg_notify(c.control, '["control"]') from pgbus.channel_names c;
  return true;
end
$$;

-- Removes revocations that every worker has had time to read.
create function pgbus._clear_revocations() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  delete from pgbus.revocations r
  where r.id in (
    select o.id from pgbus.revocations o where o.revoked_at < clock_timestamp() - interval '1 hour'
    order by o.revoked_at limit 1000 for update skip locked);
end
$$;


-- the console -------------------------------------------------------------------------------------------------

-- The logins at the console, on all workers: hashes of the cookies, and of the tokens that they were given for.
create unlogged table pgbus.operator_sessions (
  id         bytea       primary key,
  token      bytea       not null,
  created_at timestamptz not null default clock_timestamp()
);

-- The wrong tokens of the last minute, by the door that they were to open and the address that sent them. `guess`
-- tells two of them apart.
create unlogged table pgbus.token_guesses (
  door    text collate "C" not null,
  address text collate "C" not null,
  guess   integer          not null,
  at      timestamptz      not null default clock_timestamp()
);

create index on pgbus.token_guesses (door, address, at);


-- standbys ----------------------------------------------------------------------------------------------------

-- A mark that this run of the primary has set, for workers that read from a standby. A standby that shows it has
-- replayed what this primary wrote, and so follows it. A sequence, because setval leaves no dead rows, and because
-- several workers may set it at once. The upper bits are the time, in tenths of a second, and the lower 28 bits the
-- number of the epoch (see pgbus._epoch_number).
create sequence pgbus.mark as bigint;

-- Returns the mark, which is at most a second old, the position in the WAL, and the primary's time in Unix seconds. A
-- standby that has replayed the WAL up to this position has every commit that was visible when the statement began.
-- The position of the insertion, because a commit may be visible before its WAL is flushed.
create function pgbus._mark(out mark bigint, out wal bigint, out instant float8)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  run    bigint := pgbus._epoch_number() & 268435455;
  tenths bigint;
begin
  instant := extract(epoch from clock_timestamp());
  tenths := instant * 10;
  mark := pg_sequence_last_value('pgbus.mark');
  if (mark & 268435455 = run and mark >> 28 between tenths - 10 and tenths) is not true then
    -- With synchronous replication, nothing needs to wait until a standby has this mark. Until the end of the transaction,
    -- which this statement is.
    perform set_config('synchronous_commit', 'local', true);
    mark := setval('pgbus.mark', tenths << 28 | run);
  end if;
  wal := pg_current_wal_insert_lsn() - '0/0'::pg_lsn;
end
$$;


-- Redis -------------------------------------------------------------------------------------------------------

-- What the names in Redis are made from: a secret of this database, and its generation. The generation changes when
-- the database may have lost messages, so that what Redis knows of them is not used any more: with each start of a
-- server on these files, and after a crash with the first append.
create function pgbus._redis_names(out secret text, out generation text)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  number bigint := pgbus._epoch_number();
begin
  select c.doorbell || ' ' || c.control into secret from pgbus.channels() c;
  generation := left(encode(sha256(convert_to(concat_ws(' ',
    pgbus._home(), number,
    case when pg_sequence_last_value('pgbus.jumped') = number then pg_sequence_last_value('pgbus.floor') end),
    'UTF8')), 'hex'), 24);
end
$$;
