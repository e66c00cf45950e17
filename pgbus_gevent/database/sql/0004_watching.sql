-- Watching a table: every change of a row becomes a message, which is queued for the commit as by
-- broadcast_on_commit.
--
-- The table's triggers are the only record of what is watched, and into which stream it is published. So the record
-- follows the table, also into a dump, and the owner of a table needs no right to write anywhere else. These
-- functions have the rights of their caller. They fix the search_path, for themselves and for what they call: neither
-- the meaning of a name nor the text of a row may depend on the session that writes.
--
-- There is one trigger per statement, however many rows it changes, and it reads the rows from transition tables.
-- PostgreSQL therefore needs one trigger for each kind of statement.


-- watching ----------------------------------------------------------------------------------------------------

create function pgbus.watch_table(target regclass, stream text, events text default 'insert,update,delete')
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  columns text[] := pgbus._watch_columns(stream);
  kinds   text[] := array(select btrim(e) from regexp_split_to_table(lower(events collate "C"), ',') e);
  wanted  text[];
  -- The template without its columns: no stream's name can be shorter.
  bare    text := regexp_replace(stream collate "C", '[{][^{}]+[}]', '', 'g');
  shown   text := left(coalesce(to_json(stream)::text, 'null'), 80);
  about   record;
  problem text;
begin
  select c.relkind, c.relnamespace = 'pgbus'::regnamespace as ours into about from pg_class c where c.oid = target;
  problem := case
    when target is null then
      'target is null: name the table to watch'
    when about is null then
      format('there is no table with oid %s', target::oid)
    when about.ours then
      format('%s is a table of pgbus itself, which cannot be watched', target)
    when about.relkind not in ('r', 'p') then
      format('%s is not a table: only tables can be watched, not views or foreign tables', target)
    when bare ~ '[{}]' then
      format('bad stream %s: braces enclose the name of a column, as in orders:{id}', shown)
    when pgbus._good_stream(bare) is not true and (bare <> '' or cardinality(columns) = 0) is not false then
      format('bad stream name %s: it must be 1 to 255 bytes of UTF-8 without control characters', shown)
    when pgbus._watch_missing(target, columns) is not null then
      format('bad stream %s: table %s has no column %s', shown, target,
             to_json(pgbus._watch_missing(target, columns)))
    when events is null or not kinds <@ '{insert,update,delete,truncate}' then
      format('bad events %s: name some of insert, update, delete and truncate, with commas between them',
             left(coalesce(to_json(events)::text, 'null'), 80))
    when 'truncate' = any (kinds) and cardinality(columns) > 0 then
      format('bad events %s: a TRUNCATE has no row to fill the columns of stream %s from', to_json(events), shown)
  end;
  if problem is not null then
    raise exception '%', problem using errcode = 'invalid_parameter_value';
  end if;

  wanted := array(
    select kind from unnest('{insert,update,delete,truncate}'::text[]) kind
    where kind = any (kinds)
          -- TRUNCATE deletes every row. But it has no row to fill columns from.
          or kind = 'truncate' and 'delete' = any (kinds) and cardinality(columns) = 0);
  -- First, because dropping needs a stronger lock on the table.
  perform pgbus._watch_drop(target, wanted);
  for kind in 1 .. cardinality(wanted) loop
    -- An equal trigger is left alone, so that a program can call this at every start without waiting for a lock.
    continue when exists (
      select from pg_trigger t
      where t.tgrelid = target and t.tgname = 'pgbus_watch_' || wanted[kind]
            and t.tgfoid = 'pgbus._watch'::regproc and t.tgargs = convert_to(stream, 'UTF8') || decode('00', 'hex'));
    execute format(
      'create or replace trigger %I after %s on %s %s for each statement execute function pgbus._watch(%L)',
      'pgbus_watch_' || wanted[kind], wanted[kind], target,
      case wanted[kind]
        when 'insert' then 'referencing new table as new_rows'
        when 'update' then 'referencing old table as old_rows new table as new_rows'
        when 'delete' then 'referencing old table as old_rows'
        else ''
      end, stream);
  end loop;
end
$$;

comment on function pgbus.watch_table(regclass, text, text) is
'Broadcasts every change of a table''s rows to a stream at the commit, as JSON {"op","table","new","old"}. {column} in
the stream''s name stands for the value of that column in the row. events: some of insert, update, delete and
truncate, with commas in between. If the table is watched already, the new arguments replace the old ones. The caller
must own the table.
Errors: 22023 for a bad argument; 42501 if the caller may not.';

create function pgbus.unwatch_table(target regclass) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  if target is null then
    raise exception 'target is null: name the table that is watched' using errcode = 'invalid_parameter_value';
  end if;
  perform pgbus._watch_drop(target, '{}');
end
$$;

comment on function pgbus.unwatch_table(regclass) is
'Stops the broadcasts that watch_table began; does nothing if the table is not watched. The caller must own the table.
Errors: 22023 for null; 42501 if the caller may not.';

-- Drops the triggers of a table except those of the kinds in `kept`.
create function pgbus._watch_drop(target regclass, kept text[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  name text;
begin
  for name in
    select t.tgname from pg_trigger t
    where t.tgrelid = target and t.tgfoid = 'pgbus._watch'::regproc and not t.tgisinternal
          and t.tgname <> all (select 'pgbus_watch_' || kind from unnest(kept) kind)
  loop
    execute format('drop trigger %I on %s', name, target);
  end loop;
end
$$;


-- the stream's name -------------------------------------------------------------------------------------------

-- The columns that the template of a stream's name contains.
create function pgbus._watch_columns(template text) returns text[]
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if strpos(template, '{') = 0 then
    return '{}';
  end if;
  return array(select m[1] from regexp_matches(template collate "C", '[{]([^{}]*)[}]', 'g') m);
end
$$;

-- The first of the columns that the table does not have; null if it has them all.
create function pgbus._watch_missing(target regclass, columns text[]) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  for i in 1 .. cardinality(columns) loop
    if not exists (
      select from pg_attribute a
      where a.attrelid = target and a.attname::text = columns[i] and a.attnum > 0 and not a.attisdropped)
    then
      return columns[i];
    end if;
  end loop;
  return null;
end
$$;

-- Returns an SQL expression for the stream of the row `r`: null if a column that it names is null. A value is the
-- text that the row's JSON has for it. It is computed from the column alone, because the row may be large.
create function pgbus._watch_expression(target regclass, template text, columns text[]) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  literals text[];
  found    text;
begin
  if cardinality(columns) = 0 then
    return quote_literal(template);  -- and was checked by watch_table
  end if;
  literals := regexp_split_to_array(template collate "C", '[{][^{}]*[}]');
  found := quote_literal(literals[1]);
  for i in 1 .. cardinality(columns) loop
    found := found || format(' || (to_json(r.%I) #>> ''{}'') || %L', columns[i], literals[i + 1]);
  end loop;
  return format('pgbus._watch_stream(%s, %L::regclass, %L)', found, target::oid, template);
end
$$;

-- Checks a name. A bad one makes the statement fail that writes to the table.
create function pgbus._watch_stream(stream text, target regclass, template text) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if pgbus._good_stream(stream) is false then
    raise exception 'bad stream name % for a row of table %, watched as %: it must be 1 to 255 bytes of UTF-8 without '
                    'control characters', left(to_json(stream)::text, 80), target, to_json(template)
      using errcode = 'invalid_parameter_value';
  end if;
  return stream;
end
$$;


-- the rows ----------------------------------------------------------------------------------------------------

-- The message. It is assembled as text, because JSON values then keep each number as it was written, and every key of
-- the table.
create function pgbus._watch_message(op text, named json, new json, old json) returns text
language sql immutable parallel safe
return '{"op":"' || op || '","table":' || named || ',"new":' || coalesce(new::text, 'null')
       || ',"old":' || coalesce(old::text, 'null') || '}';

-- Returns a query for the rows of a transition table, numbered in their order. PostgreSQL leaves virtual generated
-- columns empty there, so the query computes them; otherwise they would be published as null. (r.*, because r alone
-- may be a column.)
create function pgbus._watch_rows(target regclass, stream text, rows text) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  source text := rows;
begin
  if exists (select from pg_attribute a where a.attrelid = target and a.attgenerated = 'v' and not a.attisdropped) then
    source := (
      select format('(select %s from %s)', string_agg(
               case when a.attgenerated = 'v' then format('(%s) as %I', pg_get_expr(d.adbin, d.adrelid), a.attname)
                    else quote_ident(a.attname) end, ', ' order by a.attnum), rows)
      from pg_attribute a
      left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
      where a.attrelid = target and a.attnum > 0 and not a.attisdropped);
  end if;
  return format('select row_number() over () as n, row_to_json(r.*) as row, %s as stream from %s r', stream, source);
end
$$;

-- The trigger. An update that moves a row from one stream to another is a delete for the first and an insert for the
-- second: the readers of each may see only their own rows. Without jit: compiling the statements would take longer
-- than running them.
create function pgbus._watch() returns trigger
language plpgsql volatile set search_path = pg_catalog, pg_temp set jit = off as $$
declare
  template   text := tg_argv[0];
  columns    text[] := pgbus._watch_columns(template);
  named      json := to_json(concat(nullif(tg_table_schema, 'public') || '.', tg_table_name));
  stream     text;
  olds       bigint := 0;
  news       bigint := 0;
  number     bigint;
  old_row    json;
  old_stream text;
  new_row    json;
  new_stream text;
  changes    text;
  batch      record;
begin
  if tg_op = 'TRUNCATE' then
    perform pgbus.broadcast_on_commit(template, pgbus._watch_message('truncate', named, null, null));
    return null;
  end if;
  if tg_op <> 'INSERT' then
    olds := (select count(*) from old_rows);
  end if;
  if tg_op <> 'DELETE' then
    news := (select count(*) from new_rows);
  end if;
  if olds + news = 0 then
    return null;
  end if;
  if pgbus._watch_missing(tg_relid, columns) is not null then
    raise exception using
      errcode = 'undefined_column',
      message = format('table %s is watched as %s, but has no column %s any more', tg_relid::regclass,
                       to_json(template), to_json(pgbus._watch_missing(tg_relid, columns))),
      hint = format('Call pgbus.watch_table(%1$L, ...) with the columns it has now, or pgbus.unwatch_table(%1$L).',
                    tg_relid::regclass);
  end if;
  stream := pgbus._watch_expression(tg_relid, template, columns);

  -- Most statements change one row. Planning the query below would take several times as long as this.
  if greatest(olds, news) = 1 then
    if olds = 1 then
      execute pgbus._watch_rows(tg_relid, stream, 'old_rows') into number, old_row, old_stream;
    end if;
    if news = 1 then
      execute pgbus._watch_rows(tg_relid, stream, 'new_rows') into number, new_row, new_stream;
    end if;
    if old_stream collate "C" = new_stream then
      perform pgbus.broadcast_on_commit(new_stream, pgbus._watch_message('update', named, new_row, old_row));
      return null;
    end if;
    if old_stream is not null then
      perform pgbus.broadcast_on_commit(old_stream, pgbus._watch_message('delete', named, null, old_row));
    end if;
    if new_stream is not null then
      perform pgbus.broadcast_on_commit(new_stream, pgbus._watch_message('insert', named, new_row, null));
    end if;
    return null;
  end if;

  changes := case
    when olds = 0 then
      'select n, null::json as old, row as new, null as old_stream, stream as new_stream from ('
      || pgbus._watch_rows(tg_relid, stream, 'new_rows') || ') a'
    when news = 0 then
      'select n, row as old, null::json as new, stream as old_stream, null as new_stream from ('
      || pgbus._watch_rows(tg_relid, stream, 'old_rows') || ') b'
    -- The two tables have the rows in the same order, so their numbers pair them. A full join is never a nested loop,
    -- which would take quadratic time. If an update moved rows to a partition whose own trigger refused some, there
    -- are fewer new rows than old ones, and nothing shows which belong together. $2 then keeps them all apart.
    else
      'select coalesce(b.n, a.n) as n, b.row as old, a.row as new, b.stream as old_stream, a.stream as new_stream'
      || ' from (' || pgbus._watch_rows(tg_relid, stream, 'old_rows') || ') b'
      || ' full join (select n + $2 as n, row, stream from ('
      || pgbus._watch_rows(tg_relid, stream, 'new_rows') || ') a) a on a.n = b.n'
  end;
  for batch in execute format($sql$
    select array_agg(m.stream order by m.place) as streams, array_agg(m.data order by m.place) as data
    from (
      select row_number() over (order by c.n, t.part) as place, t.stream, pgbus._watch_message(t.op, $1, t.new, t.old) as data
      from (%s) c
      cross join lateral (
        select 1 as part, 'update' as op, c.new_stream as stream, c.new, c.old
        where c.old_stream collate "C" = c.new_stream
        union all
        select 1, 'delete', c.old_stream, null, c.old
        where c.old_stream collate "C" is distinct from c.new_stream and c.old_stream is not null
        union all
        select 2, 'insert', c.new_stream, c.new, null
        where c.old_stream collate "C" is distinct from c.new_stream and c.new_stream is not null
      ) t
    ) m
    -- In groups, because an array must stay below 1 GB.
    group by (m.place - 1) / 1000
    order by (m.place - 1) / 1000
  $sql$, changes)
  using named, case when olds = news then 0 else olds end
  loop
    perform pgbus._queue_many(batch.streams, batch.data);
  end loop;
  return null;
end
$$;
