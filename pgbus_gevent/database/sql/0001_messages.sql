-- The log of messages, how a message is appended, and how workers are woken.
--
-- Lock classes (the first of the two integers of an advisory lock):
--   1885823603  'pgbs'  one stream's appends; the second integer is hashtext(stream)
--   1885823596  'pgbl'  the doorbell: who holds it rings for its transaction
--
-- Settings that live for one transaction (set_config(..., true), so that a savepoint's rollback takes them back
-- together with the rows they speak of):
--   pgbus.ringer   msg_id of the row whose trigger rings at commit
--   pgbus.others   '' while that row is the only one; else the streams that moved, as JSON texts joined by commas,
--                  or '*' where they are too many to name
--   pgbus.flusher  position of the outbox row whose trigger empties the outbox at commit


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

create function pgbus.check_stream(stream text) returns void
language plpgsql immutable parallel safe as $$
begin
  if stream is null or octet_length(stream) not between 1 and 255 or stream ~ '[\u0001-\u001f\u007f-\u009f]' then
    raise exception 'bad stream name %: it must be 1 to 255 bytes of UTF-8 without control characters',
                    left(coalesce(to_json(stream)::text, 'null'), 80)
      using errcode = 'invalid_parameter_value';
  end if;
end
$$;

create function pgbus.check_message(stream text, data text, event text) returns void
language plpgsql immutable parallel safe as $$
begin
  perform pgbus.check_stream(stream);
  if data is null then
    raise exception 'data is null: broadcast an empty text instead' using errcode = 'invalid_parameter_value';
  end if;
  if event ~ '[\r\n]' or starts_with(event, 'pgbus:') then
    raise exception 'bad event name %: it must not contain a line break or start with "pgbus:"',
                    left(to_json(event)::text, 80)
      using errcode = 'invalid_parameter_value';
  end if;
end
$$;


-- reading -----------------------------------------------------------------------------------------------------

create function pgbus.head(name text) returns bigint
language sql stable parallel safe as $$
  select coalesce(
    (select m.msg_id from pgbus.messages m where m.stream = name order by m.msg_id desc limit 1),
    (select h.msg_id from pgbus.horizons h where h.stream = name),
    0)
$$;

create function pgbus.last_id(stream text) returns bigint
language plpgsql stable parallel safe as $$
begin
  perform pgbus.check_stream(stream);
  return pgbus.head(stream);
end
$$;

create function pgbus.read_after(stream text, after bigint, max integer default 500)
returns table (msg_id bigint, created_at timestamptz, event text, data text, visible_to text, exclude text)
language plpgsql stable parallel safe rows 500 as $$
begin
  perform pgbus.check_stream(stream);
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
    where m.stream = read_after.stream and m.msg_id > after
    order by m.msg_id
    limit max;
end
$$;


-- the doorbell ------------------------------------------------------------------------------------------------

-- Notes that this transaction appended to a stream; the first append decides which row rings.
create function pgbus.touch(stream text, id bigint, alone boolean) returns void
language plpgsql volatile as $$
declare
  others text;
  name   text;
begin
  if coalesce(current_setting('pgbus.ringer', true), '') = '' then
    perform set_config('pgbus.ringer', id::text, true),
            set_config('pgbus.others', case when alone then '' else to_json(stream)::text end, true);
    return;
  end if;
  others := current_setting('pgbus.others', true);
  name := to_json(stream)::text;
  if others = '' then
    perform set_config('pgbus.others', name, true);
  elsif others <> '*' and strpos(others, name) = 0 then
    perform set_config('pgbus.others',
                       case when octet_length(others) > 5000 then '*' else others || ',' || name end, true);
  end if;
end
$$;

-- Rings at COMMIT, and only if no other transaction is ringing just now: NOTIFY holds a lock of the whole cluster
-- over the commit's fsync, and every publisher would queue behind it. Who goes without is found by the sweep that
-- each worker makes after every ring.
create function pgbus.ring() returns trigger
language plpgsql volatile as $$
declare
  others  text := coalesce(current_setting('pgbus.others', true), '');
  payload text;
begin
  -- Without this, what is appended after SET CONSTRAINTS ... IMMEDIATE would never ring.
  perform set_config('pgbus.ringer', '', true);
  if not pg_try_advisory_xact_lock(1885823596, 0) then
    return null;
  end if;
  if others = '' and octet_length(new.data) < 7800 then
    payload := json_build_array('message', new.stream, new.msg_id, new.prev_id, extract(epoch from new.created_at),
                                new.event, new.data, new.visible_to, new.exclude)::text;
  end if;
  if payload is null or octet_length(payload) > 7900 then
    payload := case
      when others = '*' then '["moved"]'
      when others = '' or strpos(others, to_json(new.stream)::text) > 0
        then '["moved",' || coalesce(nullif(others, ''), to_json(new.stream)::text) || ']'
      else '["moved",' || to_json(new.stream)::text || ',' || others || ']'
    end;
  end if;
  perform pg_notify('pgbus', payload);
  return null;
end
$$;

-- The condition is judged at the insert, so a transaction of any size queues one trigger, not one for each row.
create constraint trigger ring
  after insert on pgbus.messages
  deferrable initially deferred
  for each row
  when (new.msg_id::text = current_setting('pgbus.ringer', true))
  execute function pgbus.ring();


-- appending ---------------------------------------------------------------------------------------------------

-- The stream's newest id as the next message's prev_id. A transaction with one snapshot for all its statements
-- does not see what was committed since, and would name an older id; a worker whose head happens to be that one would
-- then skip what lies between. So it says that it does not know, and the worker reads the table.
create function pgbus.previous_id(name text) returns bigint
language sql volatile as $$
  select case
    when current_setting('transaction_isolation') in ('repeatable read', 'serializable') then null
    else pgbus.head(name)
  end
$$;

-- The lock is taken before the id is drawn and held to the commit: within a stream, commit order is id order.
create function pgbus.lock_stream(name text) returns void
language sql volatile as $$
  select pg_advisory_xact_lock(1885823603, hashtext(name))
$$;

create function pgbus.broadcast(stream text, data text, event text default null, visible_to text default null,
                                exclude text default null, key text default null) returns bigint
language plpgsql volatile as $$
declare
  id bigint;
begin
  perform pgbus.check_message(stream, data, event);
  perform pgbus.lock_stream(stream);
  if key is not null then
    select m.msg_id into id from pgbus.messages m
    where m.stream = broadcast.stream and m.key = broadcast.key;
    if found then
      return id;
    end if;
  end if;
  id := nextval('pgbus.message_ids');
  perform pgbus.touch(stream, id, true);
  insert into pgbus.messages (stream, msg_id, prev_id, event, data, visible_to, exclude, key)
  values (stream, id, pgbus.previous_id(stream), nullif(event, ''), data, visible_to, exclude, key)
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
  ids   bigint[];
  first bigint;
begin
  if cardinality(data) = 0 then
    return null;
  end if;
  perform pgbus.lock_stream(stream);
  ids := array(select nextval('pgbus.message_ids') from generate_series(1, cardinality(data)));
  first := pgbus.previous_id(stream);
  perform pgbus.touch(stream, ids[1], cardinality(data) = 1);
  insert into pgbus.messages (stream, msg_id, prev_id, event, data, visible_to, exclude)
  select append.stream, u.id, case when u.n = 1 then first else ids[u.n - 1] end,
         nullif(u.event, ''), u.data, u.visible_to, u.exclude
  from unnest(ids, data, event, visible_to, exclude) with ordinality as u(id, data, event, visible_to, exclude, n);
  return ids[cardinality(ids)];
end
$$;

create function pgbus.broadcast_many(stream text, data text[], event text default null, visible_to text default null,
                                     exclude text default null) returns bigint
language plpgsql volatile as $$
declare
  size integer := cardinality(data);
begin
  perform pgbus.check_message(stream, '', event);
  if data is null or array_position(data, null) is not null then
    raise exception 'data is null or has a null in it: broadcast an empty text instead'
      using errcode = 'invalid_parameter_value';
  end if;
  return pgbus.append(stream, array(select unnest(data)), array_fill(event, array[size]),
                      array_fill(visible_to, array[size]), array_fill(exclude, array[size]));
end
$$;


-- on commit ---------------------------------------------------------------------------------------------------

create sequence pgbus.outbox_positions as bigint;

-- A row lives from its broadcast_on_commit to the commit of the same transaction; nobody else ever sees one.
create table pgbus.outbox (
  position    bigint primary key,
  xid         xid8 not null default pg_current_xact_id(),
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
  place bigint := nextval('pgbus.outbox_positions');
begin
  perform pgbus.check_message(stream, data, event);
  if coalesce(current_setting('pgbus.flusher', true), '') = '' then
    perform set_config('pgbus.flusher', place::text, true);
  end if;
  insert into pgbus.outbox (position, stream, data, event, visible_to, exclude, key)
  values (place, stream, data, event, visible_to, exclude, key);
end
$$;

-- Streams are locked in the order of their lock keys, so that two transactions that touch the same streams in
-- opposite order cannot deadlock.
create function pgbus.flush_outbox() returns trigger
language plpgsql volatile as $$
declare
  batch record;
  n     integer;
begin
  perform set_config('pgbus.flusher', '', true);
  for batch in
    with mine as (delete from pgbus.outbox o where o.xid = pg_current_xact_id() returning o.*)
    select mine.stream,
           array_agg(mine.data order by position) as data,
           array_agg(mine.event order by position) as event,
           array_agg(mine.visible_to order by position) as visible_to,
           array_agg(mine.exclude order by position) as exclude,
           array_agg(mine.key order by position) as key,
           bool_or(mine.key is not null) as keyed
    from mine
    group by mine.stream
    order by hashtext(mine.stream), mine.stream
  loop
    if batch.keyed then
      for n in 1 .. cardinality(batch.data) loop
        perform pgbus.broadcast(batch.stream, batch.data[n], batch.event[n], batch.visible_to[n], batch.exclude[n],
                                batch.key[n]);
      end loop;
    else
      perform pgbus.append(batch.stream, batch.data, batch.event, batch.visible_to, batch.exclude);
    end if;
  end loop;
  return null;
end
$$;

create constraint trigger flush
  after insert on pgbus.outbox
  deferrable initially deferred
  for each row
  when (new.position::text = current_setting('pgbus.flusher', true))
  execute function pgbus.flush_outbox();


-- ephemeral ---------------------------------------------------------------------------------------------------

create sequence pgbus.ephemeral_ids as bigint;

-- Ephemeral messages too large for a notification, until the workers have fetched them: seconds.
create unlogged table pgbus.ephemerals (
  id          bigint primary key,
  created_at  timestamptz not null default clock_timestamp(),
  event       text,
  data        text not null,
  visible_to  text,
  exclude     text
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- The number in each payload keeps equal ones of one transaction apart: PostgreSQL would fold them into one.
create function pgbus.broadcast_ephemeral(stream text, data text, event text default null,
                                          visible_to text default null, exclude text default null) returns void
language plpgsql volatile as $$
declare
  number  bigint := nextval('pgbus.ephemeral_ids');
  payload text;
begin
  perform pgbus.check_message(stream, data, event);
  if octet_length(data) < 7800 then
    payload := json_build_array('ephemeral', stream, number, nullif(event, ''), data, visible_to, exclude)::text;
  end if;
  if payload is null or octet_length(payload) > 7900 then
    delete from pgbus.ephemerals e
    where e.id in (select o.id from pgbus.ephemerals o where o.created_at < clock_timestamp() - interval '1 minute'
                   order by o.id limit 100 for update skip locked);
    insert into pgbus.ephemerals (id, event, data, visible_to, exclude)
    values (number, nullif(event, ''), data, visible_to, exclude);
    payload := json_build_array('large', stream, number)::text;
  end if;
  perform pg_notify('pgbus', payload);
end
$$;
