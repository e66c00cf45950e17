-- serves: 7
-- Traces: a message carries the trace of its publisher, so that its delivery can be shown in the same trace.
--
-- A fifth setting, pgbus.traceparent, is set by whoever publishes: a traceparent as in W3C Trace Context. A message has
-- it if it is well formed and its trace is sampled, which is the lowest bit of the last two digits. Anything else is
-- ignored, because a trace is no reason to refuse a message. Clients never see it.
--
-- Release 7 works on this schema. It takes a notification with a trace for one that it cannot read, so it looks into
-- the table for the message.

-- The defaults of the columns, so that every way of publishing has it, and a message without one costs a comparison. A
-- local setting that has ended is empty in its session from then on: as good as none, and not worth a search.
alter table pgbus.messages add column trace text collate "C";
alter table pgbus.messages alter column trace set default substring(
  nullif(current_setting('pgbus.traceparent', true), '') collate "C"
  from '^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][13579bdf]$');

comment on column pgbus.messages.trace is
'The traceparent of the publisher, from the setting pgbus.traceparent, if its trace is sampled; otherwise null.';

-- What is queued for the commit keeps the setting of the moment in which it was queued.
alter table pgbus.outbox add column trace text collate "C";
alter table pgbus.outbox alter column trace set default substring(
  nullif(current_setting('pgbus.traceparent', true), '') collate "C"
  from '^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][13579bdf]$');


-- As before, and with the trace if there is one.
create or replace function pgbus._ring() returns trigger
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
      if new.trace is null then
        payload := json_build_array('message', new.stream, new.msg_id, new.prev_id, date_part('epoch', new.created_at), new.event,
                                    new.data, new.visible_to, new.exclude);
      else
        payload := json_build_array('message', new.stream, new.msg_id, new.prev_id, date_part('epoch', new.created_at), new.event,
                                    new.data, new.visible_to, new.exclude, new.trace);
      end if;
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

-- As before, and each message gets the trace that it was queued with. Where there is none, nothing is set.
create or replace function pgbus._flush() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  ignored text;
  size    integer;
  one     pgbus.outbox;
  batch   record;
  setting text;
  mixed   boolean;
  traced  boolean := false;
begin
  ignored := set_config('pgbus.flush', '', true);
  size := (select count(*) from (select from pgbus.outbox o where o.xid = pg_current_xact_id() limit 2) n);
  if size = 0 then
    return;
  end if;
  -- Usually there is one message without a trace, and then nothing else is needed.
  if size = 1 then
    delete from pgbus.outbox o where o.xid = pg_current_xact_id() returning * into one;
    if one.trace is null and coalesce(current_setting('pgbus.traceparent', true), '') = '' then
      perform pgbus.broadcast(one.stream, one.data, one.event, one.visible_to, one.exclude, one.key);
      return;
    end if;
    setting := coalesce(current_setting('pgbus.traceparent', true), '');
    ignored := set_config('pgbus.traceparent', coalesce(one.trace, ''), true);
    perform pgbus.broadcast(one.stream, one.data, one.event, one.visible_to, one.exclude, one.key);
    ignored := set_config('pgbus.traceparent', setting, true);
    return;
  end if;
  setting := coalesce(current_setting('pgbus.traceparent', true), '');
  for batch in
    with mine as (delete from pgbus.outbox o where o.xid = pg_current_xact_id() returning o.*)
    select mine.stream,
           array_agg(mine.data order by position) as data,
           array_agg(mine.event order by position) as event,
           array_agg(mine.visible_to order by position) as visible_to,
           array_agg(mine.exclude order by position) as exclude,
           array_agg(mine.key order by position) as key,
           array_agg(mine.trace order by position) as trace,
           count(*) = 1 or bool_or(mine.key is not null) as singly
    from mine
    group by mine.stream
    order by pgbus._lock_number(mine.stream), mine.stream
  loop
    -- What is appended as a set has one trace, or none.
    mixed := array_remove(batch.trace, batch.trace[1]) <> '{}';
    traced := traced or setting <> '' or batch.trace[1] is not null or mixed;
    if batch.singly or mixed then
      for n in 1 .. cardinality(batch.data) loop
        if traced then
          ignored := set_config('pgbus.traceparent', coalesce(batch.trace[n], ''), true);
        end if;
        perform pgbus.broadcast(batch.stream, batch.data[n], batch.event[n], batch.visible_to[n], batch.exclude[n],
                                batch.key[n]);
      end loop;
    else
      if traced then
        ignored := set_config('pgbus.traceparent', coalesce(batch.trace[1], ''), true);
      end if;
      perform pgbus._append(batch.stream, batch.data, batch.event, batch.visible_to, batch.exclude);
    end if;
  end loop;
  if traced then
    ignored := set_config('pgbus.traceparent', setting, true);
  end if;
end
$$;

-- As before, and with the traces.
create or replace function pgbus._wakes(ids bigint[], size integer)
returns table (msg_id bigint, stream text, wake text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return query
    select m.msg_id, m.stream::text,
           case when octet_length(w.wake) <= size then w.wake else json_build_array('moved', m.stream)::text end
    from pgbus.messages m
    cross join lateral (
      -- octet_length() does not fetch a large text.
      select case
        when octet_length(m.data) > size then null
        when m.trace is null then
          json_build_array('message', m.stream, m.msg_id, m.prev_id, date_part('epoch', m.created_at), m.event, m.data,
                           m.visible_to, m.exclude)::text
        else
          json_build_array('message', m.stream, m.msg_id, m.prev_id, date_part('epoch', m.created_at), m.event, m.data,
                           m.visible_to, m.exclude, m.trace)::text
      end as wake
      offset 0
    ) w
    where m.msg_id + 0 = any (ids)
    order by m.msg_id + 0;
end
$$;
