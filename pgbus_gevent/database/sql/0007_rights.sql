-- Who may do what. Nobody but the owner may do anything, whatever the database's default privileges are, until the owner grants it by
-- one of the functions below. After an upgrade they are called again.

revoke all on schema pgbus from public;
revoke all on all tables in schema pgbus from public;
revoke all on all sequences in schema pgbus from public;
revoke all on all functions in schema pgbus from public;

-- Default privileges may also have granted something to roles by name. The channels are nobody's.
do $$
declare
  grantee text;
begin
  for grantee in
    select distinct a.grantee::regrole::text
    from pg_class c cross join aclexplode(c.relacl) a
    where c.oid = 'pgbus.channel_names'::regclass and a.grantee not in (0, c.relowner)
  loop
    execute format('revoke all on pgbus.channel_names from %s', grantee);
  end loop;
end
$$;

create function pgbus.grant_rights(grantee name, tables text[], functions text[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  one text;
begin
  execute format('grant usage on schema pgbus to %I', grantee);
  foreach one in array array['migrations'] || tables loop
    execute format('grant select on pgbus.%I to %I', one, grantee);
  end loop;
  for one in
    select p.oid::regprocedure::text from pg_proc p
    where p.pronamespace = 'pgbus'::regnamespace and p.proname = any (functions)
  loop
    execute format('grant execute on function %s to %I', one, grantee);
  end loop;
end
$$;

-- To publish, and to watch tables of its own; to tell who is present. Not to read.
create function pgbus.grant_publisher(grantee name) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform pgbus.grant_rights(grantee, '{}', array[
    'broadcast', 'broadcast_many', 'broadcast_on_commit', 'broadcast_ephemeral', 'last_id',
    'presence_join', 'presence_leave', 'presence_touch', 'presence_touch_many',
    'watch_table', 'unwatch_table', 'watch_drop', 'watch', 'watch_columns', 'watch_missing', 'watch_expression', 'watch_stream',
    'watch_message', 'watch_rows', 'queue_many', 'good_stream']);
end
$$;

-- To read, by functions. Not to publish.
create function pgbus.grant_reader(grantee name) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform pgbus.grant_rights(grantee, '{}', array['last_id', 'read_after', 'presence_members', 'presence_count']);
end
$$;

-- To serve: what a worker does, but for removing what is old.
create function pgbus.grant_server(grantee name) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform pgbus.grant_reader(grantee);
  execute format('grant select, insert, delete on pgbus.operator_sessions, pgbus.token_guesses to %I', grantee);
  perform pgbus.grant_rights(
    grantee, array['messages', 'horizons', 'ephemerals', 'revocations', 'workers', 'message_ids', 'forgotten'],
    array['channels', 'head', 'horizon', 'beat', 'leave_roll', 'presence_record', 'presence_touch_many', 'presence_sweep', 'squatters']);
end
$$;

-- To remove what is old.
create function pgbus.grant_pruner(grantee name) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform pgbus.grant_rights(grantee, '{}', array[
    'streams_below', 'prune_turn', 'prune', 'forget', 'prune_ephemerals', 'tell_retention', 'told_retentions']);
end
$$;

-- To end connections, and to see the workers.
create function pgbus.grant_operator(grantee name) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform pgbus.grant_rights(grantee, array['workers', 'revocations'], array['disconnect', 'squatters']);
end
$$;

-- Takes all of it back.
create function pgbus.revoke_rights(grantee name) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  execute format('revoke all on all tables in schema pgbus from %I', grantee);
  execute format('revoke all on all sequences in schema pgbus from %I', grantee);
  execute format('revoke all on all functions in schema pgbus from %I', grantee);
  execute format('revoke all on schema pgbus from %I', grantee);
end
$$;

revoke all on function
  pgbus.grant_rights(name, text[], text[]), pgbus.grant_publisher(name), pgbus.grant_reader(name), pgbus.grant_server(name),
  pgbus.grant_pruner(name), pgbus.grant_operator(name), pgbus.revoke_rights(name) from public;
