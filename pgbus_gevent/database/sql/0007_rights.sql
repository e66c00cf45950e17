-- Rights. Only the owner has any right until the owner grants it by a function of this file, even if the database has
-- default privileges. The owner calls these functions again after an upgrade, because a new release may have new
-- functions.


-- granting ----------------------------------------------------------------------------------------------------

create function pgbus.grant_publisher(grantee name) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform pgbus._grant_rights(grantee, '{}', array[
    'broadcast', 'broadcast_many', 'broadcast_on_commit', 'broadcast_ephemeral', 'last_id',
    'presence_join', 'presence_leave', 'presence_touch', 'presence_touch_many',
    'watch_table', 'unwatch_table', '_watch_drop', '_watch', '_watch_columns', '_watch_missing', '_watch_expression',
    '_watch_stream', '_watch_message', '_watch_rows', '_queue_many', '_good_stream']);
end
$$;

comment on function pgbus.grant_publisher(name) is
'Lets a role publish, watch tables that it owns, and change presence; not read messages. For the owner of the schema.';

create function pgbus.grant_reader(grantee name) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform pgbus._grant_rights(grantee, '{}', array['last_id', 'read_after', 'presence_members', 'presence_count']);
end
$$;

comment on function pgbus.grant_reader(name) is
'Lets a role read messages and presence, by functions; not publish. For the owner of the schema.';

create function pgbus.grant_server(grantee name) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform pgbus.grant_reader(grantee);
  execute format('grant select, insert, delete on pgbus.operator_sessions, pgbus.token_guesses to %I', grantee);
  perform pgbus._grant_rights(
    grantee, array['messages', 'horizons', 'ephemerals', 'revocations', 'workers', 'message_ids', 'forgotten'],
    array['channels', '_head', '_horizon', '_beat', '_leave_roll', '_ring_control',
          '_duty', '_leave_duty', '_steward', '_report_caps', '_leave_caps', '_wakes', '_ring_for', '_ring_everybody',
          '_presence_record', '_presence_flush', 'presence_touch_many', 'presence_sweep', 'squatters']);
  perform pgbus._grant_rights(grantee, array['mark'], array['_mark']);
  perform pgbus._grant_rights(grantee, '{}', array['_redis_names', '_beat_many', '_other_cap_reports']);
end
$$;

comment on function pgbus.grant_server(name) is
'Lets a role serve: all that a worker does, except removing old messages. For the owner of the schema.';

create function pgbus.grant_pruner(grantee name) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform pgbus._grant_rights(grantee, '{}', array[
    '_streams_below', '_prune_turn', 'prune', '_forget', '_prune_ephemerals', '_tell_retention', '_told_retentions']);
end
$$;

comment on function pgbus.grant_pruner(name) is
'Lets a role remove old messages. For the owner of the schema.';

create function pgbus.grant_operator(grantee name) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  perform pgbus._grant_rights(grantee, array['workers', 'revocations'], array['disconnect', 'squatters', '_steward']);
end
$$;

comment on function pgbus.grant_operator(name) is
'Lets a role end connections, and list the workers. For the owner of the schema.';

create function pgbus.revoke_rights(grantee name) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  execute format('revoke all on all tables in schema pgbus from %I', grantee);
  execute format('revoke all on all sequences in schema pgbus from %I', grantee);
  execute format('revoke all on all functions in schema pgbus from %I', grantee);
  execute format('revoke all on schema pgbus from %I', grantee);
end
$$;

comment on function pgbus.revoke_rights(name) is
'Takes from a role all rights on the schema, whichever function granted them. For the owner of the schema.';

-- Grants what every role needs, SELECT on some tables or sequences, and EXECUTE on the functions of some names.
create function pgbus._grant_rights(grantee name, tables text[], functions text[]) returns void
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


-- nothing without a grant -------------------------------------------------------------------------------------

revoke all on schema pgbus from public;
revoke all on all tables in schema pgbus from public;
revoke all on all sequences in schema pgbus from public;
revoke all on all functions in schema pgbus from public;

-- Default privileges may also have granted something to roles by name. Only the owner reads the channels.
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


-- marking -----------------------------------------------------------------------------------------------------

do $$
declare
  one regprocedure;
begin
  for one in
    select p.oid from pg_proc p where p.pronamespace = 'pgbus'::regnamespace and left(p.proname, 1) = '_'
  loop
    execute format('comment on function %s is %L', one, 'Internal to pgbus: may change in any release.');
  end loop;
end
$$;
