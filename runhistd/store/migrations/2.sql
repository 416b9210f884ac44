-- Who holds a lease, why a run lost its owner, and teams.

ALTER TABLE runs ADD COLUMN lease TEXT NOT NULL DEFAULT 'owned';
ALTER TABLE runs ADD COLUMN evidence TEXT;
ALTER TABLE runs ADD COLUMN team_id TEXT;
ALTER TABLE runs ADD COLUMN team_run_id TEXT;
ALTER TABLE runs ADD COLUMN team_epoch INTEGER;
CREATE INDEX runs_by_team ON runs (uid, team_run_id, run) WHERE team_run_id IS NOT NULL;
UPDATE runs SET lease = 'ended' WHERE status IN ('paused', 'completed', 'failed', 'cancelled');

CREATE TABLE holders (
  run INTEGER NOT NULL,
  pid INTEGER NOT NULL,
  identity TEXT NOT NULL,
  boot_id TEXT NOT NULL,
  PRIMARY KEY (run, pid, identity, boot_id)
) STRICT, WITHOUT ROWID;
-- Whoever was the owner of a running run: all that is known is its pid.
INSERT INTO holders (run, pid, identity, boot_id)
SELECT run, owner_pid, '', '' FROM runs WHERE status = 'running' AND owner_pid IS NOT NULL;

CREATE TABLE teams (
  uid INTEGER NOT NULL,
  team_run_id TEXT NOT NULL,
  team_epoch INTEGER NOT NULL,
  PRIMARY KEY (uid, team_run_id)
) STRICT, WITHOUT ROWID;
