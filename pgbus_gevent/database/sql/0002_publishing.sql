-- Publishing: appending now, appending at the commit, ephemeral messages, and the doorbell that wakes the workers.
--
-- Four settings live for one transaction (set_config(..., true)). A rollback to a savepoint takes them back together
-- with the rows that they describe:
--   pgbus.ring   what to ring for at the commit: '' for nothing, else the msg_id of the row whose trigger rings
--   pgbus.moved  '' if that row is the only one; else the names of the streams that moved, with a line break after
--                each, or '*' if they are too many to name
--   pgbus.flush  'yes' if something is queued for the commit
--   pgbus.told   how many bytes of ephemeral notifications the transaction has sent
-- Any role can set them in its own session. They decide only when that session rings and what it says, so nothing
-- depends on them.
--
-- Data is text. The functions that take data also take json, which is stored as its text, unchanged, and jsonb, which
-- is stored as the text that `data::text` gives. An untyped literal, such as 'x' or null, means text, because
-- PostgreSQL prefers text over other types. The functions for json and jsonb are single expressions that PostgreSQL
-- inlines, so they add nothing to the path of text.


-- appending ---------------------------------------------------------------------------------------------------

create function pgbus.broadcast(stream text, data text, event text default null, visible_to text default null,
                                exclude text default null, key text default null) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  given   bigint;
  id      bigint;
  head    bigint;
  ignored text;
begin
  if pgbus._good_message(stream, data, event, visible_to, exclude, key) is not true then
    perform pgbus._refuse(stream, data, event, visible_to, exclude, key);
  end if;
  if key is not null or current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
    return pgbus._append_once(stream, array[data], array[event], array[visible_to], array[exclude], array[key]);
  end if;
  -- _lock_stream, _draw and _head, written out to save the calls.
  if not pg_try_advisory_xact_lock(1885823603, pgbus._lock_number(stream)) then
    perform pgbus._lock_stream(stream);
  end if;
  given := pg_sequence_last_value('pgbus.highest');
  id := nextval('pgbus.message_ids');
  select m.msg_id into head from pgbus.messages m
  where m.stream = broadcast.stream collate "C" order by m.msg_id desc limit 1;
  if head is null then
    head := pgbus._head(stream);
  end if;
  if id <= head or id <= given or pgbus._good_id(id) is not true then
    head := pgbus._head(stream);
    id := pgbus._jump(stream, head);
  end if;
  given := setval('pgbus.highest', id);
  if current_setting('pgbus.ring', true) <> '' then
    perform pgbus._touch(stream, id, true);
  else
    ignored := set_config('pgbus.ring', id::text, true);
  end if;
  insert into pgbus.messages (stream, msg_id, prev_id, event, data, visible_to, exclude)
  values (stream, id, head, nullif(event collate "C", ''), data, visible_to, exclude);
  return id;
end
$$;

comment on function pgbus.broadcast(text, text, text, text, text, text) is
'Appends one message to a stream in the caller''s transaction, and returns its id. The stream stays locked until the
transaction ends. event: the name of the event; null for none. visible_to: the label of a filter; null for everybody.
exclude: the id of a connection that does not get the message. key: an idempotency key of 1 to 1000 bytes; if a
retained message of the stream has it, nothing is appended, and the id of that message is returned.
Errors: 22023 for a bad argument; 40001 for a serialization failure in REPEATABLE READ or SERIALIZABLE; 55P03 if a
session keeps the stream''s lock without publishing.';

create function pgbus.broadcast(stream text, data json, event text default null, visible_to text default null,
                                exclude text default null, key text default null) returns bigint
language sql volatile
return pgbus.broadcast(stream, data::text, event, visible_to, exclude, key);

comment on function pgbus.broadcast(text, json, text, text, text, text) is
'Does the same as broadcast with text, for data of type json, which is stored as its text, unchanged.';

create function pgbus.broadcast(stream text, data jsonb, event text default null, visible_to text default null,
                                exclude text default null, key text default null) returns bigint
language sql volatile
return pgbus.broadcast(stream, data::text, event, visible_to, exclude, key);

comment on function pgbus.broadcast(text, jsonb, text, text, text, text) is
'Does the same as broadcast with text, for data of type jsonb, which is stored as the text that data::text gives.';

-- One polymorphic function takes text[], json[] and jsonb[], because PostgreSQL could not choose among three
-- functions for an untyped literal such as '{a,b}': no type of array is preferred. For anycompatiblearray such a
-- literal means text[].
create function pgbus.broadcast_many(stream text, data anycompatiblearray, event text default null,
                                     visible_to text default null, exclude text default null,
                                     keys text[] default null) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  size integer := cardinality(data);
  bad  text;
begin
  if pgbus._good_message(stream, '', event, visible_to, exclude, null) is not true then
    perform pgbus._refuse(stream, '', event, visible_to, exclude);
  end if;
  -- Before anything is done with the elements: a cast or an operator that the caller has made for a type of its own
  -- would run here with the rights of this function's owner.
  if pg_typeof(data) <> 'text[]'::regtype then
    if not exists (
      select from pg_type a join pg_type e on e.oid = a.typelem
      where a.oid = pg_typeof(data)
            and (e.typcategory = 'S' or coalesce(nullif(e.typbasetype, 0), e.oid) in ('json'::regtype, 'jsonb'::regtype)))
    then
      raise exception 'bad data of type %: it must be an array of text, json or jsonb', pg_typeof(data)
        using errcode = 'invalid_parameter_value';
    end if;
  end if;
  if data is null or array_ndims(data) > 1 or num_nulls(variadic data) > 0 then
    raise exception 'bad data: it must be an array of one dimension without nulls'
      using errcode = 'invalid_parameter_value';
  end if;
  if keys is not null then
    if array_ndims(keys) > 1 or cardinality(keys) <> size then
      raise exception 'bad keys: give one for each of the % messages, or null for a message without, in one dimension', size
        using errcode = 'invalid_parameter_value';
    end if;
    select k into bad from unnest(keys) k where pgbus._good_key(k) is not true limit 1;
    if found then
      perform pgbus._refuse(stream, key => bad);
    end if;
  end if;
  if size = 0 then
    return null;
  end if;
  -- Unnested, because an array may be numbered from another number than 1. In the expression, because an assignment to
  -- a variable would copy the array.
  if keys is null then
    return pgbus._append(stream, array(select unnest(data)::text), array_fill(event, array[size]),
                         array_fill(visible_to, array[size]), array_fill(exclude, array[size]));
  end if;
  return pgbus._append_once(stream, array(select unnest(data)::text), array_fill(event, array[size]),
                            array_fill(visible_to, array[size]), array_fill(exclude, array[size]),
                            array(select unnest(keys)));
end
$$;

comment on function pgbus.broadcast_many(text, anycompatiblearray, text, text, text, text[]) is
'Appends an array of messages, text[], json[] or jsonb[], to a stream in one go, in the order of the array, and returns
the id of the last one; null for an empty array. An untyped literal means text[]. The stream stays locked until the
transaction ends. event, visible_to and exclude are as in broadcast, and apply to every message. keys: null, or one
idempotency key for each message; a message whose key a retained message of the stream has is left out.
Errors: as those of broadcast; 22023 also for an array with nulls or several dimensions.';

-- Appends a set. The arrays have one length. Returns the last id; null if there is nothing to append.
create function pgbus._append(stream text, data text[], event text[], visible_to text[], exclude text[])
returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  size integer := cardinality(data);
  ids  bigint[];
  last bigint;
begin
  if size = 0 then
    return null;
  end if;
  if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
    return pgbus._append_once(stream, data, event, visible_to, exclude, array_fill(null::text, array[size]));
  end if;
  perform pgbus._lock_stream(stream);
  select d.ids, d.head into ids, last from pgbus._draw(stream, size) d;
  perform pgbus._touch(stream, ids[1], size = 1);
  insert into pgbus.messages (stream, msg_id, prev_id, event, data, visible_to, exclude)
  select _append.stream, u.id, case when u.n = 1 then last else ids[u.n - 1] end, nullif(u.event collate "C", ''),
         u.data, u.visible_to, u.exclude
  from unnest(ids, data, event, visible_to, exclude) with ordinality as u(id, data, event, visible_to, exclude, n);
  return ids[size];
end
$$;

-- Draws `size` ids for a stream that is locked, and returns the stream's last id before them. A transaction that has
-- one snapshot for all its statements may not see that id, but knows that the highest one that was given is not below
-- it. An id that is not above that one was drawn from a sequence that has been set back.
create function pgbus._draw(stream text, size integer, out ids bigint[], out head bigint)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  given bigint := pg_sequence_last_value('pgbus.highest');  -- before the draw, since others draw at the same time
begin
  ids := array(select nextval('pgbus.message_ids') from generate_series(1, size));
  head := pgbus._head(stream);
  if ids[1] <= head or ids[1] <= given or pgbus._good_id(ids[1]) is not true then
    ids := array[pgbus._jump(stream, head)];
    ids := ids || array(select nextval('pgbus.message_ids') from generate_series(2, size));
  end if;
  given := setval('pgbus.highest', ids[size]);
end
$$;

-- Appends the messages whose key the stream does not have (of two with one key, the first), and those without a key.
-- Returns the id of the last of all these messages, including one that was there before.
--
-- Also for a transaction that has one snapshot for all its statements (REPEATABLE READ). It does not see what was
-- committed since, and would name an older id as the one before. A worker whose head is that older id would then skip
-- the messages in between. So the row says that the id before is not known, and the worker reads the table.
create function pgbus._append_once(stream text, data text[], event text[], visible_to text[], exclude text[], keys text[])
returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  old   boolean := current_setting('transaction_isolation') in ('repeatable read', 'serializable');
  size  integer;
  fresh integer[];
  ids   bigint[];
  prev  bigint;
  last  bigint;
  found integer;
begin
  -- Before the keys are read: until this transaction has ended, no other can add one.
  perform pgbus._lock_stream(stream);
  fresh := array(
    select u.n
    from (
      select k.key, k.n::integer as n, row_number() over (partition by k.key collate "C" order by k.n) as nth
      from unnest(keys) with ordinality as k(key, n)
    ) u
    -- Not `not exists`: for that the planner may read all keys of the stream.
    where u.key is null or (u.nth = 1 and (
      select m.msg_id from pgbus.messages m
      where m.stream = _append_once.stream collate "C" and m.key = u.key collate "C") is null)
    order by u.n);
  size := cardinality(fresh);
  if size > 0 then
    select d.ids, case when old then null else d.head end into ids, prev from pgbus._draw(stream, size) d;
    perform pgbus._touch(stream, ids[1], size = 1);
    insert into pgbus.messages (stream, msg_id, prev_id, event, data, visible_to, exclude, key)
    select _append_once.stream, ids[u.n], case when u.n = 1 then prev else ids[u.n - 1] end,
           nullif(_append_once.event[u.place] collate "C", ''), _append_once.data[u.place], _append_once.visible_to[u.place],
           _append_once.exclude[u.place], keys[u.place]
    from unnest(fresh) with ordinality as u(place, n)
    -- Only a transaction with one snapshot gets here, because it cannot see the other row. It is to fail with a
    -- serialization failure (40001), which such transactions retry, and not with a unique violation.
    on conflict do nothing;
    get diagnostics found = row_count;
    if found < size then
      raise exception 'another session has written to stream % by hand meanwhile: try again', to_json(stream)
        using errcode = 'serialization_failure';
    end if;
  end if;
  if fresh[size] = cardinality(data) then
    return ids[size];
  end if;
  select m.msg_id into last from pgbus.messages m
  where m.stream = _append_once.stream collate "C" and m.key = keys[cardinality(keys)] collate "C";
  return last;
end
$$;


-- the doorbell ------------------------------------------------------------------------------------------------

-- When a transaction last rang, in milliseconds of Unix time, and how many milliseconds must lie between two rings.
-- In a large fleet rings keep a distance, because each one wakes every worker: see pgbus._pace_rings in
-- 0006_fleet.sql. These are sequences, because writing to one leaves no dead row, and does not wait for a transaction
-- that wrote earlier and is still open.
create sequence pgbus.last_ring as bigint minvalue 0 start with 0;
create sequence pgbus.ring_pause as bigint minvalue 0 start with 0;

-- When a transaction last looked which sessions hold the bells, in milliseconds of Unix time.
create sequence pgbus.last_look as bigint minvalue 0 start with 0;

-- Notes that this transaction has appended to a stream; `id` is its first message there. The first append decides
-- which row rings. As long as it is `alone`, that row rings with the message itself.
create function pgbus._touch(stream text, id bigint, alone boolean) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  name    text := stream || chr(10);  -- no name has a line break
  moved   text := coalesce(current_setting('pgbus.moved', true), '');
  ignored text;
begin
  if current_setting('pgbus.ring', true) <> '' then
    if right(moved, 1) = '*' or strpos(chr(10) || moved, chr(10) || name) > 0 then
      return;
    end if;
    moved := case when octet_length(moved) > 5000 then '*' else moved || name end;
  else
    ignored := set_config('pgbus.ring', id::text, true);
    moved := case when alone then '' else name end;
  end if;
  ignored := set_config('pgbus.moved', moved, true);
end
$$;

-- Rings at COMMIT, if the transaction gets a bell without waiting. NOTIFY holds a lock of the whole cluster until the
-- commit has been flushed to disk, and every publisher would queue behind it. Messages that did not ring are found by
-- the sweeps that follow every ring: those of the steward, or of each worker if there is none.
create function pgbus._ring() returns trigger
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  pause   bigint;
  may     boolean;
  moved   text;
  payload text;
  ignored text;
begin
  -- First, because it waits for the locks of other streams. If it held a bell meanwhile, no other transaction could
  -- ring.
  if current_setting('pgbus.flush', true) <> '' then
    perform pgbus._flush();
  end if;
  pause := coalesce(pg_sequence_last_value('pgbus.ring_pause'), 0);
  -- Two bells, so that one slow commit does not silence all other transactions. Not more, because transactions that
  -- ring wait for one another's commits.
  may := pause = 0 and (pg_try_advisory_xact_lock(1885823596, 0) or pg_try_advisory_xact_lock(1885823596, 1));
  -- The first condition of _may_ring, repeated here to save the call if there are many publishers.
  if not may and (pause > 0 or abs(date_part('epoch', clock_timestamp()) * 1000
                                   - coalesce(pg_sequence_last_value('pgbus.last_look'), 0)) >= 1000)
  then
    may := pgbus._may_ring(pause);
  end if;
  if may and pgbus._can_notify() then
    moved := coalesce(current_setting('pgbus.moved', true), '');
    if moved = '' and octet_length(new.data) < 7800 then
      payload := json_build_array('message', new.stream, new.msg_id, new.prev_id, date_part('epoch', new.created_at), new.event,
                                  new.data, new.visible_to, new.exclude);
    end if;
    if octet_length(payload) <= 7900 then
      ignored := pgbus._notify_stream(new.stream, payload);
    else
      ignored := pgbus._notify_moved(new.stream, moved);
    end if;
  end if;
  -- Without this, messages that are appended after SET CONSTRAINTS ... IMMEDIATE would never ring.
  ignored := set_config('pgbus.ring', '', true);
  return null;
end
$$;

-- Decides the same if rings keep a distance, or if other transactions hold the bells.
create function pgbus._may_ring(pause bigint) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  now_ms bigint := date_part('epoch', clock_timestamp()) * 1000;
  holder record;
begin
  -- abs(), here and below: a clock that was set back must not stop the rings.
  if pause > 0 then
    if abs(now_ms - coalesce(pg_sequence_last_value('pgbus.last_ring'), 0)) < pause then
      return false;
    end if;
    if pg_try_advisory_xact_lock(1885823596, 0) then
      perform setval('pgbus.last_ring', now_ms);
      return true;
    end if;
  end if;
  -- Other transactions hold the bells. Mostly they are publishing; once a second a transaction looks, and rings
  -- anyway if they are not.
  if abs(now_ms - coalesce(pg_sequence_last_value('pgbus.last_look'), 0)) < 1000 then
    return false;
  end if;
  perform setval('pgbus.last_look', now_ms);
  select s.* into holder from pgbus.squatters() s where s.class = 1885823596 limit 1;
  if found then
    raise warning 'the doorbell is held by %, which does not publish (role %, application %): end it with %',
                  holder.holder, holder.role, to_json(holder.application), holder.remedy;
    return true;
  end if;
  return false;
end
$$;

-- Whether a notification can be sent: in a full queue it would make the commit fail. The question also removes what
-- every listener has read, which otherwise happens only when somebody writes to the queue.
create function pgbus._can_notify() returns boolean
language sql volatile
return pg_notification_queue_usage() < 0.5;

-- Notifies the workers that serve a stream. Every notification about a stream is sent here. The caller has asked
-- _can_notify.
create function pgbus._notify_stream(stream text, payload text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  channel text;
  ignored text;
begin
  select c.doorbell into channel from pgbus.channel_names c;
  ignored := pg_notify(channel || '_' || pgbus._bucket(stream), payload);
end
$$;

-- Notifies for a ring that does not carry its message: on the channel of each bucket, the streams that moved. If they
-- are too many to name, all workers are notified, on the control channel, that some streams moved.
create function pgbus._notify_moved(stream text, moved text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  names   text[];
  bucket  record;
  ignored text;
begin
  if right(moved, 1) <> '*' then
    names := string_to_array(rtrim(moved, chr(10)), chr(10));
    if stream <> all (names) then
      names := stream || names;
    end if;
    if cardinality(names) = 1 then
      ignored := pgbus._notify_stream(names[1], json_build_array('moved', names[1])::text);
      return;
    end if;
    for bucket in
      select min(n.name) as name, to_json(array_prepend('moved', array_agg(n.name)))::text as payload
      from unnest(names) as n (name)
      group by pgbus._bucket(n.name)
    loop
      if octet_length(bucket.payload) <= 7900 then
        ignored := pgbus._notify_stream(bucket.name, bucket.payload);
      else
        moved := '*';  -- quoting makes names longer that contain many quotes
      end if;
    end loop;
  end if;
  if right(moved, 1) = '*' then
    perform pg_notify(c.control, '["moved"]') from pgbus.channel_names c;
  end if;
end
$$;

-- The condition is evaluated at the insert, so a transaction of any size queues one trigger, not one for each row.
create constraint trigger ring
  after insert on pgbus.messages
  deferrable initially deferred
  for each row
  when (new.msg_id::text = current_setting('pgbus.ring', true))
  execute function pgbus._ring();

-- It also fires if session_replication_role is replica, in which ordinary triggers do not.
alter table pgbus.messages enable always trigger ring;


-- on commit ---------------------------------------------------------------------------------------------------

-- Only the order within one transaction counts, so each session may take a hundred positions at a time.
create sequence pgbus.outbox_positions as bigint cache 100;

-- A row lives from its broadcast_on_commit until the commit of the same transaction. No other transaction ever sees
-- one, so nothing has to be recovered after a crash. One row of a transaction leads: its trigger appends them all.
create unlogged table pgbus.outbox (
  xid         xid8 not null default pg_current_xact_id(),
  position    bigint not null default nextval('pgbus.outbox_positions'),
  leads       boolean not null,
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
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  ignored text;
begin
  if pgbus._good_message(stream, data, event, visible_to, exclude, key) is not true then
    perform pgbus._refuse(stream, data, event, visible_to, exclude, key);
  end if;
  ignored := set_config('pgbus.flush', 'yes', true);
  insert into pgbus.outbox (leads, stream, data, event, visible_to, exclude, key)
  values (not exists (select from pgbus.outbox o where o.xid = pg_current_xact_id()),
          stream, data, event, visible_to, exclude, key);
end
$$;

comment on function pgbus.broadcast_on_commit(text, text, text, text, text, text) is
'Queues one message, and appends it when the caller''s transaction commits, so that a long transaction blocks no other
publisher. Returns nothing, because the id is given at the commit. The arguments are those of broadcast.
Errors: 22023 for a bad argument; at the commit, those of broadcast.';

create function pgbus.broadcast_on_commit(stream text, data json, event text default null, visible_to text default null,
                                          exclude text default null, key text default null) returns void
language sql volatile
return pgbus.broadcast_on_commit(stream, data::text, event, visible_to, exclude, key);

comment on function pgbus.broadcast_on_commit(text, json, text, text, text, text) is
'Does the same as broadcast_on_commit with text, for data of type json, which is stored as its text, unchanged.';

create function pgbus.broadcast_on_commit(stream text, data jsonb, event text default null, visible_to text default null,
                                          exclude text default null, key text default null) returns void
language sql volatile
return pgbus.broadcast_on_commit(stream, data::text, event, visible_to, exclude, key);

comment on function pgbus.broadcast_on_commit(text, jsonb, text, text, text, text) is
'Does the same as broadcast_on_commit with text, for data of type jsonb, which is stored as the text that data::text
gives.';

-- Queues several messages, in the order of the arrays; for pgbus._watch.
create function pgbus._queue_many(streams text[], data text[]) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  ignored text;
begin
  if exists (select from unnest(streams, data) as u(stream, data)
             where pgbus._good_message(u.stream, u.data, null, null, null, null) is not true) then
    raise exception 'bad stream name, or data that is null' using errcode = 'invalid_parameter_value';
  end if;
  ignored := set_config('pgbus.flush', 'yes', true);
  insert into pgbus.outbox (leads, stream, data)
  select u.n = 1 and not exists (select from pgbus.outbox o where o.xid = pg_current_xact_id()), u.stream, u.data
  from unnest(streams, data) with ordinality as u(stream, data, n)
  order by u.n;
end
$$;

-- Appends what this transaction has queued. Streams are locked in the order of their locks, so that two transactions
-- that append to the same streams in opposite order cannot deadlock.
create function pgbus._flush() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  ignored text;
  size    integer;
  one     pgbus.outbox;
  batch   record;
begin
  ignored := set_config('pgbus.flush', '', true);
  size := (select count(*) from (select from pgbus.outbox o where o.xid = pg_current_xact_id() limit 2) n);
  if size = 0 then
    return;
  end if;
  -- Usually there is one message, and then nothing else is needed.
  if size = 1 then
    delete from pgbus.outbox o where o.xid = pg_current_xact_id() returning * into one;
    perform pgbus.broadcast(one.stream, one.data, one.event, one.visible_to, one.exclude, one.key);
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
    order by pgbus._lock_number(mine.stream), mine.stream
  loop
    if batch.singly then
      for n in 1 .. cardinality(batch.data) loop
        perform pgbus.broadcast(batch.stream, batch.data[n], batch.event[n], batch.visible_to[n], batch.exclude[n],
                                batch.key[n]);
      end loop;
    else
      perform pgbus._append(batch.stream, batch.data, batch.event, batch.visible_to, batch.exclude);
    end if;
  end loop;
end
$$;

create function pgbus._flush_outbox() returns trigger
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  -- The outbox may be empty already, because the trigger `ring` empties it first.
  perform pgbus._flush();
  return null;
end
$$;

create constraint trigger flush
  after insert on pgbus.outbox
  deferrable initially deferred
  for each row
  when (new.leads)
  execute function pgbus._flush_outbox();

-- As the trigger `ring`: otherwise messages that are queued under session_replication_role = replica would never be
-- appended.
alter table pgbus.outbox enable always trigger flush;


-- ephemeral messages ------------------------------------------------------------------------------------------

create sequence pgbus.ephemeral_ids as bigint;

-- Ephemeral messages that are too large for a notification, for the seconds until the workers have fetched them.
create unlogged table pgbus.ephemerals (
  id          bigint primary key,
  created_at  timestamptz not null default clock_timestamp(),
  stream      text collate "C" not null,
  event       text,
  data        text not null,
  visible_to  text,
  exclude     text
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- The number in each payload distinguishes equal messages of one transaction: PostgreSQL would merge equal
-- notifications.
create function pgbus.broadcast_ephemeral(stream text, data text, event text default null,
                                          visible_to text default null, exclude text default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  number  bigint := nextval('pgbus.ephemeral_ids');
  payload text;
  told    bigint;
  ignored text;
begin
  if pgbus._good_message(stream, data, event, visible_to, exclude, null) is not true then
    perform pgbus._refuse(stream, data, event, visible_to, exclude);
  end if;
  event := nullif(event collate "C", '');
  if octet_length(data) < 7800 then
    payload := json_build_array('ephemeral', stream, number, event, data, visible_to, exclude);
  end if;
  if payload is null or octet_length(payload) > 7900 then
    -- Not in a transaction with one snapshot: it would fail on a row that another transaction has removed meanwhile.
    if current_setting('transaction_isolation') = 'read committed' then
      delete from pgbus.ephemerals e
      where e.id in (
        select o.id from pgbus.ephemerals o
        where o.id in (select p.id from pgbus.ephemerals p order by p.id limit 100)
              and o.created_at < clock_timestamp() - interval '1 minute'
        for update skip locked);
    end if;
    loop
      insert into pgbus.ephemerals (id, stream, event, data, visible_to, exclude)
      values (number, stream, event, data, visible_to, exclude)
      -- The number is taken only if somebody has set the sequence back.
      on conflict do nothing;
      exit when found;
      number := nextval('pgbus.ephemeral_ids');
    end loop;
    payload := json_build_array('large', stream, number);
  end if;
  -- The fill level of the queue does not include this transaction. So one transaction may fill at most a quarter of
  -- the queue. Bytes count twice, because a notification that does not fit on the rest of a page begins the next
  -- page.
  told := 2 * octet_length(payload) + case
    when current_setting('pgbus.told', true) ~ '^[0-9]{1,15}$' then current_setting('pgbus.told')::bigint else 0 end;
  if told < coalesce(nullif(current_setting('max_notify_queue_pages', true), '')::bigint, 1048576) * 2048
     and pgbus._can_notify() then
    ignored := set_config('pgbus.told', told::text, true);
    ignored := pgbus._notify_stream(stream, payload);
  end if;
end
$$;

comment on function pgbus.broadcast_ephemeral(text, text, text, text, text) is
'Sends one message, of any size, to the clients that are connected when the caller''s transaction commits. Nothing
about it is stored, and it has no id. It is dropped if the server''s notification queue is half full. event,
visible_to and exclude are as in broadcast.
Errors: 22023 for a bad argument.';

create function pgbus.broadcast_ephemeral(stream text, data json, event text default null, visible_to text default null,
                                          exclude text default null) returns void
language sql volatile
return pgbus.broadcast_ephemeral(stream, data::text, event, visible_to, exclude);

comment on function pgbus.broadcast_ephemeral(text, json, text, text, text) is
'Does the same as broadcast_ephemeral with text, for data of type json, which is sent as its text, unchanged.';

create function pgbus.broadcast_ephemeral(stream text, data jsonb, event text default null, visible_to text default null,
                                          exclude text default null) returns void
language sql volatile
return pgbus.broadcast_ephemeral(stream, data::text, event, visible_to, exclude);

comment on function pgbus.broadcast_ephemeral(text, jsonb, text, text, text) is
'Does the same as broadcast_ephemeral with text, for data of type jsonb, which is sent as the text that data::text
gives.';
