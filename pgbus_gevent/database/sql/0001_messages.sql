-- The log of messages, how a message is appended, and how workers are woken.
--
-- Lock classes (the first of the two integers of an advisory lock):
--   1885823603  'pgbs'  the appends to a stream; the second integer is one of 2048 numbers, by the stream's hash
--   1885823596  'pgbl'  the doorbell: who holds it rings for its transaction
--
-- Three settings live for one transaction (set_config(..., true), so that a savepoint's rollback takes them back together with the
-- rows that they speak of). pgbus.ring says what to ring at commit: '' for nothing, else the msg_id of the row whose trigger rings.
-- pgbus.moved is '' where that is the only row, else the names of the streams that moved, with a line break after each, or '*'
-- where they are too many to name. pgbus.flush is 'yes' where something is queued for the commit. Any role can set them in its own
-- session: nothing depends on them but when and what that session rings.
--
-- Who publishes or reads needs no right on a table, only EXECUTE: these functions have their owner's rights. So each of them names
-- its search_path, or has a body that was bound when it was made (RETURN): a name in it must not mean what a caller has made of
-- it. 0007_rights.sql says who may call what.
--
-- What publishers do thousands of times a second is written as assignments and conditions of PL/pgSQL where it can be,
-- as these do without the executor that PERFORM and SELECT start. Each of their expressions is made ready anew in every transaction,
-- so there are few of them, and they are short. A row is read by SELECT INTO: an assignment would put a second plan around it.


-- messages ----------------------------------------------------------------------------------------------------

-- Ids are never used twice, not even by a schema that was dropped and made again, as they start at the clock. See pgbus.jump.
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

-- What is new anywhere lies at this index's end: a worker finds it in one short read, however many streams it serves. On an
-- expression, so that only who asks by it gets it: on msg_id alone the planner would take it for `order by msg_id` of one stream
-- too, and read the whole table where that has no messages.
create index messages_by_id on pgbus.messages ((msg_id + 0));

-- The highest id that pruning removed from a stream: a cursor below it has missed something.
create table pgbus.horizons (
  stream  text collate "C" primary key,
  msg_id  bigint not null
);

-- The highest horizon that was forgotten: where a stream begins anew, who comes with a cursor up to it may have seen what was pruned,
-- and not what was lost. A sequence, as it never goes back.
create sequence pgbus.forgotten as bigint minvalue 0 start with 0;

-- Ids jump (see pgbus.jump) where commits may have been lost since the last one was given. What tells that is not in rows, so that it
-- is there for everybody at once, before a commit and after a rollback:
-- - the epoch's number (see pgbus.epoch_number) in the sequence `jumped`, which is unlogged: a crash and a promotion reset it;
-- - the sequence `floor`, above which all ids of this epoch are;
-- - for PostgreSQL 14, which has no unlogged sequences, a page in the file of the table `epoch`.
create unlogged table pgbus.epoch () with (vacuum_truncate = off);
create sequence pgbus.jumped as bigint minvalue -9223372036854775808 start with 0;
create sequence pgbus.floor as bigint;

do $$
begin
  if current_setting('server_version_num')::integer >= 150000 then
    alter sequence pgbus.jumped set unlogged;
  end if;
end
$$;

-- What is locked while ids jump.
create table pgbus.jumping ();


-- arguments ---------------------------------------------------------------------------------------------------

-- An argument comes with its caller's collation, which may not do for a regular expression, or clash with a column's:
-- so every comparison names "C". These are inlined where they are called, so that good arguments cost next to nothing.
create function pgbus.good_stream(stream text) returns boolean
language sql immutable parallel safe
return octet_length(stream) between 1 and 255 and stream collate "C" !~ '[\u0001-\u001f\u007f-\u009f]';

create function pgbus.good_event(event text) returns boolean
language sql immutable parallel safe
return event is null or event collate "C" !~ '^pgbus:|[\r\n]';

-- An index entry has to hold it together with a stream's name.
create function pgbus.good_key(key text) returns boolean
language sql immutable parallel safe
return key is null or octet_length(key) between 1 and 1000;

-- An empty one comes of a name that was not found, and would let everybody see a message, or nobody.
create function pgbus.good_label(label text) returns boolean
language sql immutable parallel safe
return label is null or octet_length(label) > 0;

create function pgbus.good_message(stream text, data text, event text, visible_to text, exclude text, key text) returns boolean
language sql immutable parallel safe
return pgbus.good_stream(stream) and data is not null and pgbus.good_event(event) and pgbus.good_label(visible_to)
       and pgbus.good_label(exclude) and pgbus.good_key(key);

create function pgbus.refuse(stream text, data text default '', event text default null, visible_to text default null,
                             exclude text default null, key text default null) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
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
      when not (pgbus.good_label(visible_to) and pgbus.good_label(exclude)) then
        format('bad %s: it is empty; give a text, or null', case when octet_length(visible_to) = 0 then 'visible_to' else 'exclude' end)
      else
        format('bad key of %s bytes: it must be 1 to 1000 bytes of UTF-8', octet_length(key))
    end;
end
$$;


-- reading -----------------------------------------------------------------------------------------------------

create function pgbus.horizon(stream text) returns bigint
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp as $$
begin
  return coalesce((select h.msg_id from pgbus.horizons h where h.stream = horizon.stream collate "C"), 0);
end
$$;

-- The stream's last id. It is looked for above the horizon: below may be any number of rows that no vacuum has taken away yet. In
-- PL/pgSQL, which keeps the plan; PostgreSQL before 18 would plan an SQL function's statement at each call.
create function pgbus.head(stream text) returns bigint
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp as $$
begin
  return (
    select coalesce((select m.msg_id from pgbus.messages m
                     where m.stream = head.stream collate "C" and m.msg_id > h.msg_id
                     order by m.msg_id desc limit 1), h.msg_id)
    from (select coalesce((select z.msg_id from pgbus.horizons z where z.stream = head.stream collate "C"), 0) as msg_id
          offset 0) h);
end
$$;

create function pgbus.last_id(stream text) returns bigint
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp as $$
begin
  if pgbus.good_stream(stream) is not true then
    perform pgbus.refuse(stream);
  end if;
  return pgbus.head(stream);
end
$$;

create function pgbus.read_after(stream text, after bigint, max integer default 500)
returns table (msg_id bigint, created_at timestamptz, event text, data text, visible_to text, exclude text)
language plpgsql stable parallel safe rows 500 security definer set search_path = pg_catalog, pg_temp as $$
declare
  known bigint;
begin
  if pgbus.good_stream(stream) is not true then
    perform pgbus.refuse(stream);
  end if;
  if after is null or after < 0 then
    raise exception 'bad cursor %: "after" is the last id that was seen, or 0', coalesce(after::text, 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  if max is null or max < 1 then
    raise exception 'bad limit %: "max" is at least 1', coalesce(max::text, 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  -- Below it may be any number of rows that no vacuum has taken away yet.
  known := pgbus.horizon(stream);
  return query
    select m.msg_id, m.created_at, m.event, m.data, m.visible_to, m.exclude
    from pgbus.messages m
    where m.stream = read_after.stream collate "C" and m.msg_id > greatest(after, known)
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
declare
  cluster text;
begin
  begin
    cluster := (select s.system_identifier from pg_control_system() s);
  exception when insufficient_privilege then
    cluster := 'unknown';  -- some hosts keep that function from everybody
  end;
  return cluster || '/' || (select d.oid from pg_database d where d.datname = current_database());
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
  perform pg_notify(former, '["control"]') where former is not null and pg_notification_queue_usage() < 0.5;
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


-- the doorbell ------------------------------------------------------------------------------------------------

-- Notes that this transaction has appended to a stream; `id` is its first message there. The first append decides which
-- row rings, and as long as it is `alone`, that row rings with the message itself.
create function pgbus.touch(stream text, id bigint, alone boolean) returns void
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

-- What a ring says that does not carry its message: which streams moved, or only that some did.
create function pgbus.moved_payload(stream text, moved text) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  payload text;
  names   text[];
begin
  if right(moved, 1) <> '*' then
    names := string_to_array(rtrim(moved, chr(10)), chr(10));
    if stream <> all (names) then
      names := stream || names;
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

-- When somebody last rang, and the least distance of two rings: milliseconds, of Unix time the one. Sequences, as they are
-- written without a row version to clear away, and as nobody waits for who wrote before and is not committed yet. In a large fleet
-- rings have to keep a distance, as each wakes every worker: see 0006_workers.sql.
create sequence pgbus.last_ring as bigint minvalue 0 start with 0;
create sequence pgbus.ring_pause as bigint minvalue 0 start with 0;

-- When somebody last looked who has the bells.
create sequence pgbus.last_look as bigint minvalue 0 start with 0;

-- Whether a notification can be sent. In a full queue it would make the commit fail. To ask also clears what everybody has read,
-- which nobody else would do for a queue that nobody writes to any more.
create function pgbus.can_notify() returns boolean
language sql volatile
return pg_notification_queue_usage() < 0.5;

-- Rings at COMMIT, and only who gets a bell without waiting: NOTIFY holds a lock of the whole cluster over the commit's fsync, and
-- every publisher would queue behind it. Who goes without is found by the sweep that each worker makes after every ring.
create function pgbus.ring() returns trigger
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  pause   bigint;
  may     boolean;
  moved   text;
  payload text;
  channel text;
  ignored text;
begin
  -- First, as it waits for other streams' locks, and meanwhile nobody could ring.
  if current_setting('pgbus.flush', true) <> '' then
    perform pgbus.flush();
  end if;
  pause := coalesce(pg_sequence_last_value('pgbus.ring_pause'), 0);
  -- Two bells, so that a commit that takes long does not leave all the others without a ring. Not more: those who
  -- ring wait for one another's commits.
  may := pause = 0 and (pg_try_advisory_xact_lock(1885823596, 0) or pg_try_advisory_xact_lock(1885823596, 1));
  -- The first thing that may_ring asks, where there are many publishers, without a call.
  if not may and (pause > 0 or abs(date_part('epoch', clock_timestamp()) * 1000
                                   - coalesce(pg_sequence_last_value('pgbus.last_look'), 0)) >= 1000)
  then
    may := pgbus.may_ring(pause);
  end if;
  if may and pgbus.can_notify() then
    moved := coalesce(current_setting('pgbus.moved', true), '');
    if moved = '' and octet_length(new.data) < 7800 then
      payload := json_build_array('message', new.stream, new.msg_id, new.prev_id, date_part('epoch', new.created_at), new.event,
                                  new.data, new.visible_to, new.exclude);
    end if;
    if payload is null or octet_length(payload) > 7900 then
      payload := pgbus.moved_payload(new.stream, moved);
    end if;
    select c.doorbell into channel from pgbus.channel_names c;
    ignored := pg_notify(channel, payload);
  end if;
  -- Without this, what is appended after SET CONSTRAINTS ... IMMEDIATE would never ring.
  ignored := set_config('pgbus.ring', '', true);
  return null;
end
$$;

-- The same where rings keep a distance, or others have the bells.
create function pgbus.may_ring(pause bigint) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  now_ms bigint := date_part('epoch', clock_timestamp()) * 1000;
  holder record;
begin
  -- Here and below: a clock that was set back silences nobody.
  if pause > 0 then
    if abs(now_ms - coalesce(pg_sequence_last_value('pgbus.last_ring'), 0)) < pause then
      return false;
    end if;
    if pg_try_advisory_xact_lock(1885823596, 0) then
      perform setval('pgbus.last_ring', now_ms);
      return true;
    end if;
  end if;
  -- Others have the bells: mostly those who ring. Once a second somebody looks, and if they are not, rings all the same.
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

-- The condition is judged at the insert, so a transaction of any size queues one trigger, not one for each row.
create constraint trigger ring
  after insert on pgbus.messages
  deferrable initially deferred
  for each row
  when (new.msg_id::text = current_setting('pgbus.ring', true))
  execute function pgbus.ring();

-- Also where session_replication_role is replica, in which no ordinary trigger fires.
alter table pgbus.messages enable always trigger ring;


-- locks -------------------------------------------------------------------------------------------------------

-- Any role can take any advisory lock. These are the sessions that have one of ours, and no lock on a table of ours: they do not do
-- what such a lock is for. A prepared transaction has no process any more (pid is 0). `remedy` is the statement that ends it.
create function pgbus.squatters()
returns table (class integer, number integer, pid integer, role name, application text, state text, seconds float8, holder text,
               remedy text)
language plpgsql volatile rows 10 security definer set search_path = pg_catalog, pg_temp as $$
declare
  ours oid[] := array(select c.oid from pg_class c where c.relnamespace = 'pgbus'::regnamespace and c.relname <> 'migrations');
begin
  return query
    select l.classid::bigint::integer, l.objid::bigint::integer, coalesce(l.pid, 0), coalesce(a.usename, pg_get_userbyid(p.ownerid)),
           a.application_name, coalesce(a.state, case when l.pid is null then 'prepared' end),
           date_part('epoch', clock_timestamp() - coalesce(a.xact_start, p.prepared)),
           case when l.pid is null then 'the prepared transaction ' || to_json(p.gid) else 'process ' || l.pid end,
           case when l.pid is null then format('rollback prepared %L', p.gid) else format('select pg_terminate_backend(%s)', l.pid) end
    from pg_locks l left join pg_stat_activity a on a.pid = l.pid
    left join pg_locks t on l.pid is null and t.pid is null and t.virtualtransaction = l.virtualtransaction
                            and t.locktype = 'transactionid'
    left join pg_prepared_xact() p on p.transaction = t.transactionid
    where l.locktype = 'advisory' and l.objsubid = 2 and l.granted and l.pid is distinct from pg_backend_pid()
          and l.database = (select d.oid from pg_database d where d.datname = current_database())
          and l.classid in (1885823603, 1885823596, 1885823597, 1885823598, 1885823600)
          and not exists (
            select from pg_locks r
            where coalesce(r.pid::text, r.virtualtransaction) = coalesce(l.pid::text, l.virtualtransaction)
                  and r.locktype = 'relation' and r.granted and r.database = l.database
                  and r.relation = any (ours));
end
$$;

-- Takes a lock that another transaction has, to the end of this one, however long that goes on. But who has it without any use for
-- it is not waited for longer than five seconds.
create function pgbus.wait_for(class integer, number integer, what text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  setting text := current_setting('lock_timeout');
  own     interval := setting::interval;
  began   timestamptz := clock_timestamp();
  passed  interval;
  holder  record;
  ignored text;
begin
  loop
    begin
      passed := clock_timestamp() - began;
      ignored := set_config('lock_timeout', case
        when own > interval '0' and own - passed < interval '5 seconds'
          then greatest(1, ceil(extract(epoch from own - passed) * 1000))::text
        else '5000'
      end, true);
      perform pg_advisory_xact_lock(class, number);
      ignored := set_config('lock_timeout', setting, true);
      return;
    exception when lock_not_available then
      select s.* into holder from pgbus.squatters() s
      where s.class = wait_for.class and s.number = wait_for.number limit 1;
      if found then
        raise exception '% is locked by %, which does nothing with it (role %, application %)',
                        what, holder.holder, holder.role, to_json(holder.application)
          using errcode = 'lock_not_available', hint = format('End it with %s.', holder.remedy);
      elsif own > interval '0' and clock_timestamp() - began >= own then
        raise exception '% is locked by another transaction: canceled due to lock timeout', what
          using errcode = 'lock_not_available';
      end if;
    end;
  end loop;
end
$$;

-- appending ---------------------------------------------------------------------------------------------------

-- Streams share 2048 locks, so that a transaction that appends to very many of them does not fill the server's lock table.
create function pgbus.lock_number(stream text) returns integer
language sql immutable parallel safe
return hashtext(stream collate "C") & 2047;

-- The stream's lock is taken before the id is drawn and held to the commit: within a stream, commit order is id order.
create function pgbus.lock_stream(stream text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  if not pg_try_advisory_xact_lock(1885823603, pgbus.lock_number(stream)) then
    perform pgbus.wait_for(1885823603, pgbus.lock_number(stream), 'stream ' || to_json(stream));
  end if;
end
$$;

-- This run of the server on these files: one that was started since, with a copy of the files maybe, has another start, and what a dump
-- or a template made has the table in another file. So has a table that was truncated, as before its rows are restored.
create function pgbus.epoch_number() returns bigint
language sql volatile
return hashtextextended(pg_relation_filepath('pgbus.messages') collate "C",
                        hashfloat8(date_part('epoch', pg_postmaster_start_time())));

-- Whether an id is from this epoch, and so above all ids of former ones.
create function pgbus.good_id(id bigint) returns boolean
language sql volatile
return pg_sequence_last_value('pgbus.jumped') = pgbus.epoch_number() and pg_sequence_last_value('pgbus.floor') < id;

do $do$
begin
  if current_setting('server_version_num')::integer < 150000 then
    create or replace function pgbus.good_id(id bigint) returns boolean
    language sql volatile
    return pg_sequence_last_value('pgbus.jumped') = pgbus.epoch_number() and pg_sequence_last_value('pgbus.floor') < id
           and pg_relation_size('pgbus.epoch') > 0;
  end if;
end
$do$;

-- An id above all that anybody may have seen, for a stream that is locked and whose last id is `head`; asked for where the next one
-- from the sequence may not be. The sequence is then moved to the clock: ids always lag that, as far fewer than a million a second
-- are drawn. And a hundred thousand further at the least, in case the clock was set back.
create function pgbus.jump(stream text, head bigint) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  clock   bigint;
  last    bigint;
  highest bigint;
  id      bigint;
begin
  for tries in 1 .. 20 loop
    begin
      -- One at a time; not to the commit, as the block ends with a rollback, which takes back nothing but this lock and the row.
      lock table pgbus.jumping in exclusive mode;
      clock := date_part('epoch', clock_timestamp()) * 1000000;
      last := (select s.last_value from pgbus.message_ids s);
      highest := greatest(head, pg_sequence_last_value('pgbus.floor'));
      -- Ten years: nothing that we did. To move the sequence there would soon leave no ids for anybody.
      if highest > greatest(clock, last) + 315360000000000 then
        raise exception using
          errcode = 'object_not_in_prerequisite_state',
          message = format('stream %s has a message or a horizon with the id %s, which is far above any that was given: '
                           'nothing can be appended behind it', to_json(stream), head),
          hint = 'Somebody has written to pgbus.messages or pgbus.horizons by hand; delete that row.';
      end if;
      if last <= highest or pgbus.good_id(last) is not true then
        last := setval('pgbus.message_ids', greatest(clock, last + 100000, highest + 100000));
        perform setval('pgbus.floor', last), setval('pgbus.jumped', pgbus.epoch_number());
        insert into pgbus.epoch default values;
      end if;
      raise exception using errcode = 'PGBUS';
    exception when sqlstate 'PGBUS' then
      null;
    end;
    -- More than one where this session has ids in reserve, of a sequence with a cache.
    for draws in 1 .. 10000 loop
      id := nextval('pgbus.message_ids');
      if id > head and pgbus.good_id(id) then
        return id;
      end if;
    end loop;
  end loop;
  raise exception using
    errcode = 'object_not_in_prerequisite_state',
    message = format('the sequence pgbus.message_ids gives no id above %s, though it was moved there', head),
    hint = 'Somebody has changed it: alter sequence pgbus.message_ids increment by 1 cache 1 no cycle.';
end
$$;

create function pgbus.broadcast(stream text, data text, event text default null, visible_to text default null,
                                exclude text default null, key text default null) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  id      bigint;
  head    bigint;
  ignored text;
begin
  if pgbus.good_message(stream, data, event, visible_to, exclude, key) is not true then
    perform pgbus.refuse(stream, data, event, visible_to, exclude, key);
  end if;
  if key is not null or current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
    return pgbus.append_once(stream, array[data], array[event], array[visible_to], array[exclude], array[key]);
  end if;
  -- lock_stream, draw and head, written out.
  if not pg_try_advisory_xact_lock(1885823603, pgbus.lock_number(stream)) then
    perform pgbus.lock_stream(stream);
  end if;
  id := nextval('pgbus.message_ids');
  select m.msg_id into head from pgbus.messages m
  where m.stream = broadcast.stream collate "C" order by m.msg_id desc limit 1;
  if head is null then
    head := pgbus.head(stream);
  end if;
  if id <= head or pgbus.good_id(id) is not true then
    head := pgbus.head(stream);
    id := pgbus.jump(stream, head);
  end if;
  if current_setting('pgbus.ring', true) <> '' then
    perform pgbus.touch(stream, id, true);
  else
    ignored := set_config('pgbus.ring', id::text, true);
  end if;
  insert into pgbus.messages (stream, msg_id, prev_id, event, data, visible_to, exclude)
  values (stream, id, head, nullif(event collate "C", ''), data, visible_to, exclude);
  return id;
end
$$;

-- The arrays are of one length. Returns the last id, or null where there is nothing to append.
create function pgbus.append(stream text, data text[], event text[], visible_to text[], exclude text[])
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
    return pgbus.append_once(stream, data, event, visible_to, exclude, array_fill(null::text, array[size]));
  end if;
  perform pgbus.lock_stream(stream);
  select d.ids, d.head into ids, last from pgbus.draw(stream, size) d;
  perform pgbus.touch(stream, ids[1], size = 1);
  insert into pgbus.messages (stream, msg_id, prev_id, event, data, visible_to, exclude)
  select append.stream, u.id, case when u.n = 1 then last else ids[u.n - 1] end, nullif(u.event collate "C", ''),
         u.data, u.visible_to, u.exclude
  from unnest(ids, data, event, visible_to, exclude) with ordinality as u(id, data, event, visible_to, exclude, n);
  return ids[size];
end
$$;

-- So many ids for a stream that is locked, and its last one before them.
create function pgbus.draw(stream text, size integer, out ids bigint[], out head bigint)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  ids := array(select nextval('pgbus.message_ids') from generate_series(1, size));
  head := pgbus.head(stream);
  if ids[1] <= head or pgbus.good_id(ids[1]) is not true then
    ids := array[pgbus.jump(stream, head)];
    ids := ids || array(select nextval('pgbus.message_ids') from generate_series(2, size));
  end if;
end
$$;

-- Appends those whose key the stream does not have, the first where one comes twice, and those without a key. Returns the id of the last
-- of all messages, also where that was there before.
--
-- Also for a transaction with one snapshot for all its statements (REPEATABLE READ): it does not see what was committed since, and
-- would name an older id as the one before; a worker whose head happens to be that one would then skip what lies between. So it
-- says that it does not know, and the worker reads the table.
create function pgbus.append_once(stream text, data text[], event text[], visible_to text[], exclude text[], keys text[])
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
  -- Before the look for keys: nobody else can add one until this transaction has ended.
  perform pgbus.lock_stream(stream);
  fresh := array(
    select u.n
    from (
      select k.key, k.n::integer as n, row_number() over (partition by k.key collate "C" order by k.n) as nth
      from unnest(keys) with ordinality as k(key, n)
    ) u
    -- Not `not exists`, for which the planner may read all keys of the stream.
    where u.key is null or (u.nth = 1 and (
      select m.msg_id from pgbus.messages m
      where m.stream = append_once.stream collate "C" and m.key = u.key collate "C") is null)
    order by u.n);
  size := cardinality(fresh);
  if size > 0 then
    select d.ids, case when old then null else d.head end into ids, prev from pgbus.draw(stream, size) d;
    perform pgbus.touch(stream, ids[1], size = 1);
    insert into pgbus.messages (stream, msg_id, prev_id, event, data, visible_to, exclude, key)
    select append_once.stream, ids[u.n], case when u.n = 1 then prev else ids[u.n - 1] end,
           nullif(append_once.event[u.place] collate "C", ''), append_once.data[u.place], append_once.visible_to[u.place],
           append_once.exclude[u.place], keys[u.place]
    from unnest(fresh) with ordinality as u(place, n)
    -- Only for a transaction with one snapshot, which could not see the other one: a serialization failure (40001), which
    -- such transactions retry, and not a unique violation.
    on conflict do nothing;
    get diagnostics found = row_count;
    if found < size then
      raise exception 'stream % was written to by hand meanwhile: try again', to_json(stream)
        using errcode = 'serialization_failure';
    end if;
  end if;
  if fresh[size] = cardinality(data) then
    return ids[size];
  end if;
  select m.msg_id into last from pgbus.messages m
  where m.stream = append_once.stream collate "C" and m.key = keys[cardinality(keys)] collate "C";
  return last;
end
$$;

create function pgbus.broadcast_many(stream text, data text[], event text default null, visible_to text default null,
                                     exclude text default null, keys text[] default null) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  size integer := cardinality(data);
  bad  text;
begin
  if pgbus.good_message(stream, '', event, visible_to, exclude, null) is not true then
    perform pgbus.refuse(stream, '', event, visible_to, exclude);
  end if;
  if data is null or array_ndims(data) > 1 or array_position(data, null) is not null then
    raise exception 'bad data: it must be an array of one dimension without nulls'
      using errcode = 'invalid_parameter_value';
  end if;
  if keys is not null then
    if array_ndims(keys) > 1 or cardinality(keys) <> size then
      raise exception 'bad keys: there must be one for each of the % messages, null for one without, in one dimension', size
        using errcode = 'invalid_parameter_value';
    end if;
    select k into bad from unnest(keys) k where pgbus.good_key(k) is not true limit 1;
    if found then
      perform pgbus.refuse(stream, key => bad);
    end if;
  end if;
  if size = 0 then
    return null;
  end if;
  -- Unnested, for an array may be numbered from something else than 1.
  if keys is null then
    return pgbus.append(stream, array(select unnest(data)), array_fill(event, array[size]),
                        array_fill(visible_to, array[size]), array_fill(exclude, array[size]));
  end if;
  return pgbus.append_once(stream, array(select unnest(data)), array_fill(event, array[size]),
                           array_fill(visible_to, array[size]), array_fill(exclude, array[size]),
                           array(select unnest(keys)));
end
$$;


-- on commit ---------------------------------------------------------------------------------------------------

-- Only their order within one transaction counts, so each session may take a hundred at a time.
create sequence pgbus.outbox_positions as bigint cache 100;

-- A row lives from its broadcast_on_commit to the commit of the same transaction; nobody else ever sees one, so there
-- is nothing to recover after a crash. One row of a transaction leads: its trigger flushes them all.
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
  if pgbus.good_message(stream, data, event, visible_to, exclude, key) is not true then
    perform pgbus.refuse(stream, data, event, visible_to, exclude, key);
  end if;
  ignored := set_config('pgbus.flush', 'yes', true);
  insert into pgbus.outbox (leads, stream, data, event, visible_to, exclude, key)
  values (not exists (select from pgbus.outbox o where o.xid = pg_current_xact_id()),
          stream, data, event, visible_to, exclude, key);
end
$$;

-- The same for several, in the order of the arrays; for pgbus.watch.
create function pgbus.queue_many(streams text[], data text[]) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  ignored text;
begin
  if exists (select from unnest(streams, data) as u(stream, data)
             where pgbus.good_message(u.stream, u.data, null, null, null, null) is not true) then
    raise exception 'bad stream name, or data that is null' using errcode = 'invalid_parameter_value';
  end if;
  ignored := set_config('pgbus.flush', 'yes', true);
  insert into pgbus.outbox (leads, stream, data)
  select u.n = 1 and not exists (select from pgbus.outbox o where o.xid = pg_current_xact_id()), u.stream, u.data
  from unnest(streams, data) with ordinality as u(stream, data, n)
  order by u.n;
end
$$;

-- Streams are locked in the order of their locks, so that two transactions that touch the same streams in opposite
-- order cannot deadlock.
create function pgbus.flush() returns void
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
  -- Usually there is one, which needs none of what follows.
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
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
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
  when (new.leads)
  execute function pgbus.flush_outbox();

-- As the trigger ring: else what is queued under session_replication_role = replica would never be told.
alter table pgbus.outbox enable always trigger flush;


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
  told    bigint;
  channel text;
  ignored text;
begin
  if pgbus.good_message(stream, data, event, visible_to, exclude, null) is not true then
    perform pgbus.refuse(stream, data, event, visible_to, exclude);
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
    loop
      insert into pgbus.ephemerals (id, stream, event, data, visible_to, exclude)
      values (number, stream, event, data, visible_to, exclude)
      -- For a sequence that somebody has set back.
      on conflict do nothing;
      exit when found;
      number := nextval('pgbus.ephemeral_ids');
    end loop;
    payload := json_build_array('large', stream, number);
  end if;
  -- How full the queue is shows what others have committed. So one transaction puts in no more than a quarter of it: twice the bytes are
  -- counted, as a notification that does not fit on the rest of a page begins the next one.
  told := 2 * octet_length(payload) + case
    when current_setting('pgbus.told', true) ~ '^[0-9]{1,15}$' then current_setting('pgbus.told')::bigint else 0 end;
  if told < coalesce(nullif(current_setting('max_notify_queue_pages', true), '')::bigint, 1048576) * 2048 and pgbus.can_notify() then
    ignored := set_config('pgbus.told', told::text, true);
    channel := (select c.doorbell from pgbus.channel_names c);
    ignored := pg_notify(channel, payload);
  end if;
end
$$;
