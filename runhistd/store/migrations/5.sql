-- The children of a run are found without a look at every run.

CREATE INDEX runs_by_parent ON runs (uid, parent_run_id, run) WHERE parent_run_id IS NOT NULL;
