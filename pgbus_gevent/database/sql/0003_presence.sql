-- Presence: which members are at which streams, and the announcements when members join and leave.
--
-- A row is one connection of one member at one stream, and a lease. The connection's worker renews the lease, and a
-- row that is not renewed in time has expired without anybody's action. A member is present as long as one of its
-- rows has not expired. To leave is to expire after a grace: a member that comes back within it was never away, and
-- nothing is announced.
--
-- A transaction that changes the rows of a stream holds the lock of its presence until it has committed, so that
-- announcements come in the order of the changes, each of them once. Workers only try to take the lock: a transaction
-- that keeps it delays its own stream, and no other.
--
-- An announcement goes to every client of its stream. If each of n members that come together were announced alone, that
-- would be n times n events. So changes that are made together are announced together, changes at a crowd wait a moment
-- for others, and the members of a large crowd are only counted. What waits is in a table, so that it does not depend on
-- the worker that wrote it.

-- Unlogged: after a crash the connections are gone too, and those that remain join again when their touch finds no
-- row. Half of each page is kept free, so that a touch, which changes no indexed column, finds space beside the row
-- (a HOT update).
create unlogged table pgbus.presence (
  stream        text collate "C" not null,
  member        text collate "C" not null,
  connection    text collate "C" not null,      -- '' if an application has joined the member itself
  metadata      jsonb            not null,
  joined_at     timestamptz      not null,      -- when the member joined, by whichever connection came first
  connected_at  timestamptz      not null,
  expires_at    timestamptz      not null,
  leaving       boolean          not null default false,
  primary key (stream, member, connection)
) with (fillfactor = 50,
        autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- The streams with twenty members or more, and how their changes are announced.
create unlogged table pgbus.presence_crowds (
  stream        text collate "C" primary key,
  members       bigint           not null,      -- at the last announcement
  counted       boolean          not null,      -- whether announcements have the number of the members, and no names
  announced_at  timestamptz      not null,
  waiting       bigint           not null default 0,  -- how many changes have not been announced
  due_at        timestamptz,                    -- when they are to be announced; null if none waits
  followed      boolean          not null default false  -- whether a worker comes back to announce them
) with (fillfactor = 50);

-- The changes that wait, in their order. If there are too many to be named, or if they are counted, they are not here.
create unlogged table pgbus.presence_news (
  stream    text collate "C" not null,
  n         bigint           generated always as identity,
  op        text             not null,
  member    text collate "C" not null,
  metadata  jsonb            not null,
  primary key (stream, n)
);


-- reading -----------------------------------------------------------------------------------------------------

create function pgbus.presence_members(stream text)
returns table (member text, metadata jsonb, joined_at timestamptz, connections bigint)
language plpgsql stable rows 100 security definer set search_path = pg_catalog, pg_temp as $$
begin
  if pgbus._good_stream(stream) is not true then
    perform pgbus._refuse(stream);
  end if;
  return query
    select p.member, (array_agg(p.metadata order by p.connected_at desc, p.connection))[1], min(p.joined_at),
           count(*) filter (where not p.leaving)
    from pgbus.presence p
    -- Not now(), which does not advance within a transaction.
    where p.stream = presence_members.stream collate "C" and p.expires_at > clock_timestamp()
    group by p.member
    order by min(p.joined_at), p.member;
end
$$;

comment on function pgbus.presence_members(text) is
'Returns the members that are at a stream now, in the order in which they joined. metadata is that of the member''s
newest connection. connections is 0 for a member that is only expected back.
Errors: 22023 for a bad name.';

create function pgbus.presence_count(stream text) returns bigint
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  if pgbus._good_stream(stream) is not true then
    perform pgbus._refuse(stream);
  end if;
  return (
    select count(distinct p.member) from pgbus.presence p
    where p.stream = presence_count.stream collate "C" and p.expires_at > clock_timestamp());
end
$$;

comment on function pgbus.presence_count(text) is
'Returns how many members are at a stream now.
Errors: 22023 for a bad name.';


-- changing ----------------------------------------------------------------------------------------------------

create function pgbus.presence_join(stream text, member text, metadata jsonb default '{}', connection text default '',
                                    ttl interval default interval '45 seconds') returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform pgbus._lock_presence(stream);
  return (pgbus._presence_settle(stream, array[member], array[connection], array[coalesce(metadata, '{}')], ttl,
                                '{}', '{}', interval '0', '{}', true)).changes > 0;
end
$$;

comment on function pgbus.presence_join(text, text, jsonb, text, interval) is
'Adds a connection of a member to a stream, or renews it, for the time ttl. Returns true if the member is new there,
which is announced. The stream''s presence stays locked until the transaction ends.
Errors: 22023 for a bad argument; 0A000 in REPEATABLE READ and SERIALIZABLE; 55P03 if a session keeps the lock for
nothing.';

create function pgbus.presence_leave(stream text, member text, connection text default '',
                                     grace interval default interval '0') returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform pgbus._lock_presence(stream);
  return (pgbus._presence_settle(stream, '{}', '{}', '{}', interval '1 second',
                                array[member], array[connection], grace, '{}', true)).changes > 0;
end
$$;

comment on function pgbus.presence_leave(text, text, text, interval) is
'Ends a connection of a member at a stream, after a grace. Returns true if the member has left by it, which is
announced; false if it has other connections there, or a grace. The stream''s presence stays locked until the
transaction ends.
Errors: as those of presence_join.';

create function pgbus.presence_touch(stream text, member text, connection text default '',
                                     ttl interval default interval '45 seconds') returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  return not exists (
    select from pgbus.presence_touch_many(array[stream], array[member], array[connection], ttl));
end
$$;

comment on function pgbus.presence_touch(text, text, text, interval) is
'Renews a connection of a member at a stream for the time ttl. Returns false if it is not there any more and has to
join again. Takes no lock on the stream''s presence, and waits for no other transaction.
Errors: 22023 for a bad ttl.';

create function pgbus.presence_touch_many(stream text[], member text[], connection text[],
                                          ttl interval default interval '45 seconds') returns setof integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  instant timestamptz := clock_timestamp();
begin
  perform pgbus._presence_interval('ttl', ttl, interval '1 millisecond');
  return query
    with asked as (
      select a.stream collate "C" as stream, a.member collate "C" as member, a.connection collate "C" as connection, a.n
      from unnest(presence_touch_many.stream, presence_touch_many.member, presence_touch_many.connection)
        with ordinality as a(stream, member, connection, n)
    ), found as (
      select p.stream, p.member, p.connection
      from asked a
      join pgbus.presence p on p.stream = a.stream and p.member = a.member and p.connection = a.connection
      where not p.leaving and p.expires_at > instant
      -- Another transaction is writing a locked row, and sets its own time.
      for update of p skip locked
    ), touched as (
      update pgbus.presence p set expires_at = instant + ttl
      from found f
      where p.stream = f.stream and p.member = f.member and p.connection = f.connection
    )
    select a.n::integer from asked a
    where not exists (
      select from pgbus.presence p
      where p.stream = a.stream and p.member = a.member and p.connection = a.connection
            and not p.leaving and p.expires_at > instant)
    order by a.n;
end
$$;

comment on function pgbus.presence_touch_many(text[], text[], text[], interval) is
'Does the same as presence_touch for several connections, given as arrays of one length. Returns the positions, from 1,
of those that are not there any more and have to join again.
Errors: 22023 for a bad ttl.';

-- Writes what happened at one stream, whose presence is locked, and announces the result; returns how many members have
-- joined and left, and `due` as _presence_tell does. The first three arrays have one length, and so do the next two.
-- `others` are members of which some rows may have expired. `alone` is as in _presence_tell.
create function pgbus._presence_settle(
  stream text,
  arrivals text[], arrival_connections text[], arrival_metadata jsonb[], ttl interval,
  departures text[], departure_connections text[], grace interval,
  others text[], alone boolean, out changes integer, out due double precision)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  -- An argument has its caller's collation, which would conflict with a column's.
  name       text   collate "C" := stream;
  coming     text[] collate "C" := arrivals;
  going      text[] collate "C" := departures;
  concerned  text[] collate "C" := arrivals || departures || others;
  known      text[] collate "C";
  gone       text[] collate "C";
  instant    timestamptz := clock_timestamp();
  belongings jsonb[];
  bad        record;
  news       pgbus.presence_news[];
begin
  -- With a snapshot from before the lock it would not see members that joined meanwhile, and would announce that a
  -- present member has left.
  if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
    raise exception 'presence cannot be changed in a transaction in %: use one in READ COMMITTED',
                    upper(current_setting('transaction_isolation'))
      using errcode = 'feature_not_supported';
  end if;
  if pgbus._good_stream(name) is not true then
    perform pgbus._refuse(name);
  end if;
  for bad in
    select a.member, a.connection, a.metadata
    from unnest(coming, arrival_connections, arrival_metadata) as a(member, connection, metadata)
    where pgbus._good_presence(a.member, a.connection, a.metadata) is not true
  loop
    perform pgbus._presence_refuse(name, bad.member, bad.connection, bad.metadata);
  end loop;
  perform pgbus._presence_interval('ttl', ttl, interval '1 millisecond');
  perform pgbus._presence_interval('grace', grace, interval '0');

  -- To readers, a member whose rows have expired has left, swept or not. So its return is announced.
  known := array(
    select distinct p.member from pgbus.presence p
    where p.stream = name and p.member = any (coming) and p.expires_at > instant);
  insert into pgbus.presence (stream, member, connection, metadata, joined_at, connected_at, expires_at)
  select distinct on (a.member, a.connection)
         name, a.member, a.connection, a.metadata,
         coalesce((select min(o.joined_at) from pgbus.presence o
                   where o.stream = name and o.member = a.member collate "C" and o.expires_at > instant), instant),
         instant, instant + ttl
  from unnest(coming, arrival_connections, arrival_metadata) with ordinality as a(member, connection, metadata, n)
  order by a.member, a.connection, a.n desc
  on conflict on constraint presence_pkey do update
  set metadata = excluded.metadata, joined_at = excluded.joined_at, connected_at = excluded.connected_at,
      expires_at = excluded.expires_at, leaving = false;

  update pgbus.presence p
  set leaving = true, expires_at = least(p.expires_at, instant + grace)
  from unnest(going, departure_connections) as d(member, connection)
  where p.stream = name and p.member = d.member collate "C" and p.connection = d.connection collate "C";

  -- A row that is just being touched is left for the next time. Waiting for it would delay all others.
  with expired as (
    select p.member, p.connection from pgbus.presence p
    where p.stream = name and p.member = any (concerned) and p.expires_at <= instant
    for update skip locked
  ), deleted as (
    delete from pgbus.presence p using expired e
    where p.stream = name and p.member = e.member and p.connection = e.connection
    returning p.member, p.metadata, p.connected_at
  ), last as (
    select distinct on (d.member) d.member, d.metadata from deleted d order by d.member, d.connected_at desc
  )
  select array_agg(l.member), array_agg(l.metadata) into gone, belongings from last l;

  news := array(
    select (name, null, c.op, c.member, c.metadata)::pgbus.presence_news
    from (
      select 'join' as op, p.member, (array_agg(p.metadata order by p.connected_at desc, p.connection))[1] as metadata
      from pgbus.presence p
      where p.stream = name and p.member = any (coming) and p.member <> all (known) and p.expires_at > instant
      group by p.member
      union all
      select 'leave', g.member, g.metadata
      from unnest(gone, belongings) as g(member, metadata)
      where not exists (select from pgbus.presence p where p.stream = name and p.member = g.member collate "C")
    ) c
    order by c.op, c.member);
  changes := cardinality(news);
  if changes > 0 then
    due := pgbus._presence_tell(name, news, alone);
  end if;
end
$$;

create function pgbus._good_presence(member text, connection text, metadata jsonb) returns boolean
language sql immutable parallel safe
return pgbus._good_stream(member) and connection is not null and octet_length(connection) <= 255
       and jsonb_typeof(metadata) = 'object' and octet_length(metadata::text) <= 4096;

-- Raises the error that names the bad argument.
create function pgbus._presence_refuse(stream text, member text, connection text, metadata jsonb) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if pgbus._good_stream(stream) is not true then
    perform pgbus._refuse(stream);
  end if;
  raise exception using
    errcode = 'invalid_parameter_value',
    message = case
      when pgbus._good_stream(member) is not true then
        format('bad member %s: it must be 1 to 255 bytes of UTF-8 without control characters',
               left(coalesce(to_json(member)::text, 'null'), 80))
      when connection is null or octet_length(connection) > 255 then
        'bad connection: it must be at most 255 bytes of UTF-8'
      else
        'bad metadata: it must be a JSON object of at most 4096 bytes'
    end;
end
$$;

-- Raises an error if an interval is outside its bounds.
create function pgbus._presence_interval(what text, value interval, lowest interval) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if value is null or value < lowest or value > interval '1 day' then
    raise exception 'bad % %: it must be % or more, and at most a day', what, coalesce(value::text, 'null'), lowest
      using errcode = 'invalid_parameter_value';
  end if;
end
$$;

create function pgbus._lock_presence(stream text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  if not pg_try_advisory_xact_lock(1885823600, pgbus._lock_number(stream)) then
    perform pgbus._wait_for(1885823600, pgbus._lock_number(stream), 'the presence at ' || to_json(stream));
  end if;
end
$$;


-- announcing --------------------------------------------------------------------------------------------------

-- The most members that are named. With more, announcements only have their number: a list of hundreds is no use to
-- people, and each change costs every client its bytes. Not a setting, because all who change a stream's presence have
-- to agree, and SQL sessions have no settings of ours.
create function pgbus._presence_named() returns integer
language sql immutable parallel safe
return 250;

-- How long the changes at a crowd of this size wait for others: so long that a change to every client costs at most
-- 10,000 events a second, but from 50 ms to 1 s.
create function pgbus._presence_pause(members bigint) returns interval
language sql immutable parallel safe
return least(greatest(members * 0.0001, 0.05), 1) * interval '1 second';

-- Announces changes at one stream, whose presence is locked, or lets them wait. `alone`: they are a transaction of their
-- own, after which nobody may come to announce what waits until the next sweep. So they wait only if they are counted.
-- Returns in how many seconds the caller is to come back, with _presence_flush, to announce what waits; null if it need
-- not, because nothing waits or another caller comes back. If all came back, the statements would grow with the workers.
create function pgbus._presence_tell(stream text, news pgbus.presence_news[], alone boolean) returns double precision
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  name    text collate "C" := stream;
  crowd   pgbus.presence_crowds;
  ends_at timestamptz;
begin
  select c.* into crowd from pgbus.presence_crowds c where c.stream = name;
  if crowd.announced_at > clock_timestamp() then  -- the clock was set back
    crowd.announced_at := clock_timestamp();
  end if;
  ends_at := crowd.announced_at + pgbus._presence_pause(crowd.members);
  if ends_at > clock_timestamp() and (crowd.counted or not alone) then
    if not crowd.counted and crowd.waiting + cardinality(news) <= pgbus._presence_named() then
      insert into pgbus.presence_news (stream, op, member, metadata)
      select name, w.op, w.member, w.metadata
      from unnest(news) with ordinality as w(stream, n, op, member, metadata, place)
      order by w.place;
    end if;
    update pgbus.presence_crowds c
    set waiting = c.waiting + cardinality(news), due_at = least(c.due_at, ends_at),
        followed = c.followed or not alone
    where c.stream = name;
    return case when not (alone or crowd.followed) then extract(epoch from ends_at - clock_timestamp()) end;
  end if;
  perform pgbus._presence_announce(name, news);
  return null;
end
$$;

-- Announces the changes at one stream, whose presence is locked: those that wait, and then `news`.
create function pgbus._presence_announce(stream text, news pgbus.presence_news[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  name    text collate "C" := stream;
  crowd   pgbus.presence_crowds;
  total   bigint := pgbus.presence_count(name);
  changes bigint := cardinality(news);
  counts  boolean;
  told    json[];
  data    json;
begin
  select c.* into crowd from pgbus.presence_crowds c where c.stream = name;
  changes := changes + coalesce(crowd.waiting, 0);
  -- Names come back only with a fifth fewer members, so that a crowd of this size does not change the kind of its
  -- announcements with every member: whoever shows names asks for all of them at each change back.
  counts := total > case when crowd.counted then pgbus._presence_named() * 4 / 5 else pgbus._presence_named() end;
  if counts then
    data := json_build_object('count', total);
  elsif crowd.counted or changes > pgbus._presence_named() then
    data := json_build_object('op', 'refresh', 'count', total);
  else
    told := array(
      select json_build_object('op', w.op, 'member', w.member, 'metadata', w.metadata)
      from (select p.op, p.member, p.metadata, 1 as part, p.n as place from pgbus.presence_news p where p.stream = name
            union all
            select a.op, a.member, a.metadata, 2, a.place
            from unnest(news) with ordinality as a(stream, n, op, member, metadata, place)) w
      order by w.part, w.place);
    if changes = 1 then
      data := json_build_object('op', told[1] -> 'op', 'member', told[1] -> 'member', 'metadata', told[1] -> 'metadata',
                                'count', total);
    else
      data := json_build_object('members', to_json(told), 'count', total);
    end if;
  end if;
  if crowd.waiting > 0 then
    delete from pgbus.presence_news p where p.stream = name;
  end if;
  if total >= 20 then
    insert into pgbus.presence_crowds as c (stream, members, counted, announced_at)
    values (name, total, counts, clock_timestamp())
    on conflict on constraint presence_crowds_pkey do update
    set members = excluded.members, counted = excluded.counted, announced_at = excluded.announced_at,
        waiting = 0, due_at = null, followed = false;
  elsif crowd.stream is not null then
    delete from pgbus.presence_crowds c where c.stream = name;
  end if;
  perform pgbus.broadcast_ephemeral(name, data, 'presence');
end
$$;

-- Announces what has waited long enough, at up to 100 streams, whoever wrote it. If some of it stays due, because there
-- are more streams or because another transaction holds the presence of one, returns in how many seconds to try again,
-- else null. What is not due yet does not count: each of several workers would come back for the changes of all others.
-- What is due later than a whole pause from now is announced too: the clock was set back after it was written.
create function pgbus._presence_flush() returns double precision
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  name  text collate "C";
  tried integer := 0;
  held  boolean := false;
begin
  for name in
    select c.stream from pgbus.presence_crowds c
    where c.due_at <= clock_timestamp() or c.due_at > clock_timestamp() + pgbus._presence_pause(c.members)
    order by c.due_at limit 100
  loop
    tried := tried + 1;
    if not pg_try_advisory_xact_lock(1885823600, pgbus._lock_number(name)) then
      held := true;
    -- Again under the lock, because another transaction may just have announced them.
    elsif exists (
      select from pgbus.presence_crowds c
      where c.stream = name
            and (c.due_at <= clock_timestamp() or c.due_at > clock_timestamp() + pgbus._presence_pause(c.members)))
    then
      perform pgbus._presence_announce(name, '{}');
    end if;
  end loop;
  return case when held then 0.25 when tried = 100 then 0.02 end;
end
$$;


-- for workers -------------------------------------------------------------------------------------------------

-- Writes what happened at the streams of a worker. An arrival has metadata, a departure has none. `again`: the
-- positions, from 1, of the changes that are to be tried again, because another transaction holds the presence of
-- their streams. `due`: in how many seconds the worker is to call _presence_flush, once for each.
create function pgbus._presence_record(stream text[], member text[], connection text[], metadata jsonb[],
                                      ttl interval, grace interval, out again integer[], out due double precision[])
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  batch record;
  later double precision;
begin
  again := '{}';
  due := '{}';
  for batch in
    select a.stream,
           coalesce(array_agg(a.member order by n) filter (where a.metadata is not null), '{}') as arrivals,
           coalesce(array_agg(a.connection order by n) filter (where a.metadata is not null), '{}') as arrived,
           coalesce(array_agg(a.metadata order by n) filter (where a.metadata is not null), '{}') as belongings,
           coalesce(array_agg(a.member order by n) filter (where a.metadata is null), '{}') as departures,
           coalesce(array_agg(a.connection order by n) filter (where a.metadata is null), '{}') as departed,
           array_agg(a.n::integer) as places
    from unnest(_presence_record.stream, _presence_record.member, _presence_record.connection, _presence_record.metadata)
      with ordinality as a(stream, member, connection, metadata, n)
    group by a.stream
  loop
    if pg_try_advisory_xact_lock(1885823600, pgbus._lock_number(batch.stream)) then
      later := (pgbus._presence_settle(batch.stream, batch.arrivals, batch.arrived, batch.belongings, ttl,
                                       batch.departures, batch.departed, grace, '{}', false)).due;
      if later is not null then
        due := due || later;
      end if;
    else
      again := again || batch.places;
    end if;
  end loop;
end
$$;

create function pgbus.presence_sweep() returns double precision
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  instant timestamptz := clock_timestamp();
  places  tid[];
  next_at timestamptz;
  setting text := current_setting('enable_seqscan');
  ignored text;
  batch   record;
  later   double precision;
begin
  if pg_relation_size('pgbus.presence') = 0 then
    return pgbus._presence_flush();
  end if;
  -- One pass over the table, which has no index on expires_at, so that a touch is cheap. Our sessions do without such
  -- passes otherwise, and would read the table in the order of its index.
  ignored := set_config('enable_seqscan', 'on', true);
  select array_agg(p.ctid) filter (where p.expires_at <= instant), min(p.expires_at) filter (where p.expires_at > instant)
  into places, next_at
  from pgbus.presence p;
  ignored := set_config('enable_seqscan', setting, true);
  -- A limit, so that the rows of a large worker that has died are removed in several short transactions. Any of them, or
  -- those of a stream whose presence is locked could keep the others out.
  if cardinality(places) > 1000 then
    places := array(select p.place from unnest(places) as p(place) order by random() limit 1000);
    next_at := instant;
  end if;
  for batch in
    select p.stream, array_agg(distinct p.member) as members
    from pgbus.presence p
    -- The row at a place may have changed since.
    where p.ctid = any (places) and p.expires_at <= instant
    group by p.stream
  loop
    if pg_try_advisory_xact_lock(1885823600, pgbus._lock_number(batch.stream)) then
      later := least(later, (pgbus._presence_settle(batch.stream, '{}', '{}', '{}', interval '1 second', '{}', '{}',
                                                    interval '0', batch.members, false)).due);
    else
      next_at := instant;
    end if;
  end loop;
  -- Also what a worker wrote that has died since.
  return least(pgbus._presence_flush(), later,
               case when next_at is not null then greatest(0, extract(epoch from next_at - clock_timestamp())) end);
end
$$;

comment on function pgbus.presence_sweep() is
'Removes expired connections, at most 1000, and announces the members that have left by it, and what else waits to be
announced. Workers do this by themselves. Returns in how many seconds there is more to do; null if there is nothing.';
