create table feed (id bigserial primary key, stream text not null, body text not null);
create index on feed (stream, id);
create function feed_changed() returns trigger language plpgsql as $$
begin
  perform pg_notify('feed', json_build_object('id', new.id, 'stream', new.stream, 'body', new.body)::text);
  return null;
end $$;
create trigger feed_changed after insert on feed for each row execute function feed_changed();
