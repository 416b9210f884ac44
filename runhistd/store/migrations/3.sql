-- What is left of deleted runs, and which runs retention must leave alone.

ALTER TABLE history ADD COLUMN low_water INTEGER NOT NULL DEFAULT 0;

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

CREATE TABLE pins (
  run INTEGER PRIMARY KEY,
  pinned_us INTEGER NOT NULL
) STRICT;

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
