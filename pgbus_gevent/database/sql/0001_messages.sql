-- The log of messages, how a message is appended, and how workers are woken.
--
-- Lock classes (the first of the two integers of an advisory lock):
--   1885823603  'pgbs'  the appends to a stream; the second integer is one of 2048 numbers, by the stream's hash
--   1885823596  'pgbl'  the doorbell: who holds it rings for its transaction
--
-- Settings that live for one transaction (set_config(..., true), so that a savepoint's rollback takes them back
-- together with the rows they speak of):
--   pgbus.ring     what to ring at commit: '' for nothing, else the msg_id of the row whose trigger rings; where that
--                  is not the only row, a line break follows, and the names of the streams that moved with a line
--                  break after each, or '*' where they are too many to name
--   pgbus.flush    what to flush at commit: '' for nothing, else the position of the outbox row whose trigger flushes;
--                  where that is not the only row, a line break and '+' follow
--
-- What publishers do thousands of times a second is written as assignments and conditions of PL/pgSQL where it can be,
-- as these do without the executor that PERFORM and SELECT start.


-- messages ----------------------------------------------------------------------------------------------------

-- Ids are never used twice, not even by a schema that was dropped and made again, as they start at the clock.
do $$
begin
  execute format('create sequence pgbus.message_ids as bigint start with %s maxvalue 9007199254740991',
                 (extract(epoch from clock_timestamp()) * 1000000)::bigint);
end
$$;

-- "C": a name is its bytes, whatever the database's collation thinks of accents and case.
create table pgbus.messages (
  stream      text collate "C" not null,
  msg_id      bigint           not null,
  prev_id     bigint,          -- the stream's id before this one; null where the transaction could not know it
  created_at  timestamptz      not null default clock_timestamp(),
  event       text,
  data        text             not null,
  visible_to  text,
  exclude     text,
  key         text collate "C",
  primary key (stream, msg_id)
);

create unique index messages_key on pgbus.messages (stream, key) where key is not null;

-- The highest id that pruning removed from a stream: a cursor below it has missed something.
create table pgbus.horizons (
  stream  text collate "C" primary key,
  msg_id  bigint not null
);


-- arguments ---------------------------------------------------------------------------------------------------

-- An argument comes with its caller's collation, which may not do for a regular expression, or clash with a column's:
-- so every comparison names "C". These are inlined where they are called, so that good arguments cost next to nothing.
create function pgbus.good_stream(stream text) returns boolean
language sql immutable parallel safe as $$
  select octet_length(stream) between 1 and 255 and stream collate "C" !~ '[\u0001-\u001f\u007f-\u009f]'
$$;

create function pgbus.good_event(event text) returns boolean
language sql immutable parallel safe as $$
  select event is null or event collate "C" !~ '^pgbus:|[\r\n]'
$$;

-- An index entry has to hold it together with a stream's name.
create function pgbus.good_key(key text) returns boolean
language sql immutable parallel safe as $$
  select key is null or octet_length(key) between 1 and 1000
$$;

create function pgbus.good_message(stream text, data text, event text, key text) returns boolean
language sql immutable parallel safe as $$
  select pgbus.good_stream(stream) and data is not null and pgbus.good_event(event) and pgbus.good_key(key)
$$;

create function pgbus.refuse(stream text, data text, event text, key text) returns void
language plpgsql immutable as $$
begin
  raise exception using
    errcode = 'invalid_parameter_value',
    message = case
      when pgbus.good_stream(stream) is not true then
        format('bad stream name %s: it must be 1 to 255 bytes of UTF-8 without control characters',
               left(coalesce(to_json(stream)::text, 'null'), 80))
      when data is null then
        'data is null: broadcast an empty text instead'
      when not pgbus.good_event(event) then
        format('bad event name %s: it must not contain a line break or start with "pgbus:"',
               left(to_json(event)::text, 80))
      else
        format('bad key of %s bytes: it must be 1 to 1000 bytes of UTF-8', octet_length(key))
    end;
end
$$;


-- reading -----------------------------------------------------------------------------------------------------

-- In PL/pgSQL, which keeps the plan; PostgreSQL before 18 would plan an SQL function's statement at each call.
create function pgbus.horizon(stream text) returns bigint
language plpgsql stable parallel safe as $$
begin
  return coalesce((select h.msg_id from pgbus.horizons h where h.stream = horizon.stream collate "C"), 0);
end
$$;

create function pgbus.head(stream text) returns bigint
language plpgsql stable parallel safe as $$
begin
  return coalesce(
    (select m.msg_id from pgbus.messages m where m.stream = head.stream collate "C" order by m.msg_id desc limit 1),
    pgbus.horizon(stream));
end
$$;

create function pgbus.last_id(stream text) returns bigint
language plpgsql stable parallel safe as $$
begin
  if pgbus.good_stream(stream) is not true then
    perform pgbus.refuse(stream, '', null, null);
  end if;
  return pgbus.head(stream);
end
$$;

create function pgbus.read_after(stream text, after bigint, max integer default 500)
returns table (msg_id bigint, created_at timestamptz, event text, data text, visible_to text, exclude text)
language plpgsql stable parallel safe rows 500 as $$
begin
  if pgbus.good_stream(stream) is not true then
    perform pgbus.refuse(stream, '', null, null);
  end if;
  if after is null or after < 0 then
    raise exception 'bad cursor %: "after" is the last id that was seen, or 0', coalesce(after::text, 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  if max is null or max < 1 then
    raise exception 'bad limit %: "max" is at least 1', coalesce(max::text, 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  return query
    select m.msg_id, m.created_at, m.event, m.data, m.visible_to, m.exclude
    from pgbus.messages m
    where m.stream = read_after.stream collate "C" and m.msg_id > after
    order by m.msg_id
    -- Hidden from the planner, which else, where it expects the stream to have fewer rows, reads and sorts all of it.
    limit (select max);
end
$$;


-- channels ----------------------------------------------------------------------------------------------------

-- LISTEN and NOTIFY need no right at all: who knows the name of a channel can hear what is rung there, and ring. So the names
-- are secrets. Nobody is to read this table but its owner; workers ask pgbus.channels(). `home` is the database that they
-- were made for: a copy, by a dump or from a template, makes its own.
create table pgbus.channel_names (
  single    boolean primary key default true check (single),
  home      text not null,
  doorbell  text not null,
  control   text not null
);

create function pgbus.home() returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return (select s.system_identifier from pg_control_system() s) || '/'
         || (select d.oid from pg_database d where d.datname = current_database());
end
$$;

-- For the owner, after a leak. Workers are told on the former channel, and ask again in any case every few seconds.
create function pgbus.change_channels() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  former text;
begin
  lock table pgbus.channel_names in share row exclusive mode;
  former := (select c.control from pgbus.channel_names c);
  insert into pgbus.channel_names as c (home, doorbell, control)
  values (pgbus.home(), 'pgbus_' || replace(gen_random_uuid()::text, '-', ''),
          'pgbus_' || replace(gen_random_uuid()::text, '-', ''))
  on conflict (single) do update set home = excluded.home, doorbell = excluded.doorbell, control = excluded.control;
  if former is not null then
    perform pg_notify(former, '["control"]');
  end if;
end
$$;

-- For workers: the channels to LISTEN on.
create function pgbus.channels(out doorbell text, out control text)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  select c.doorbell, c.control into doorbell, control from pgbus.channel_names c where c.home = pgbus.home();
  if not found and current_setting('transaction_read_only') = 'off' then
    lock table pgbus.channel_names in share row exclusive mode;
    if not exists (select from pgbus.channel_names c where c.home = pgbus.home()) then
      perform pgbus.change_channels();
    end if;
  end if;
  if doorbell is null then
    select c.doorbell, c.control into doorbell, control from pgbus.channel_names c;
  end if;
end
$$;

select pgbus.change_channels();

revoke execute on function pgbus.channels(), pgbus.change_channels(), pgbus.home() from public;


-- the doorbell ------------------------------------------------------------------------------------------------

-- Notes that this transaction has appended to a stream; `id` is its first message there. The first append decides which
-- row rings, and as long as it is `alone`, that row rings with the message itself.
create function pgbus.touch(stream text, id bigint, alone boolean) returns void
language plpgsql volatile as $$
declare
  ring text := current_setting('pgbus.ring', true);
  name text := stream || chr(10);  -- no name has a line break
begin
  if ring <> '' then
    if strpos(ring, chr(10)) = 0 then
      ring := ring || chr(10);
    end if;
    if right(ring, 1) = '*' or strpos(ring, chr(10) || name) > 0 then
      return;
    end if;
    ring := case
      when octet_length(ring) > 5000 then split_part(ring, chr(10), 1) || chr(10) || '*'
      else ring || name
    end;
  else
    ring := case when alone then id::text else id::text || chr(10) || name end;
  end if;
  perform set_config('pgbus.ring', ring, true);
end
$$;

-- What a ring says: the message itself where it is the only one and fits, else which streams moved, or only that some
-- did.
create function pgbus.ring_payload(message pgbus.messages, ring text) returns text
language plpgsql stable as $$
declare
  payload text;
  names   text[];
begin
  if strpos(ring, chr(10)) = 0 and octet_length(message.data) < 7800 then
    payload := json_build_array('message', message.stream, message.msg_id, message.prev_id,
                                extract(epoch from message.created_at), message.event, message.data,
                                message.visible_to, message.exclude);
    if octet_length(payload) <= 7900 then
      return payload;
    end if;
  end if;
  if right(ring, 1) <> '*' then
    names := string_to_array(rtrim(substr(ring, strpos(ring || chr(10), chr(10)) + 1), chr(10)), chr(10));
    if message.stream <> all (names) then
      names := message.stream || names;
    end if;
    payload := to_json(array_prepend('moved', names));
    -- Names of many quotes grow when they are quoted.
    if octet_length(payload) <= 7900 then
      return payload;
    end if;
  end if;
  return '["moved"]';
end
$$;

-- Rings at COMMIT, and only if no other transaction is ringing just now: NOTIFY holds a lock of the whole cluster
-- over the commit's fsync, and every publisher would queue behind it. Who goes without is found by the sweep that
-- each worker makes after every ring.
create function pgbus.ring() returns trigger
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  ignored text;
begin
  -- First, as it waits for other streams' locks, and meanwhile nobody could ring.
  if current_setting('pgbus.flush', true) <> '' then
    perform pgbus.flush();
  end if;
  if pg_try_advisory_xact_lock(1885823596, 0) then
    perform pg_notify((select c.doorbell from pgbus.channel_names c),
                      pgbus.ring_payload(new, current_setting('pgbus.ring', true)));
  end if;
  -- Without this, what is appended after SET CONSTRAINTS ... IMMEDIATE would never ring.
  ignored := set_config('pgbus.ring', '', true);
  return null;
end
$$;

-- The condition is judged at the insert, so a transaction of any size queues one trigger, not one for each row.
create constraint trigger ring
  after insert on pgbus.messages
  deferrable initially deferred
  for each row
  when (new.msg_id::text = split_part(current_setting('pgbus.ring', true), chr(10), 1))
  execute function pgbus.ring();


-- appending ---------------------------------------------------------------------------------------------------

-- The lock is taken before the id is drawn and held to the commit: within a stream, commit order is id order. Streams
-- share 2048 locks, so that a transaction that appends to very many of them does not fill the server's lock table.
create function pgbus.lock_number(stream text) returns integer
language sql immutable parallel safe as $$
  select hashtext(stream collate "C") & 2047
$$;

create function pgbus.next_id(stream text) returns bigint
language sql volatile as $$
  -- CASE keeps the order of the two.
  select case
    when pg_advisory_xact_lock(1885823603, pgbus.lock_number(stream)) is not null then nextval('pgbus.message_ids')
  end
$$;

-- The stream's newest id as the next message's prev_id; the stream is locked. A transaction with one snapshot for all
-- its statements does not see what was committed since, and would name an older id; a worker whose head happens to be
-- that one would then skip what lies between. So it says that it does not know, and the worker reads the table.
create function pgbus.previous_id(stream text) returns bigint
language plpgsql volatile as $$
begin
  return case
    when current_setting('transaction_isolation') in ('repeatable read', 'serializable') then null
    else pgbus.head(stream)
  end;
end
$$;

create function pgbus.broadcast(stream text, data text, event text default null, visible_to text default null,
                                exclude text default null, key text default null) returns bigint
language plpgsql volatile as $$
declare
  id      bigint;
  ignored text;
begin
  if pgbus.good_message(stream, data, event, key) is not true then
    perform pgbus.refuse(stream, data, event, key);
  end if;
  if key is not null then
    return pgbus.broadcast_once(stream, data, event, visible_to, exclude, key);
  end if;
  id := pgbus.next_id(stream);
  if current_setting('pgbus.ring', true) <> '' then
    perform pgbus.touch(stream, id, true);
  else
    ignored := set_config('pgbus.ring', id::text, true);
  end if;
  insert into pgbus.messages (stream, msg_id, prev_id, event, data, visible_to, exclude)
  values (
    stream, id,
    -- previous_id(stream), written out.
    case
      when current_setting('transaction_isolation') not in ('repeatable read', 'serializable') then coalesce(
        (select m.msg_id from pgbus.messages m where m.stream = broadcast.stream collate "C"
         order by m.msg_id desc limit 1),
        pgbus.horizon(stream))
    end,
    nullif(event collate "C", ''), data, visible_to, exclude);
  return id;
end
$$;

create function pgbus.broadcast_once(stream text, data text, event text, visible_to text, exclude text, key text)
returns bigint
language plpgsql volatile as $$
declare
  id    bigint := pgbus.next_id(stream);
  first bigint;
begin
  select m.msg_id into first from pgbus.messages m
  where m.stream = broadcast_once.stream collate "C" and m.key = broadcast_once.key collate "C";
  if found then
    return first;
  end if;
  perform pgbus.touch(stream, id, true);
  insert into pgbus.messages (stream, msg_id, prev_id, event, data, visible_to, exclude, key)
  values (stream, id, pgbus.previous_id(stream), nullif(event collate "C", ''), data, visible_to, exclude, key)
  -- Only for a transaction with one snapshot, which could not see the first one: a serialization failure (40001), which
  -- such transactions retry, and not a unique violation.
  on conflict do nothing;
  return id;
end
$$;

-- The arrays are of one length. Returns the last id, or null where there is nothing to append.
create function pgbus.append(stream text, data text[], event text[], visible_to text[], exclude text[])
returns bigint
language plpgsql volatile as $$
declare
  size  integer := cardinality(data);
  ids   bigint[];
  first bigint;
begin
  if size = 0 then
    return null;
  end if;
  ids := array[pgbus.next_id(stream)];
  ids := ids || array(select nextval('pgbus.message_ids') from generate_series(2, size));
  first := pgbus.previous_id(stream);
  perform pgbus.touch(stream, ids[1], size = 1);
  insert into pgbus.messages (stream, msg_id, prev_id, event, data, visible_to, exclude)
  select append.stream, u.id, case when u.n = 1 then first else ids[u.n - 1] end, nullif(u.event collate "C", ''),
         u.data, u.visible_to, u.exclude
  from unnest(ids, data, event, visible_to, exclude) with ordinality as u(id, data, event, visible_to, exclude, n);
  return ids[size];
end
$$;

create function pgbus.broadcast_many(stream text, data text[], event text default null, visible_to text default null,
                                     exclude text default null) returns bigint
language plpgsql volatile as $$
declare
  size integer := cardinality(data);
begin
  if pgbus.good_message(stream, '', event, null) is not true then
    perform pgbus.refuse(stream, '', event, null);
  end if;
  if data is null or array_ndims(data) > 1 or array_position(data, null) is not null then
    raise exception 'bad data: it must be an array of one dimension without nulls'
      using errcode = 'invalid_parameter_value';
  end if;
  -- Unnested, for an array may be numbered from something else than 1.
  return pgbus.append(stream, array(select unnest(data)), array_fill(event, array[size]),
                      array_fill(visible_to, array[size]), array_fill(exclude, array[size]));
end
$$;


-- on commit ---------------------------------------------------------------------------------------------------

-- Only their order within one transaction counts, so each session may take a hundred at a time.
create sequence pgbus.outbox_positions as bigint cache 100;

-- A row lives from its broadcast_on_commit to the commit of the same transaction; nobody else ever sees one, so there
-- is nothing to recover after a crash.
create unlogged table pgbus.outbox (
  xid         xid8 not null default pg_current_xact_id(),
  position    bigint not null,
  stream      text collate "C" not null,
  data        text not null,
  event       text,
  visible_to  text,
  exclude     text,
  key         text collate "C"
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

create index outbox_xid on pgbus.outbox (xid);

create function pgbus.broadcast_on_commit(stream text, data text, event text default null,
                                          visible_to text default null, exclude text default null,
                                          key text default null) returns void
language plpgsql volatile as $$
declare
  place  bigint := nextval('pgbus.outbox_positions');
  queued text := coalesce(current_setting('pgbus.flush', true), '');
begin
  if pgbus.good_message(stream, data, event, key) is not true then
    perform pgbus.refuse(stream, data, event, key);
  end if;
  if queued = '' then
    queued := set_config('pgbus.flush', place::text, true);
  elsif right(queued, 1) <> '+' then
    queued := set_config('pgbus.flush', queued || chr(10) || '+', true);
  end if;
  insert into pgbus.outbox (position, stream, data, event, visible_to, exclude, key)
  values (place, stream, data, event, visible_to, exclude, key);
end
$$;

-- Streams are locked in the order of their locks, so that two transactions that touch the same streams in opposite
-- order cannot deadlock.
create function pgbus.flush() returns void
language plpgsql volatile as $$
declare
  queued text := current_setting('pgbus.flush', true);
  one    pgbus.outbox;
  batch  record;
begin
  perform set_config('pgbus.flush', '', true);
  -- Usually there is one, which needs none of what follows.
  if queued <> '' and right(queued, 1) <> '+' then
    delete from pgbus.outbox o where o.xid = pg_current_xact_id() and o.position = queued::bigint returning * into one;
    if found then
      perform pgbus.broadcast(one.stream, one.data, one.event, one.visible_to, one.exclude, one.key);
    end if;
    return;
  end if;
  for batch in
    with mine as (delete from pgbus.outbox o where o.xid = pg_current_xact_id() returning o.*)
    select mine.stream,
           array_agg(mine.data order by position) as data,
           array_agg(mine.event order by position) as event,
           array_agg(mine.visible_to order by position) as visible_to,
           array_agg(mine.exclude order by position) as exclude,
           array_agg(mine.key order by position) as key,
           count(*) = 1 or bool_or(mine.key is not null) as singly
    from mine
    group by mine.stream
    order by pgbus.lock_number(mine.stream), mine.stream
  loop
    if batch.singly then
      for n in 1 .. cardinality(batch.data) loop
        perform pgbus.broadcast(batch.stream, batch.data[n], batch.event[n], batch.visible_to[n], batch.exclude[n],
                                batch.key[n]);
      end loop;
    else
      perform pgbus.append(batch.stream, batch.data, batch.event, batch.visible_to, batch.exclude);
    end if;
  end loop;
end
$$;

create function pgbus.flush_outbox() returns trigger
language plpgsql volatile as $$
begin
  -- It may be empty: a ring empties it first.
  perform pgbus.flush();
  return null;
end
$$;

create constraint trigger flush
  after insert on pgbus.outbox
  deferrable initially deferred
  for each row
  when (new.position::text = split_part(current_setting('pgbus.flush', true), chr(10), 1))
  execute function pgbus.flush_outbox();


-- ephemeral ---------------------------------------------------------------------------------------------------

create sequence pgbus.ephemeral_ids as bigint;

-- Ephemeral messages too large for a notification, until the workers have fetched them: seconds.
create unlogged table pgbus.ephemerals (
  id          bigint primary key,
  created_at  timestamptz not null default clock_timestamp(),
  stream      text collate "C" not null,
  event       text,
  data        text not null,
  visible_to  text,
  exclude     text
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- The number in each payload keeps equal ones of one transaction apart: PostgreSQL would fold them into one.
create function pgbus.broadcast_ephemeral(stream text, data text, event text default null,
                                          visible_to text default null, exclude text default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  number  bigint := nextval('pgbus.ephemeral_ids');
  payload text;
begin
  if pgbus.good_message(stream, data, event, null) is not true then
    perform pgbus.refuse(stream, data, event, null);
  end if;
  event := nullif(event collate "C", '');
  if octet_length(data) < 7800 then
    payload := json_build_array('ephemeral', stream, number, event, data, visible_to, exclude);
  end if;
  if payload is null or octet_length(payload) > 7900 then
    -- Not in a transaction with one snapshot, which would fail on a row that another one has removed meanwhile.
    if current_setting('transaction_isolation') = 'read committed' then
      delete from pgbus.ephemerals e
      where e.id in (
        select o.id from pgbus.ephemerals o
        where o.id in (select p.id from pgbus.ephemerals p order by p.id limit 100)
              and o.created_at < clock_timestamp() - interval '1 minute'
        for update skip locked);
    end if;
    insert into pgbus.ephemerals (id, stream, event, data, visible_to, exclude)
    values (number, stream, event, data, visible_to, exclude);
    payload := json_build_array('large', stream, number);
  end if;
  perform pg_notify((select c.doorbell from pgbus.channel_names c), payload);
end
$$;
