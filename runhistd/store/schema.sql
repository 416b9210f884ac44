-- The tables of a history, version 7. Times are microseconds since 1970, UTC. JSON is text.

-- One row: which database this is, and the counters that only grow, whatever is deleted. The newest position is the
-- higher one of `position` and that of the newest event: what removes events writes it down first. At positions up to
-- `low_water` events may be missing of which no tombstone tells any more.
CREATE TABLE history (
  only INTEGER PRIMARY KEY CHECK (only = 1),
  instance_id TEXT NOT NULL,
  position INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  run INTEGER NOT NULL,
  low_water INTEGER NOT NULL DEFAULT 0
) STRICT;

-- A run: its name, its lease, and what its events amount to. `run` numbers runs in the order in which they began.
-- `ending` is run_id backwards, so that an index finds runs by how their names end. `lease` is owned, none or ended;
-- `evidence` is the data of the newest run.incomplete.
CREATE TABLE runs (
  run INTEGER PRIMARY KEY,
  uid INTEGER NOT NULL,
  namespace TEXT NOT NULL,
  run_id TEXT NOT NULL,
  ending TEXT NOT NULL,
  lease_key BLOB NOT NULL,
  owner_pid INTEGER,
  status TEXT NOT NULL,
  workflow TEXT,
  agent_id TEXT,
  parent_run_id TEXT,
  title TEXT,
  current_step TEXT,
  error TEXT,
  gate_seq INTEGER,
  gate_name TEXT,
  gate_prompt TEXT,
  gate_answer_seq INTEGER,
  epoch INTEGER NOT NULL,
  last_seq INTEGER NOT NULL,
  checkpoint_seq INTEGER,
  started_us INTEGER NOT NULL,
  ended_us INTEGER,
  created_us INTEGER NOT NULL,
  updated_us INTEGER NOT NULL,
  closed_us INTEGER,
  input_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  cache_read_input_tokens INTEGER NOT NULL,
  cache_creation_input_tokens INTEGER NOT NULL,
  reasoning_output_tokens INTEGER NOT NULL,
  cost_microcents INTEGER NOT NULL,
  lease TEXT NOT NULL DEFAULT 'owned',
  evidence TEXT,
  team_id TEXT,
  team_run_id TEXT,
  team_epoch INTEGER
) STRICT;
CREATE UNIQUE INDEX runs_by_name ON runs (uid, namespace, run_id);
CREATE INDEX runs_by_beginning ON runs (uid, run_id);
CREATE INDEX runs_by_ending ON runs (uid, ending);
CREATE INDEX runs_by_status ON runs (uid, status, run);
CREATE INDEX runs_by_team ON runs (uid, team_run_id, run) WHERE team_run_id IS NOT NULL;
CREATE INDEX runs_by_parent ON runs (uid, parent_run_id, run) WHERE parent_run_id IS NOT NULL;

-- The processes that hold a run's lease.
CREATE TABLE holders (
  run INTEGER NOT NULL,
  pid INTEGER NOT NULL,
  identity TEXT NOT NULL,
  boot_id TEXT NOT NULL,
  PRIMARY KEY (run, pid, identity, boot_id)
) STRICT, WITHOUT ROWID;

-- The highest epoch seen of each execution of a team.
CREATE TABLE teams (
  uid INTEGER NOT NULL,
  team_run_id TEXT NOT NULL,
  team_epoch INTEGER NOT NULL,
  PRIMARY KEY (uid, team_run_id)
) STRICT, WITHOUT ROWID;

-- Parts of a run that may be large, kept apart so that an append does not rewrite them:
-- definition, metadata, state, output.
CREATE TABLE documents (
  run INTEGER NOT NULL,
  name TEXT NOT NULL,
  document TEXT NOT NULL,
  PRIMARY KEY (run, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE steps (
  run INTEGER NOT NULL,
  step_id TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  name TEXT NOT NULL,
  parent_step_id TEXT,
  status TEXT NOT NULL,
  error TEXT,
  first_seq INTEGER NOT NULL,
  started_us INTEGER,
  ended_us INTEGER,
  PRIMARY KEY (run, step_id, attempt)
) STRICT, WITHOUT ROWID;
CREATE INDEX steps_by_order ON steps (run, first_seq);
CREATE INDEX steps_open ON steps (run) WHERE status = 'running';

-- What a step's attempt used of a model; '' and 0 stand for none.
CREATE TABLE usage (
  run INTEGER NOT NULL,
  step_id TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  provider TEXT NOT NULL,
  model TEXT NOT NULL,
  input_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  cache_read_input_tokens INTEGER NOT NULL,
  cache_creation_input_tokens INTEGER NOT NULL,
  reasoning_output_tokens INTEGER NOT NULL,
  cost_microcents INTEGER NOT NULL,
  PRIMARY KEY (run, step_id, attempt, provider, model)
) STRICT, WITHOUT ROWID;

-- The highest snapshot seen, by response_id; '' is the run's own.
CREATE TABLE usage_marks (
  run INTEGER NOT NULL,
  response_id TEXT NOT NULL,
  input_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  cache_read_input_tokens INTEGER NOT NULL,
  cache_creation_input_tokens INTEGER NOT NULL,
  reasoning_output_tokens INTEGER NOT NULL,
  cost_microcents INTEGER NOT NULL,
  PRIMARY KEY (run, response_id)
) STRICT, WITHOUT ROWID;

-- The log. `position` comes from the history's counter, so a deleted one is never given again. `data_blob` is the SHA-256
-- of content that is the event's data, of `data_size` bytes; `data` then has what its kind gives a meaning to, no more.
CREATE TABLE events (
  position INTEGER PRIMARY KEY,
  run INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  type TEXT NOT NULL,
  kind TEXT NOT NULL,
  key TEXT,
  writer BLOB,
  n INTEGER,
  step_id TEXT,
  attempt INTEGER,
  usage TEXT,
  time_us INTEGER,
  received_us INTEGER NOT NULL,
  data TEXT NOT NULL,
  data_blob BLOB,
  data_size INTEGER
) STRICT;
CREATE UNIQUE INDEX events_by_run ON events (run, seq);
CREATE INDEX events_by_blob ON events (run, data_blob) WHERE data_blob IS NOT NULL;

-- How many events of a writer are stored.
CREATE TABLE writers (
  run INTEGER NOT NULL,
  writer BLOB NOT NULL,
  last_n INTEGER NOT NULL,
  PRIMARY KEY (run, writer)
) STRICT, WITHOUT ROWID;

-- The events that have a key of the engine's own.
CREATE TABLE keys (
  run INTEGER NOT NULL,
  key TEXT NOT NULL,
  seq INTEGER NOT NULL,
  PRIMARY KEY (run, key)
) STRICT, WITHOUT ROWID;

-- What is left of deleted runs: their names and lease keys, so that a stale writer is refused, and where their events lay,
-- so that followers hear of the gap. `cleared` is 0 until all other rows of the run are gone.
CREATE TABLE tombstones (
  run INTEGER PRIMARY KEY,
  uid INTEGER NOT NULL,
  namespace TEXT NOT NULL,
  run_id TEXT NOT NULL,
  agent_id TEXT,
  team_run_id TEXT,
  lease_key BLOB NOT NULL,
  epoch INTEGER NOT NULL,
  first_position INTEGER NOT NULL,
  last_position INTEGER NOT NULL,
  rule TEXT NOT NULL,
  deleted_us INTEGER NOT NULL,
  cleared INTEGER NOT NULL
) STRICT;
CREATE INDEX tombstones_by_name ON tombstones (uid, namespace, run_id, run);
CREATE INDEX tombstones_by_position ON tombstones (last_position);
CREATE INDEX tombstones_uncleared ON tombstones (run) WHERE cleared = 0;

-- The runs that retention must leave alone.
CREATE TABLE pins (
  run INTEGER PRIMARY KEY,
  pinned_us INTEGER NOT NULL
) STRICT;

-- Of which kinds events of a closed run were dropped, how many, and between which of its events. `done`: all that may be.
CREATE TABLE compactions (
  run INTEGER NOT NULL,
  kind TEXT NOT NULL,
  events INTEGER NOT NULL,
  from_seq INTEGER,
  to_seq INTEGER,
  from_position INTEGER,
  to_position INTEGER,
  done INTEGER NOT NULL,
  PRIMARY KEY (run, kind)
) STRICT, WITHOUT ROWID;
CREATE INDEX compactions_by_position ON compactions (to_position);

-- Content that users have given us, as files beside the database; and the runs that have artifacts or events of it.
CREATE TABLE blobs (
  uid INTEGER NOT NULL,
  sha256 BLOB NOT NULL,
  size INTEGER NOT NULL,
  stored_us INTEGER NOT NULL,
  PRIMARY KEY (uid, sha256)
) STRICT, WITHOUT ROWID;

CREATE TABLE blob_uses (
  run INTEGER NOT NULL,
  sha256 BLOB NOT NULL,
  PRIMARY KEY (run, sha256)
) STRICT, WITHOUT ROWID;
CREATE INDEX blob_uses_by_blob ON blob_uses (sha256);

-- How many runs each user has, and how many bytes of events and of content: what limits per user are held against. Behind
-- the highest `position` here events and runs are not counted yet.
CREATE TABLE users (
  uid INTEGER PRIMARY KEY,
  runs INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  position INTEGER NOT NULL DEFAULT 0
) STRICT;
