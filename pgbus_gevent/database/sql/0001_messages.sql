-- Messages: the tables, the arguments that every function takes, reading, ids, the locks that keep the order, and the
-- channels.
--
-- Names. A function whose name begins with an underscore is internal: it may change in any release, and no role but
-- those of 0007_rights.sql may call it. Every other function is for applications and operators, and its COMMENT says
-- what it does.
--
-- Rights. Publishing and reading need no right on a table, only EXECUTE, because these functions run with the rights
-- of the schema's owner. Therefore each function fixes its search_path, or has a body that was bound when it was
-- created (RETURN): otherwise a caller could create objects that its names then mean.
--
-- Advisory locks. The first of the two integers is the class:
--   1885823603  'pgbs'  appending to a stream; the second integer is _lock_number(stream)
--   1885823596  'pgbl'  the two bells of the doorbell, 0 and 1: see 0002_publishing.sql
--   1885823600  'pgbp'  changing the presence at a stream; the second integer is _lock_number(stream)
--   1885823598  'pgbn'  removing messages: one transaction of the database at a time
--   1885823597  'pgbm'  migrating
--   1885823588  'pgbd'  becoming the steward, whose duties are in 0006_fleet.sql
--
-- Speed. Publishers call some of these functions thousands of times a second. Their bodies are assignments and
-- conditions of PL/pgSQL where possible, which do without the executor that PERFORM and SELECT start. PL/pgSQL
-- prepares each expression anew in every transaction, so there are few of them, and they are short. A row is read by
-- SELECT INTO, because an assignment would put a second plan around it.


-- tables ------------------------------------------------------------------------------------------------------

-- The sequence starts at the clock, in microseconds, so that no id is used again when the schema is dropped and
-- created again. See pgbus._jump.
do $$
begin
  execute format('create sequence pgbus.message_ids as bigint start with %s maxvalue 9007199254740991',
                 (extract(epoch from clock_timestamp()) * 1000000)::bigint);
end
$$;

-- Collation "C": names are compared by their bytes, whatever collation the database has.
--
-- Autovacuum: rows come and go at the same rate. With the defaults, a fifth of the table would be dead before a
-- vacuum came; and each vacuum reads all indexes, so it must not come for every few rows either.
create table pgbus.messages (
  stream      text collate "C" not null,
  msg_id      bigint           not null,
  prev_id     bigint,          -- the stream's id before this one; null if the transaction could not know it
  created_at  timestamptz      not null default clock_timestamp(),
  event       text,
  data        text             not null,
  visible_to  text,
  exclude     text,
  key         text collate "C",
  primary key (stream, msg_id)
) with (
  autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_analyze_scale_factor = 0.1,
  autovacuum_vacuum_cost_delay = 1);

create unique index messages_key on pgbus.messages (stream, key) where key is not null;

-- The newest messages of all streams are at the end of this index, so a worker finds them in one short read, however
-- many streams it serves. The index is on an expression so that only queries with this expression use it. If it were
-- on msg_id, the planner would also choose it for the newest message of one stream, and read the whole table if that
-- stream has none.
create index messages_by_id on pgbus.messages ((msg_id + 0));

-- The highest id that pruning has removed from a stream, and when. A cursor below it has missed something.
--
-- The row of each pruned stream changes in every round. With free space on its page, and no index on the columns that
-- change, no index has to be updated.
create table pgbus.horizons (
  stream     text collate "C" primary key,
  msg_id     bigint not null,
  pruned_at  timestamptz not null default now()
) with (
  fillfactor = 50,
  autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

-- The highest horizon that was forgotten. After that a stream begins anew, and a client with a cursor up to this id
-- may have seen messages that were pruned, which are not lost ones. A sequence, because a rollback does not take it
-- back.
create sequence pgbus.forgotten as bigint minvalue 0 start with 0;


-- arguments ---------------------------------------------------------------------------------------------------

-- An argument has its caller's collation, which may not work for a regular expression, or may conflict with a
-- column's. So every comparison names "C". PostgreSQL inlines these functions, so that checking good arguments costs
-- next to nothing.
create function pgbus._good_stream(stream text) returns boolean
language sql immutable parallel safe
return octet_length(stream) between 1 and 255 and stream collate "C" !~ '[\u0001-\u001f\u007f-\u009f]';

create function pgbus._good_event(event text) returns boolean
language sql immutable parallel safe
return event is null or event collate "C" !~ '^pgbus:|[\r\n]';

-- A key must fit into an index entry together with the name of its stream.
create function pgbus._good_key(key text) returns boolean
language sql immutable parallel safe
return key is null or octet_length(key) between 1 and 1000;

-- An empty label is the result of a name that was not found. It would show a message to everybody, or to nobody.
create function pgbus._good_label(label text) returns boolean
language sql immutable parallel safe
return label is null or octet_length(label) > 0;

create function pgbus._good_message(stream text, data text, event text, visible_to text, exclude text, key text) returns boolean
language sql immutable parallel safe
return pgbus._good_stream(stream) and data is not null and pgbus._good_event(event) and pgbus._good_label(visible_to)
       and pgbus._good_label(exclude) and pgbus._good_key(key);

-- Raises the error that names the bad argument.
create function pgbus._refuse(stream text, data text default '', event text default null, visible_to text default null,
                             exclude text default null, key text default null) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  raise exception using
    errcode = 'invalid_parameter_value',
    message = case
      when pgbus._good_stream(stream) is not true then
        format('bad stream name %s: it must be 1 to 255 bytes of UTF-8 without control characters',
               left(coalesce(to_json(stream)::text, 'null'), 80))
      when data is null then
        'data is null: broadcast an empty text instead'
      when not pgbus._good_event(event) then
        format('bad event name %s: it must not contain a line break or start with "pgbus:"',
               left(to_json(event)::text, 80))
      when not (pgbus._good_label(visible_to) and pgbus._good_label(exclude)) then
        format('bad %s: it is empty; give a text, or null',
               case when octet_length(visible_to) = 0 then 'visible_to' else 'exclude' end)
      else
        format('bad key of %s bytes: it must be 1 to 1000 bytes of UTF-8', octet_length(key))
    end;
end
$$;


-- reading -----------------------------------------------------------------------------------------------------

create function pgbus.last_id(stream text) returns bigint
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp as $$
begin
  if pgbus._good_stream(stream) is not true then
    perform pgbus._refuse(stream);
  end if;
  return pgbus._head(stream);
end
$$;

comment on function pgbus.last_id(text) is
'Returns the watermark of a stream: the id of its newest message in the snapshot of the statement, or 0 if it never had
one. A page that is rendered in this snapshot, and connects with since=<watermark>, misses nothing and repeats
nothing.
Errors: 22023 for a bad name.';

create function pgbus.read_after(stream text, after bigint, max integer default 500)
returns table (msg_id bigint, created_at timestamptz, event text, data text, visible_to text, exclude text)
language plpgsql stable parallel safe rows 500 security definer set search_path = pg_catalog, pg_temp as $$
declare
  known bigint;
begin
  if pgbus._good_stream(stream) is not true then
    perform pgbus._refuse(stream);
  end if;
  if after is null or after < 0 then
    raise exception 'bad cursor %: "after" is the last id that was seen, or 0', coalesce(after::text, 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  if max is null or max < 1 then
    raise exception 'bad limit %: "max" is at least 1', coalesce(max::text, 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  -- Below it there may be any number of dead rows that no vacuum has removed yet.
  known := pgbus._horizon(stream);
  return query
    select m.msg_id, m.created_at, m.event, m.data, m.visible_to, m.exclude
    from pgbus.messages m
    where m.stream = read_after.stream collate "C" and m.msg_id > greatest(after, known)
    order by m.msg_id
    -- A subselect hides the limit from the planner. If the planner expected fewer rows, it would read and sort the
    -- whole stream.
    limit (select max);
end
$$;

comment on function pgbus.read_after(text, bigint, integer) is
'Returns the messages of a stream above the id "after" (0: from the beginning), in order, at most "max" rows.
Errors: 22023 for a bad name, an id that is null or negative, or a limit below 1.';

-- The id of the stream's newest message. The search begins above the horizon: below it there may be any number of
-- dead rows that no vacuum has removed yet. In PL/pgSQL, which keeps the plan; before PostgreSQL 18 an SQL function
-- plans its statement at each call.
create function pgbus._head(stream text) returns bigint
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp as $$
begin
  return (
    select coalesce((select m.msg_id from pgbus.messages m
                     where m.stream = _head.stream collate "C" and m.msg_id > h.msg_id
                     order by m.msg_id desc limit 1), h.msg_id)
    from (select coalesce((select z.msg_id from pgbus.horizons z where z.stream = _head.stream collate "C"), 0) as msg_id
          offset 0) h);
end
$$;

create function pgbus._horizon(stream text) returns bigint
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp as $$
begin
  return coalesce((select h.msg_id from pgbus.horizons h where h.stream = _horizon.stream collate "C"), 0);
end
$$;


-- ids ---------------------------------------------------------------------------------------------------------

-- Ids jump to the clock if commits may have been lost since the last id was given. The facts that show this are not
-- in rows, because every transaction must see them at once, before a commit and after a rollback:
-- - the sequence `jumped` holds the number of the epoch (see pgbus._epoch_number); it is unlogged, so a crash or a
--   promotion resets it;
-- - the sequence `floor` is below all ids of this epoch;
-- - the sequence `highest` has the highest id that was given. It shows that the sequence of the ids was set back, also
--   to a transaction in REPEATABLE READ, which does not see the newest rows;
-- - PostgreSQL 14 has no unlogged sequences; there a page in the file of the table `epoch` shows the same.
create unlogged table pgbus.epoch () with (vacuum_truncate = off);
create sequence pgbus.jumped as bigint minvalue -9223372036854775808 start with 0;
create sequence pgbus.floor as bigint;
create sequence pgbus.highest as bigint;

do $$
begin
  if current_setting('server_version_num')::integer >= 150000 then
    alter sequence pgbus.jumped set unlogged;
    -- Each append sets it. A crash resets it, but then the next append jumps anyway.
    alter sequence pgbus.highest set unlogged;
  end if;
end
$$;

-- A transaction locks this table while it moves the sequence of the ids.
create table pgbus.jumping ();

-- One run of this server on these files. A server that was started later, perhaps on a copy of the files, has another
-- start time. A dump or a template puts the table into another file, and so does TRUNCATE, which may precede a
-- restore of the rows.
create function pgbus._epoch_number() returns bigint
language sql volatile
return hashtextextended(pg_relation_filepath('pgbus.messages') collate "C",
                        hashfloat8(date_part('epoch', pg_postmaster_start_time())));

-- Whether an id belongs to this epoch, and so is above all ids of earlier ones.
do $do$
begin
  execute $sql$
    create function pgbus._good_id(id bigint) returns boolean
    language sql volatile
    return pg_sequence_last_value('pgbus.jumped') = pgbus._epoch_number() and pg_sequence_last_value('pgbus.floor') < id
  $sql$ || case when current_setting('server_version_num')::integer < 150000
                then $sql$ and pg_relation_size('pgbus.epoch') > 0 $sql$ else '' end;
end
$do$;

-- Returns an id above all ids that anybody may have seen. The stream is locked, and `head` is the last id there that
-- this transaction sees; callers ask for such an id if the next one of the sequence may not be above. The sequence is
-- moved to the clock: fewer than a million ids are drawn in a second, so the ids are always behind the clock. It is
-- moved by at least a hundred thousand, in case the clock was set back.
create function pgbus._jump(stream text, head bigint) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  clock   bigint;
  last    bigint;
  given   bigint;
  highest bigint;
  id      bigint;
begin
  for tries in 1 .. 20 loop
    begin
      -- One transaction at a time. The lock does not last until the commit: the block ends with a rollback, which
      -- takes back only this lock and the row.
      lock table pgbus.jumping in exclusive mode;
      clock := date_part('epoch', clock_timestamp()) * 1000000;
      last := (select s.last_value from pgbus.message_ids s);
      highest := greatest(head, pg_sequence_last_value('pgbus.floor'));
      -- Ten years ahead: pgbus did not write this id. Moving the sequence there would soon use up the ids of all
      -- streams.
      if highest > greatest(clock, last) + 315360000000000 then
        raise exception using
          errcode = 'object_not_in_prerequisite_state',
          message = format('stream %s has a message or a horizon with the id %s, which is far above all ids that were given, '
                           'so nothing can be appended after it', to_json(stream), head),
          hint = 'Somebody has written to pgbus.messages or pgbus.horizons by hand; delete that row.';
      end if;
      given := pg_sequence_last_value('pgbus.highest');
      if given > greatest(clock, last) + 315360000000000 then
        given := setval('pgbus.highest', last);  -- somebody had moved the sequence there, and took it back
      end if;
      if last <= highest or last < given or pgbus._good_id(last) is not true then
        last := setval('pgbus.message_ids', greatest(clock, last + 100000, highest + 100000, given + 100000));
        perform setval('pgbus.floor', last), setval('pgbus.highest', last),
                setval('pgbus.jumped', pgbus._epoch_number());
        insert into pgbus.epoch default values;
      end if;
      raise exception using errcode = 'PGBUS';
    exception when sqlstate 'PGBUS' then
      null;
    end;
    -- More than one draw is needed if the sequence has a cache and this session still has ids from it.
    for draws in 1 .. 10000 loop
      id := nextval('pgbus.message_ids');
      if id > greatest(head, given) and pgbus._good_id(id) then
        return id;
      end if;
    end loop;
  end loop;
  raise exception using
    errcode = 'object_not_in_prerequisite_state',
    message = format('the sequence pgbus.message_ids gives no id above %s, although it was moved there', head),
    hint = 'Somebody has changed it: alter sequence pgbus.message_ids increment by 1 cache 1 no cycle.';
end
$$;


-- order -------------------------------------------------------------------------------------------------------

-- Streams share 2048 locks, so that a transaction that appends to very many streams does not fill the server's lock
-- table.
create function pgbus._lock_number(stream text) returns integer
language sql immutable parallel safe
return hashtext(stream collate "C") & 2047;

-- Within a stream, the order of the ids is the order of the commits, because a transaction takes the stream's lock
-- before it draws an id, and holds it until it has committed.
create function pgbus._lock_stream(stream text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  if not pg_try_advisory_xact_lock(1885823603, pgbus._lock_number(stream)) then
    perform pgbus._wait_for(1885823603, pgbus._lock_number(stream), 'stream ' || to_json(stream));
  end if;
end
$$;

-- Waits for a lock that another transaction holds, and keeps it until this transaction ends. If the holder is at
-- work, the wait has no limit but lock_timeout. If the holder has no use for the lock (pgbus.squatters), the wait
-- ends after five seconds.
create function pgbus._wait_for(class integer, number integer, what text) returns void
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
      where s.class = _wait_for.class and s.number = _wait_for.number limit 1;
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

-- Any role can take any advisory lock. A session that publishes, prunes or migrates also has a lock on one of our
-- tables.
create function pgbus.squatters()
returns table (class integer, number integer, pid integer, role name, application text, state text, seconds float8, holder text,
               remedy text)
language plpgsql volatile rows 10 security definer set search_path = pg_catalog, pg_temp as $$
declare
  ours oid[] := array(select c.oid from pg_class c where c.relnamespace = 'pgbus'::regnamespace and c.relname <> 'migrations');
begin
  return query
    select l.classid::bigint::integer, l.objid::bigint::integer, coalesce(l.pid, 0),
           coalesce(a.usename, pg_get_userbyid(p.ownerid)), a.application_name, coalesce(a.state, case when l.pid is null then 'prepared' end),
           date_part('epoch', clock_timestamp() - coalesce(a.xact_start, p.prepared)),
           case when l.pid is null then 'the prepared transaction ' || to_json(p.gid) else 'process ' || l.pid end,
           case when l.pid is null then format('rollback prepared %L', p.gid)
                else format('select pg_terminate_backend(%s)', l.pid) end
    from pg_locks l left join pg_stat_activity a on a.pid = l.pid
    left join pg_locks t on l.pid is null and t.pid is null and t.virtualtransaction = l.virtualtransaction
                            and t.locktype = 'transactionid'
    left join pg_prepared_xact() p on p.transaction = t.transactionid
    where l.locktype = 'advisory' and l.objsubid = 2 and l.granted and l.pid is distinct from pg_backend_pid()
          and l.database = (select d.oid from pg_database d where d.datname = current_database())
          and l.classid in (1885823603, 1885823588, 1885823596, 1885823597, 1885823598, 1885823600)
          and not exists (
            select from pg_locks r
            where coalesce(r.pid::text, r.virtualtransaction) = coalesce(l.pid::text, l.virtualtransaction)
                  and r.locktype = 'relation' and r.granted and r.database = l.database
                  and r.relation = any (ours));
end
$$;

comment on function pgbus.squatters() is
'Lists the sessions that hold an advisory lock of pgbus and no lock on a table of pgbus, so that they do nothing that
such a lock is for. seconds: how long the transaction has been open. remedy: the statement that ends it. pid is 0 for
a prepared transaction, which has no process. A single look may list a session that is about to publish.';


-- channels ----------------------------------------------------------------------------------------------------

-- LISTEN and NOTIFY need no right. Any role that knows the name of a channel can hear what is sent there, and send.
-- So the names are secrets: only the owner reads this table, and workers call pgbus.channels(). `home` identifies the
-- database that the names were made for, so that a copy of it, by a dump or from a template, makes names of its own.
--
-- The doorbell has 64 channels, `<doorbell>_0` to `<doorbell>_63`, one for each bucket of streams. A worker listens only
-- on those of the streams that it serves, and on `control`, which every worker hears.
create table pgbus.channel_names (
  single    boolean primary key default true check (single),
  home      text not null,
  doorbell  text not null,
  control   text not null
);

create function pgbus.channels(out doorbell text, out control text)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  select c.doorbell, c.control into doorbell, control from pgbus.channel_names c where c.home = pgbus._home();
  if not found and current_setting('transaction_read_only') = 'off' then
    lock table pgbus.channel_names in share row exclusive mode;
    if not exists (select from pgbus.channel_names c where c.home = pgbus._home()) then
      perform pgbus.change_channels();
    end if;
  end if;
  if doorbell is null then
    select c.doorbell, c.control into doorbell, control from pgbus.channel_names c;
  end if;
end
$$;

comment on function pgbus.channels() is
'Returns the names of the channels that a worker listens on: doorbell, which with an underscore and the number of a
bucket names the channel for the messages of its streams, and control, for revocations and changed names. The names are
secrets. In a copy of the database the first call makes new ones, unless the transaction is read-only.';

-- The bucket of a stream, from 0 to 63: the first byte of the hash of its name, without the highest two bits.
-- pgbus_gevent/core/buckets.py computes the same. SHA-256, because a server in FIPS mode refuses MD5.
create function pgbus._bucket(stream text) returns integer
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
  return get_byte(sha256(convert_to(stream, 'UTF8')), 0) & 63;
end
$$;

create function pgbus.change_channels() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  former text;
begin
  lock table pgbus.channel_names in share row exclusive mode;
  former := (select c.control from pgbus.channel_names c);
  insert into pgbus.channel_names as c (home, doorbell, control)
  values (pgbus._home(), 'pgbus_' || replace(gen_random_uuid()::text, '-', ''),
          'pgbus_' || replace(gen_random_uuid()::text, '-', ''))
  on conflict (single) do update set home = excluded.home, doorbell = excluded.doorbell, control = excluded.control;
  perform pg_notify(former, '["control"]') where former is not null and pg_notification_queue_usage() < 0.5;
end
$$;

comment on function pgbus.change_channels() is
'Gives the channels new random names; for the owner, after the names have leaked. Workers are notified on the old
control channel, and also ask for the names every few seconds.';

-- Identifies this database of this cluster.
create function pgbus._home() returns text
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

select pgbus.change_channels();
