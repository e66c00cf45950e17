-- The roll of the workers: each tells every few seconds that it lives, and what it counts. Unlogged, as it is worth nothing after a
-- crash; room is left on each page, so that an update stays there and no index is touched.
create unlogged table pgbus.workers (
  id          text collate "C" primary key,
  host        text        not null,
  pid         integer     not null,
  started_at  timestamptz not null,
  seen_at     timestamptz not null default clock_timestamp(),
  facts       jsonb       not null
) with (fillfactor = 50);
