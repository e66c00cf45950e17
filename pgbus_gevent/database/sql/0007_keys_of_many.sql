-- Idempotency keys for a batch: one for each message, null for one without.

drop function pgbus.broadcast_many(text, text[], text, text, text);

create function pgbus.broadcast_many(stream text, data text[], event text default null, visible_to text default null,
                                     exclude text default null, keys text[] default null) returns bigint
language plpgsql volatile as $$
declare
  size integer := cardinality(data);
  bad  text;
begin
  if pgbus.good_message(stream, '', event, null) is not true then
    perform pgbus.refuse(stream, '', event, null);
  end if;
  if data is null or array_ndims(data) > 1 or array_position(data, null) is not null then
    raise exception 'bad data: it must be an array of one dimension without nulls'
      using errcode = 'invalid_parameter_value';
  end if;
  if keys is null then
    -- Unnested, for an array may be numbered from something else than 1.
    return pgbus.append(stream, array(select unnest(data)), array_fill(event, array[size]),
                        array_fill(visible_to, array[size]), array_fill(exclude, array[size]));
  end if;
  if array_ndims(keys) > 1 or cardinality(keys) <> size then
    raise exception 'bad keys: there must be one for each of the % messages, null for one without, in one dimension', size
      using errcode = 'invalid_parameter_value';
  end if;
  select k into bad from unnest(keys) k where pgbus.good_key(k) is not true limit 1;
  if found then
    perform pgbus.refuse(stream, '', event, bad);
  end if;
  return pgbus.append_once(stream, array(select unnest(data)), event, visible_to, exclude, array(select unnest(keys)));
end
$$;

-- Appends those whose key the stream does not have, the first where one comes twice. Returns the id of the last of all messages,
-- also where that was there before; null where there are none.
create function pgbus.append_once(stream text, data text[], event text, visible_to text, exclude text, keys text[])
returns bigint
language plpgsql volatile as $$
declare
  size  integer;
  fresh integer[];
  ids   bigint[];
  prev  bigint;
  last  bigint;
begin
  if cardinality(data) = 0 then
    return null;
  end if;
  -- Before the look for keys: nobody else can add one until this transaction has ended.
  perform pg_advisory_xact_lock(1885823603, pgbus.lock_number(stream));
  fresh := array(
    select u.n
    from (
      select k.key, k.n::integer as n, row_number() over (partition by k.key collate "C" order by k.n) as nth
      from unnest(keys) with ordinality as k(key, n)
    ) u
    where u.key is null or (u.nth = 1 and not exists (
      select from pgbus.messages m
      where m.stream = append_once.stream collate "C" and m.key = u.key collate "C"))
    order by u.n);
  size := cardinality(fresh);
  if size > 0 then
    ids := array(select nextval('pgbus.message_ids') from generate_series(1, size));
    prev := pgbus.previous_id(stream);
    perform pgbus.touch(stream, ids[1], size = 1);
    insert into pgbus.messages (stream, msg_id, prev_id, event, data, visible_to, exclude, key)
    select append_once.stream, ids[u.n], case when u.n = 1 then prev else ids[u.n - 1] end,
           nullif(append_once.event collate "C", ''), append_once.data[u.place], append_once.visible_to,
           append_once.exclude, keys[u.place]
    from unnest(fresh) with ordinality as u(place, n)
    -- As in broadcast_once.
    on conflict do nothing;
  end if;
  if fresh[size] = cardinality(data) then
    return ids[size];
  end if;
  select m.msg_id into last from pgbus.messages m
  where m.stream = append_once.stream collate "C" and m.key = keys[cardinality(keys)] collate "C";
  return last;
end
$$;
