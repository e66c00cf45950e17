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

-- Who is logged in at the console, on all workers: hashes of the cookies, and of the token that they were given for.
create unlogged table pgbus.operator_sessions (
  id         bytea       primary key,
  token      bytea       not null,
  created_at timestamptz not null default clock_timestamp()
);

-- Wrong operator tokens of the last minute, by the address that sent them.
create unlogged table pgbus.operator_guesses (
  address text collate "C" not null,
  at      timestamptz      not null default clock_timestamp()
);
create index on pgbus.operator_guesses (address, at);
