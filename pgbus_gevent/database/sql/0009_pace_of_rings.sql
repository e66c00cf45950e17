-- The pace at which the doorbell rings. Each ring wakes every worker, and each of them looks a few milliseconds later for
-- what did not ring. So in a large fleet rings have to keep a distance, or they cost the publishers a good part of what the
-- database can do; in a small one they are cheap, and each message that rings is there the sooner.

-- When somebody last rang, and the least distance of two rings: milliseconds, of Unix time the one. Sequences, as they are
-- written without a row version to clear away, and as nobody waits for who wrote before and is not committed yet.
create sequence pgbus.last_ring as bigint minvalue 0 start with 0;
create sequence pgbus.ring_pause as bigint minvalue 0 start with 0;

-- Whether this transaction is to ring, which it then has to do. With the rights of the owner, so that publishers need none for
-- the sequences.
create function pgbus.may_ring() returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  pause  bigint := coalesce(pg_sequence_last_value('pgbus.ring_pause'), 0);
  now_ms bigint;
begin
  if pause = 0 then
    -- Two bells, so that a commit that takes long does not leave all the others without a ring. Not more: those who
    -- ring wait for one another's commits.
    return pg_try_advisory_xact_lock(1885823596, 0) or pg_try_advisory_xact_lock(1885823596, 1);
  end if;
  now_ms := extract(epoch from clock_timestamp()) * 1000;
  -- A clock that was set back by more than the pause silences nobody.
  if abs(now_ms - coalesce(pg_sequence_last_value('pgbus.last_ring'), 0)) < pause
     or not pg_try_advisory_xact_lock(1885823596, 0)
  then
    return false;
  end if;
  perform setval('pgbus.last_ring', now_ms);
  return true;
end
$$;

-- Sets the pause by the number of the workers, and returns it; called by each of them, each time that it tells that it lives. A
-- quarter of a millisecond for each: a hundred are then woken no more than forty times a second.
create function pgbus.pace_rings() returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  pause bigint := least(25, (
    select count(*) / 4 from pgbus.workers w where w.seen_at > clock_timestamp() - interval '20 seconds'));
begin
  if pause <> coalesce(pg_sequence_last_value('pgbus.ring_pause'), 0) then
    perform setval('pgbus.ring_pause', pause);
  end if;
  return pause;
end
$$;

create or replace function pgbus.ring() returns trigger
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  ignored text;
begin
  -- First, as it waits for other streams' locks, and meanwhile nobody could ring.
  if current_setting('pgbus.flush', true) <> '' then
    perform pgbus.flush();
  end if;
  if pgbus.may_ring() then
    perform pg_notify((select c.doorbell from pgbus.channel_names c),
                      pgbus.ring_payload(new, current_setting('pgbus.ring', true)));
  end if;
  -- Without this, what is appended after SET CONSTRAINTS ... IMMEDIATE would never ring.
  ignored := set_config('pgbus.ring', '', true);
  return null;
end
$$;
