-- Taking back the right to be connected. The notification on the control channel is a hint only; which owners it is about
-- workers read here, also when they come back from a time in which they did not listen.

-- An id says to a worker whether it has seen a revocation. By chance, as a sequence may go back, with a lost commit or a restored
-- dump, and a worker would take a new one for one that it knows.
create table pgbus.revocations (
  id          bigint primary key default ('x' || substr(md5(gen_random_uuid()::text), 1, 13))::bit(52)::bigint,
  owner       text collate "C" not null,
  revoked_at  timestamptz not null default clock_timestamp()
);

create index revocations_revoked_at on pgbus.revocations (revoked_at);

-- Ends every connection of an owner, as the authorize hook named it, on every worker, when the transaction commits. Who
-- connects after that is asked anew, so take the right back first, in the same transaction.
create function pgbus.disconnect(owner text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  if owner is null or owner = '' then
    raise exception 'bad owner: it must not be empty' using errcode = 'invalid_parameter_value';
  end if;
  -- Not in a transaction with one snapshot, which would fail on a row that another one has removed meanwhile.
  if current_setting('transaction_isolation') = 'read committed' then
    delete from pgbus.revocations r
    where r.id in (
      select o.id from pgbus.revocations o where o.revoked_at < clock_timestamp() - interval '1 hour'
      order by o.revoked_at limit 100 for update skip locked);
  end if;
  insert into pgbus.revocations (owner) values (owner);
  perform pg_notify(c.control, '["control"]') from pgbus.channel_names c where pgbus.can_notify();
end
$$;
