"""Every statement that the daemon runs, by what it is for. Lists of values are passed as JSON text."""

from __future__ import annotations

from typing import Final

from ..model.quota import EVENT_BYTES

# --- the log ---

# The newest position is that of the newest event, unless it is gone; what removes events writes down what it was.
_NEWEST_POSITION: Final = "max(position, (SELECT coalesce(max(position), 0) FROM events))"
READ_HISTORY: Final = f"SELECT instance_id, {_NEWEST_POSITION}, epoch, run FROM history"  # noqa: S608
INSERT_HISTORY: Final = "INSERT INTO history (only, instance_id, position, epoch, run) VALUES (1, ?, 0, 0, 0)"
SAVE_COUNTERS: Final = "UPDATE history SET position = ?, epoch = ?, run = ?"

_HEAD_COLUMNS: Final = """
  run, uid, namespace, run_id, lease_key, owner_pid, status, workflow, agent_id, parent_run_id, title, current_step,
  error, gate_seq, gate_name, gate_prompt, gate_answer_seq, epoch, last_seq, checkpoint_seq, started_us, ended_us,
  created_us, updated_us, closed_us, input_tokens, output_tokens, cache_read_input_tokens,
  cache_creation_input_tokens, reasoning_output_tokens, cost_microcents, lease, team_id, team_run_id, team_epoch
"""
FIND_RUN: Final = f"SELECT {_HEAD_COLUMNS} FROM runs WHERE uid = ? AND namespace = ? AND run_id = ?"  # noqa: S608
INSERT_RUN: Final = f"INSERT INTO runs ({_HEAD_COLUMNS}, ending) VALUES ({', '.join('?' * 36)})"  # noqa: S608
# What nearly every append changes, without touching an index.
SAVE_PROGRESS: Final = """
UPDATE runs SET last_seq = ?, updated_us = ?, current_step = ?, input_tokens = ?, output_tokens = ?,
  cache_read_input_tokens = ?, cache_creation_input_tokens = ?, reasoning_output_tokens = ?, cost_microcents = ?
WHERE run = ?
"""
SAVE_STATUS: Final = """
UPDATE runs SET status = ?, title = ?, error = ?, gate_seq = ?, gate_name = ?, gate_prompt = ?, gate_answer_seq = ?,
  epoch = ?, checkpoint_seq = ?, ended_us = ?, closed_us = ?
WHERE run = ?
"""
SAVE_LEASE: Final = "UPDATE runs SET lease_key = ?, owner_pid = ?, lease = ? WHERE run = ?"
SAVE_EVIDENCE: Final = "UPDATE runs SET evidence = ? WHERE run = ?"
LOAD_HOLDERS: Final = "SELECT pid, identity, boot_id FROM holders WHERE run = ?"
DELETE_HOLDERS: Final = "DELETE FROM holders WHERE run = ?"
INSERT_HOLDER: Final = "INSERT INTO holders (run, pid, identity, boot_id) VALUES (?, ?, ?, ?)"
ALL_HOLDERS: Final = """
SELECT uid, namespace, run_id, pid, identity, boot_id FROM holders JOIN runs USING (run) ORDER BY run
"""
LOAD_TEAM: Final = "SELECT team_epoch FROM teams WHERE uid = ? AND team_run_id = ?"
SAVE_TEAM: Final = "INSERT OR REPLACE INTO teams (uid, team_run_id, team_epoch) VALUES (?, ?, ?)"
DATA_OF_SEQ: Final = "SELECT data FROM events WHERE run = ? AND seq = ?"

LOAD_DOCUMENTS: Final = "SELECT name, document FROM documents WHERE run = ? AND name <> 'definition'"
SAVE_DOCUMENT: Final = """
INSERT INTO documents (run, name, document) VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET document = excluded.document
"""
DELETE_DOCUMENT: Final = "DELETE FROM documents WHERE run = ? AND name = ?"

_STEP_COLUMNS: Final = "step_id, attempt, name, parent_step_id, status, error, first_seq, started_us, ended_us"
LOAD_OPEN_STEPS: Final = f"""
SELECT {_STEP_COLUMNS} FROM steps WHERE run = ?1 AND step_id IN
  (SELECT step_id FROM steps WHERE run = ?1 AND status = 'running')
"""  # noqa: S608
LOAD_STEP: Final = f"SELECT {_STEP_COLUMNS} FROM steps WHERE run = ? AND step_id = ?"  # noqa: S608
SAVE_STEP: Final = f"""
INSERT INTO steps (run, {_STEP_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET name = excluded.name, parent_step_id = excluded.parent_step_id, status = excluded.status,
  error = excluded.error, started_us = excluded.started_us, ended_us = excluded.ended_us
"""  # noqa: S608

_AMOUNTS: Final = """
  input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens, reasoning_output_tokens,
  cost_microcents
"""
ADD_USAGE: Final = f"""
INSERT INTO usage (run, step_id, attempt, provider, model, {_AMOUNTS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET input_tokens = input_tokens + excluded.input_tokens,
  output_tokens = output_tokens + excluded.output_tokens,
  cache_read_input_tokens = cache_read_input_tokens + excluded.cache_read_input_tokens,
  cache_creation_input_tokens = cache_creation_input_tokens + excluded.cache_creation_input_tokens,
  reasoning_output_tokens = reasoning_output_tokens + excluded.reasoning_output_tokens,
  cost_microcents = cost_microcents + excluded.cost_microcents
"""  # noqa: S608
LOAD_MARK: Final = f"SELECT {_AMOUNTS} FROM usage_marks WHERE run = ? AND response_id = ?"  # noqa: S608
SAVE_MARK: Final = f"""
INSERT OR REPLACE INTO usage_marks (run, response_id, {_AMOUNTS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""  # noqa: S608

# All columns in their order. Short, because apsw looks its text up again for every row.
INSERT_EVENT: Final = "INSERT INTO events VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,CAST(? AS TEXT),?,?)"
LOAD_WRITER: Final = "SELECT last_n FROM writers WHERE run = ? AND writer = ?"
SAVE_WRITER: Final = "INSERT OR REPLACE INTO writers (run, writer, last_n) VALUES (?, ?, ?)"
INSERT_KEY: Final = "INSERT INTO keys (run, key, seq) VALUES (?, ?, ?)"
FIND_KEY: Final = """
SELECT events.seq, type, kind, step_id, attempt, usage, data, data_blob, data_size
FROM keys JOIN events ON events.run = keys.run AND events.seq = keys.seq WHERE keys.run = ? AND keys.key = ?
"""

# --- importing ---

EVENT_AT: Final = """
SELECT position, run, seq, epoch, type, kind, key, writer, n, step_id, attempt, usage, time_us, received_us, data, data_blob,
  data_size
FROM events WHERE run = ? AND seq = ?
"""

# --- restoring ---

RENEW_HISTORY: Final = "UPDATE history SET instance_id = ?, epoch = max(epoch, ?)"
OWNED_RUNS: Final = """
SELECT uid, namespace, run_id, owner_pid FROM runs
WHERE status IN ('pending', 'running') AND lease <> 'none' ORDER BY run
"""

# --- recovering ---

SALVAGE_EVENT: Final = f"INSERT OR IGNORE INTO events VALUES ({', '.join('?' * 17)})"  # noqa: S608
SALVAGE_TOMBSTONE: Final = f"INSERT INTO tombstones VALUES ({', '.join('?' * 13)})"  # noqa: S608
SALVAGE_COMPACTION: Final = f"INSERT INTO compactions VALUES ({', '.join('?' * 8)})"  # noqa: S608
SALVAGED_RUNS: Final = "SELECT DISTINCT run FROM events ORDER BY run"
SALVAGED_SEQS: Final = "SELECT seq, position, epoch FROM events WHERE run = ? ORDER BY seq"
DELETE_DELETED: Final = "DELETE FROM events WHERE run IN (SELECT run FROM tombstones)"
DELETE_EVENT: Final = "DELETE FROM events WHERE position = ?"
POSITIONS_BELOW: Final = "SELECT position FROM events WHERE position < ? ORDER BY position DESC"
NEWEST_POSITION: Final = "SELECT coalesce(max(position), 0) FROM events"
OLDEST_EPOCH: Final = "SELECT epoch FROM events WHERE run = ? ORDER BY seq LIMIT 1"
NEWEST_EPOCH: Final = "SELECT coalesce(max(epoch), 0) FROM events WHERE run = ?"
SALVAGE_USES: Final = """
INSERT OR IGNORE INTO blob_uses (run, sha256)
SELECT run, data_blob FROM events WHERE data_blob IS NOT NULL
UNION SELECT run, unhex(data ->> '$.blob') FROM events WHERE kind = 'artifact' AND data ->> '$.blob' IS NOT NULL
"""
SALVAGED_USES: Final = "SELECT DISTINCT uid, sha256 FROM blob_uses JOIN runs USING (run)"
SAVE_HISTORY: Final = "UPDATE history SET position = ?, epoch = ?, run = ?, low_water = ?"

# --- removing ---

# A run as a decision to delete it must find it.
TO_DELETE: Final = """
SELECT run, status, coalesce(closed_us, updated_us), run IN (SELECT run FROM pins) FROM runs
WHERE uid = ? AND namespace = ? AND run_id = ?
"""
INSERT_TOMBSTONE: Final = """
INSERT INTO tombstones (run, uid, namespace, run_id, agent_id, team_run_id, lease_key, epoch, first_position,
  last_position, rule, deleted_us, cleared)
SELECT run, uid, namespace, run_id, agent_id, team_run_id, lease_key, epoch,
  (SELECT position FROM events WHERE events.run = runs.run ORDER BY seq LIMIT 1),
  (SELECT position FROM events WHERE events.run = runs.run ORDER BY seq DESC LIMIT 1), ?, ?, 0
FROM runs WHERE run = ?
"""
DELETE_RUN: Final = "DELETE FROM runs WHERE run = ?"
DELETE_PIN: Final = "DELETE FROM pins WHERE run = ?"
INSERT_PIN: Final = "INSERT OR IGNORE INTO pins (run, pinned_us) VALUES (?, ?)"
FIND_TOMBSTONE: Final = """
SELECT lease_key, rule, deleted_us FROM tombstones WHERE uid = ? AND namespace = ? AND run_id = ? ORDER BY run DESC
"""
UNCLEARED: Final = "SELECT run, uid FROM tombstones WHERE cleared = 0 ORDER BY run LIMIT ?"
_UNCLEARED_UP_TO: Final = "cleared = 0 AND run <= :last_run"
SET_CLEARED: Final = f"UPDATE tombstones SET cleared = 1 WHERE {_UNCLEARED_UP_TO}"  # noqa: S608
# What an event counts for: `bytes_of` in the model says why.
_EVENT_BYTES: Final = f"""octet_length(data) + coalesce(octet_length(usage), 0) + coalesce(octet_length(key), 0)
  + {EVENT_BYTES}"""


_OF_UNCLEARED: Final = f"USING (run) WHERE {_UNCLEARED_UP_TO}"
_UNCLEARED_WITH: Final = "tombstones INDEXED BY tombstones_uncleared CROSS JOIN"


def _clear(table: str, key: str, size: str) -> str:
    """How the next rows of uncleared runs are removed from a table; what comes back is whose they were, and their bytes."""
    rows = f"SELECT {key} FROM {_UNCLEARED_WITH} {table} {_OF_UNCLEARED} LIMIT :limit"  # noqa: S608
    return f"DELETE FROM {table} WHERE ({key}) IN ({rows}) RETURNING run, {size}"  # noqa: S608


CLEAR_EVENTS: Final = _clear("events", "position", _EVENT_BYTES)
# The parts of runs, by their tables.
CLEAR_PARTS: Final = {
    "events": CLEAR_EVENTS,
    "documents": _clear("documents", "run, name", "length(document)"),
    "steps": _clear("steps", "run, step_id, attempt", "100"),
    "usage": _clear("usage", "run, step_id, attempt, provider, model", "100"),
    "usage_marks": _clear("usage_marks", "run, response_id", "100"),
    "writers": _clear("writers", "run, writer", "30"),
    "keys": _clear("keys", "run, key", "length(key) + 20"),
    "holders": _clear("holders", "run, pid, identity, boot_id", "60"),
    "compactions": _clear("compactions", "run, kind", "60"),
    "blob_uses": _clear("blob_uses", "run, sha256", "60"),
}
_THERE: Final = (f"EXISTS (SELECT 1 FROM {_UNCLEARED_WITH} {table} {_OF_UNCLEARED})" for table in CLEAR_PARTS)  # noqa: S608
# Which of them there are, at a fraction of what it costs to find nothing to remove.
UNCLEARED_PARTS: Final = f"SELECT {', '.join(_THERE)}"
# What may be dropped: it has no effect on what the run amounts to, and no key that must go on telling a repeat.
_DROPPABLE: Final = "run = :run AND kind = :kind AND key IS NULL AND usage IS NULL"
DROP_EVENTS: Final = f"""
DELETE FROM events WHERE position IN
  (SELECT position FROM events WHERE {_DROPPABLE} AND seq > :after_seq ORDER BY seq LIMIT :limit)
RETURNING seq, position, data_blob, {_EVENT_BYTES}
"""  # noqa: S608
DROPPABLE_BYTES: Final = f"""
SELECT sum(length(data) + coalesce(data_size, 0) + 100) FROM events WHERE {_DROPPABLE}
"""  # noqa: S608
COMPACTED_UP_TO: Final = "SELECT to_seq FROM compactions WHERE run = ? AND kind = ?"
SAVE_COMPACTION: Final = """
INSERT INTO compactions (run, kind, events, from_seq, to_seq, from_position, to_position, done)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET events = events + excluded.events, from_seq = coalesce(from_seq, excluded.from_seq),
  to_seq = coalesce(excluded.to_seq, to_seq), from_position = coalesce(from_position, excluded.from_position),
  to_position = coalesce(excluded.to_position, to_position), done = excluded.done
"""
COMPACTIONS_DONE: Final = "SELECT run, kind FROM compactions WHERE done = 1"
COMPACTIONS_OF_RUN: Final = """
SELECT kind, events, from_seq, to_seq, from_position, to_position FROM compactions WHERE run = ? AND events > 0
"""
COMPACTIONS_OF_PAGE: Final = """
SELECT namespace, run_id, from_position, to_position, 'events.' || kind FROM compactions JOIN runs USING (run)
WHERE run = :run AND to_seq > :after_seq AND to_seq <= :until_seq
  AND (:kinds IS NULL OR kind = 'lost' OR kind IN (SELECT value FROM json_each(:kinds)))
ORDER BY to_position
"""
TOMBSTONES: Final = "SELECT count(*) FROM tombstones"
MERGE_TOMBSTONES: Final = """
DELETE FROM tombstones WHERE run IN (SELECT run FROM tombstones WHERE cleared = 1 ORDER BY last_position LIMIT ?)
RETURNING last_position
"""
RAISE_LOW_WATER: Final = "UPDATE history SET low_water = max(low_water, ?)"
FREE_PAGES: Final = "PRAGMA freelist_count"
LOW_WATER: Final = "SELECT low_water FROM history"
GAPS: Final = """
SELECT namespace, run_id, first_position AS from_position, last_position AS to_position, rule FROM tombstones
WHERE uid = :uid AND last_position > :position AND last_position <= :until
  AND (:namespace IS NULL OR namespace = :namespace) AND (:run_id IS NULL OR run_id = :run_id)
  AND (:agent_id IS NULL OR agent_id = :agent_id) AND (:team_run_id IS NULL OR team_run_id = :team_run_id)
UNION ALL SELECT namespace, run_id, from_position, to_position, 'events.' || kind
FROM compactions INDEXED BY compactions_by_position CROSS JOIN runs USING (run)
WHERE uid = :uid AND to_position > :position AND to_position <= :until
  AND (:namespace IS NULL OR namespace = :namespace) AND (:run_id IS NULL OR run_id = :run_id)
  AND (:agent_id IS NULL OR agent_id = :agent_id) AND (:team_run_id IS NULL OR team_run_id = :team_run_id)
  AND (:kinds IS NULL OR kind = 'lost' OR kind IN (SELECT value FROM json_each(:kinds)))
ORDER BY to_position LIMIT :limit
"""
PINNED: Final = "SELECT count(*) FROM pins WHERE run = ?"

CANDIDATES: Final = """
SELECT run, uid, namespace, run_id, agent_id, workflow, status, coalesce(closed_us, updated_us),
  run IN (SELECT run FROM pins)
FROM runs WHERE status IN (SELECT value FROM json_each(?))
"""
# About what a run takes on the disk: its events, with what their indexes and other rows add.
SIZE_OF_RUN: Final = """
SELECT (SELECT sum(length(data) + coalesce(length(usage), 0) + 100) FROM events WHERE run = runs.run)
  + (SELECT coalesce(sum(size), 0) FROM blob_uses JOIN blobs USING (sha256)
     WHERE blob_uses.run = runs.run AND blobs.uid = runs.uid)
FROM runs WHERE run = ?
"""
USED_BYTES: Final = """
SELECT (page_count - freelist_count) * page_size + (SELECT coalesce(sum(size), 0) FROM blobs)
FROM pragma_page_count, pragma_freelist_count, pragma_page_size
"""

# --- what each user has stored ---

LOAD_USERS: Final = "SELECT uid, runs, bytes FROM users"
USERS_POSITION: Final = "SELECT coalesce(max(position), 0) FROM users"
SAVE_USER: Final = """
INSERT INTO users (uid, runs, bytes, position) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET runs = excluded.runs, bytes = excluded.bytes, position = excluded.position
"""
COUNT_BEHIND_USERS: Final = f"""
SELECT uid, sum(seq = 1), sum({_EVENT_BYTES}) FROM events CROSS JOIN runs USING (run)
WHERE position > ({USERS_POSITION}) GROUP BY uid
"""  # noqa: S608
COUNT_USERS: Final = f"""
SELECT uid, sum(runs), sum(bytes) FROM (
  SELECT uid, count(*) AS runs, 0 AS bytes FROM runs GROUP BY uid
  UNION ALL SELECT uid, 0, sum(size) FROM blobs GROUP BY uid
  UNION ALL SELECT uid, 0, sum({_EVENT_BYTES})
  FROM events JOIN (SELECT run, uid FROM runs UNION ALL SELECT run, uid FROM tombstones WHERE cleared = 0) USING (run)
  GROUP BY uid
) GROUP BY uid
"""  # noqa: S608
RECOUNT_USERS: Final = f"DELETE FROM users; INSERT INTO users (uid, runs, bytes) {COUNT_USERS}; \
UPDATE users SET position = (SELECT {_NEWEST_POSITION} FROM history)"  # noqa: S608

# --- artifacts and blobs ---

KEEP_BLOB: Final = """
INSERT INTO blobs (uid, sha256, size, stored_us) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET stored_us = excluded.stored_us
"""
_UNUSED: Final = """NOT EXISTS (SELECT 1 FROM blob_uses LEFT JOIN runs USING (run)
  WHERE blob_uses.sha256 = blobs.sha256 AND (runs.uid IS NULL OR runs.uid = blobs.uid))"""
DROP_BLOB: Final = f"DELETE FROM blobs WHERE uid = ? AND sha256 = ? AND stored_us <= ? AND {_UNUSED} RETURNING size"  # noqa: S608
UNUSED_BLOBS: Final = f"SELECT uid, sha256 FROM blobs WHERE stored_us <= ? AND {_UNUSED}"  # noqa: S608
HOLDERS_OF_BLOB: Final = "SELECT count(*) FROM blobs WHERE sha256 = ?"
FIND_BLOB: Final = "SELECT size FROM blobs WHERE uid = ? AND sha256 = ?"
ALL_BLOBS: Final = "SELECT DISTINCT sha256 FROM blobs"
# Of these contents the run has the use no more, except those that an event which is left still has.
END_BLOB_USES: Final = """
DELETE FROM blob_uses WHERE run = :run AND sha256 IN (SELECT unhex(value) FROM json_each(:blobs))
  AND sha256 NOT IN (SELECT data_blob FROM events WHERE run = :run AND data_blob IS NOT NULL)
  AND sha256 NOT IN (SELECT unhex(data ->> '$.blob') FROM events WHERE run = :run AND kind = 'artifact'
                     AND data ->> '$.blob' IS NOT NULL)
"""
USE_BLOB: Final = "INSERT OR IGNORE INTO blob_uses (run, sha256) VALUES (?, ?)"
USED_BLOB: Final = """
SELECT size FROM blobs JOIN blob_uses USING (sha256) WHERE blobs.uid = ? AND blobs.sha256 = ? AND blob_uses.run = ?
"""
BLOB_TOTALS: Final = "SELECT count(*), coalesce(sum(size), 0) FROM (SELECT DISTINCT sha256, size FROM blobs)"
_ARTIFACT_COLUMNS: Final = """
  seq, coalesce(data ->> '$.name', data ->> '$.path'),
  CASE WHEN data ->> '$.path' LIKE '/%' THEN data ->> '$.path' ELSE
    coalesce((SELECT rtrim(started.data ->> '$.root', '/') || '/' FROM events AS started
              WHERE started.run = events.run AND started.seq = 1), '') || (data ->> '$.path') END,
  data ->> '$.kind', data ->> '$.size', data ->> '$.mtime_us', data ->> '$.sha256', data ->> '$.blob'
"""
ARTIFACTS: Final = f"""
SELECT {_ARTIFACT_COLUMNS} FROM events WHERE run = :run AND kind = 'artifact' AND seq > :after_seq ORDER BY seq LIMIT :limit
"""  # noqa: S608
ARTIFACT_NAMED: Final = f"""
SELECT {_ARTIFACT_COLUMNS} FROM events WHERE run = :run AND kind = 'artifact'
  AND coalesce(data ->> '$.name', data ->> '$.path') = :name ORDER BY seq DESC LIMIT 1
"""  # noqa: S608

# --- reading ---

RUN_NUMBER: Final = "SELECT run FROM runs WHERE uid = ? AND namespace = ? AND run_id = ?"
# By the figures of users and what began behind them, since counting looks at every run.
COUNT_RUNS: Final = f"""
SELECT (SELECT coalesce(sum(runs), 0) FROM users WHERE :uid IS NULL OR uid = :uid) + (
  SELECT count(*) FROM events CROSS JOIN runs USING (run)
  WHERE events.position > ({USERS_POSITION}) AND seq = 1 AND (:uid IS NULL OR uid = :uid))
"""  # noqa: S608
COUNT_STATUSES: Final = "SELECT status, count(*) FROM runs WHERE uid = ? GROUP BY status"
SPEC_AND_PIN: Final = "SELECT data, run IN (SELECT run FROM pins) FROM events WHERE run = ? AND seq = 1"
DOCUMENTS: Final = "SELECT name, document FROM documents WHERE run = ?"

# What no list shows as it is, and then the members of views.Run in their order.
_VIEW_COLUMNS: Final = f"""
  run, evidence, checkpoint_seq, gate_seq, gate_name, gate_prompt, gate_answer_seq,
  uid, namespace, run_id, status, workflow, agent_id, team_id, team_run_id, team_epoch, parent_run_id, title, current_step,
  error, epoch, lease, owner_pid, last_seq, started_us, ended_us, created_us, updated_us, closed_us, {_AMOUNTS}
"""
VIEW_RUN: Final = f"SELECT {_VIEW_COLUMNS} FROM runs WHERE uid = ? AND namespace = ? AND run_id = ?"  # noqa: S608
_WANTED: Final = """
  (:namespace IS NULL OR namespace = :namespace) AND (:agent_id IS NULL OR agent_id = :agent_id)
  AND (:workflow IS NULL OR workflow = :workflow)
  AND (:parent_run_id IS NULL OR parent_run_id = :parent_run_id)
  AND (:team_id IS NULL OR team_id = :team_id) AND (:team_run_id IS NULL OR team_run_id = :team_run_id)
  AND (:since_us IS NULL OR created_us >= :since_us)
"""
# By run, which is the newest first; by an index of uid every run would be found, and then sorted.
LIST_RUNS: Final = f"""
SELECT {_VIEW_COLUMNS} FROM runs NOT INDEXED WHERE uid = :uid AND run < :before AND {_WANTED} ORDER BY run DESC LIMIT :limit
"""  # noqa: S608
LIST_ALL_RUNS: Final = f"""
SELECT {_VIEW_COLUMNS} FROM runs NOT INDEXED
WHERE run < :before AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses))) AND {_WANTED}
ORDER BY run DESC LIMIT :limit
"""  # noqa: S608
LIST_RUNS_OF_TEAM: Final = f"""
SELECT {_VIEW_COLUMNS} FROM runs INDEXED BY runs_by_team
WHERE uid = :uid AND team_run_id = :team_run_id AND run < :before
  AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses))) AND {_WANTED}
ORDER BY run DESC LIMIT :limit
"""  # noqa: S608
LIST_RUNS_OF_PARENT: Final = f"""
SELECT {_VIEW_COLUMNS} FROM runs INDEXED BY runs_by_parent
WHERE uid = :uid AND parent_run_id = :parent_run_id AND run < :before
  AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses))) AND {_WANTED}
ORDER BY run DESC LIMIT :limit
"""  # noqa: S608
LIST_RUNS_OF_STATUS: Final = f"""
SELECT {_VIEW_COLUMNS} FROM runs INDEXED BY runs_by_status
WHERE uid = :uid AND status = :status AND run < :before AND {_WANTED} ORDER BY run DESC LIMIT :limit
"""  # noqa: S608
# A whole name comes first, so that the limit never hides it behind names that only begin or end like it.
LIST_RUNS_NAMED: Final = f"""
SELECT {_VIEW_COLUMNS} FROM runs WHERE run IN (
    SELECT run FROM runs WHERE uid = :uid AND run_id >= :name AND run_id < :name || char(0x10ffff)
    UNION SELECT run FROM runs WHERE uid = :uid AND ending >= :ending AND ending < :ending || char(0x10ffff))
  AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses))) AND {_WANTED}
ORDER BY run_id = :name DESC, run DESC LIMIT :limit
"""  # noqa: S608
# The endings that stand before and behind that of each run, all in one statement: a list asks for fifty.
NEIGHBOURS: Final = """
SELECT run,
  (SELECT ending FROM runs WHERE uid = listed.uid AND ending < listed.ending ORDER BY ending DESC LIMIT 1),
  (SELECT ending FROM runs WHERE uid = listed.uid AND ending > listed.ending ORDER BY ending LIMIT 1)
FROM runs AS listed WHERE run IN (SELECT value FROM json_each(?))
"""

STEPS: Final = f"SELECT {_STEP_COLUMNS} FROM steps WHERE run = ? AND first_seq > ? ORDER BY first_seq LIMIT ?"  # noqa: S608
USAGE: Final = f"""
SELECT step_id, attempt, provider, model, {_AMOUNTS} FROM usage
WHERE run = ? AND (step_id, attempt, provider, model) > (?, ?, ?, ?)
ORDER BY step_id, attempt, provider, model LIMIT ?
"""  # noqa: S608
USAGE_TOTALS: Final = f"SELECT {_AMOUNTS} FROM runs WHERE run = ?"  # noqa: S608

# The data as bytes: text would be decoded only to be encoded again.
_EVENT_COLUMNS: Final = """
  position, run, seq, events.epoch, type, kind, key, writer, n, step_id, attempt, usage, time_us,
  received_us, CAST(data AS BLOB), data_blob, data_size
"""
_EVENT_WANTED: Final = """
  (:types IS NULL OR type IN (SELECT value FROM json_each(:types)))
  AND (:kinds IS NULL OR kind IN (SELECT value FROM json_each(:kinds)))
"""
EVENTS_OF_RUN: Final = f"""
SELECT {_EVENT_COLUMNS} FROM events WHERE run = :run AND seq > :after_seq AND {_EVENT_WANTED}
ORDER BY seq LIMIT :limit
"""  # noqa: S608
HEAD_POSITION: Final = f"SELECT {_NEWEST_POSITION} FROM history"  # noqa: S608
CHECKPOINT_SEQ: Final = "SELECT checkpoint_seq FROM runs WHERE run = ?"
# Where the first event with at least that seq lies; a run's seqs and positions grow together.
POSITION_OF_SEQ: Final = "SELECT seq, position FROM events WHERE run = ? AND seq >= ? ORDER BY seq LIMIT 1"
LAST_SEQ: Final = "SELECT last_seq FROM runs WHERE run = ?"
EVENTS_AFTER: Final = f"""
SELECT namespace, run_id, {_EVENT_COLUMNS} FROM events CROSS JOIN runs USING (run)
WHERE uid = :uid AND events.position > :position AND events.position <= :until
  AND (:namespace IS NULL OR namespace = :namespace) AND (:run_id IS NULL OR run_id = :run_id)
  AND (:agent_id IS NULL OR agent_id = :agent_id)
  AND (:team_run_id IS NULL OR team_run_id = :team_run_id) AND {_EVENT_WANTED}
ORDER BY events.position LIMIT :limit
"""  # noqa: S608
TAIL: Final = f"""
SELECT events.position FROM events CROSS JOIN runs USING (run)
WHERE uid = :uid AND (:namespace IS NULL OR namespace = :namespace) AND (:run_id IS NULL OR run_id = :run_id)
  AND (:agent_id IS NULL OR agent_id = :agent_id)
  AND (:team_run_id IS NULL OR team_run_id = :team_run_id) AND {_EVENT_WANTED}
ORDER BY events.position DESC LIMIT 1 OFFSET :skip
"""  # noqa: S608
TAIL_OF_RUN: Final = f"""
SELECT events.position FROM events INDEXED BY events_by_run
WHERE events.run = :run AND {_EVENT_WANTED} ORDER BY seq DESC LIMIT 1 OFFSET :skip
"""  # noqa: S608

# --- verifying ---

RUN_NUMBERS: Final = "SELECT run FROM runs WHERE run > ? ORDER BY run LIMIT 1000"
COUNT_ALL_RUNS: Final = "SELECT count(*) FROM runs"
VERIFY_RUN: Final = f"SELECT {_HEAD_COLUMNS} FROM runs WHERE run = ?"  # noqa: S608
VERIFY_EVENTS: Final = """
SELECT position, seq, epoch, type, kind, key, writer, n, step_id, attempt, usage, time_us, received_us, data, data_blob,
  data_size
FROM events WHERE run = ? ORDER BY seq
"""
VERIFY_STEPS: Final = f"SELECT {_STEP_COLUMNS} FROM steps WHERE run = ?"  # noqa: S608
VERIFY_USAGE: Final = f"SELECT step_id, attempt, provider, model, {_AMOUNTS} FROM usage WHERE run = ?"  # noqa: S608
VERIFY_MARKS: Final = f"SELECT response_id, {_AMOUNTS} FROM usage_marks WHERE run = ?"  # noqa: S608
VERIFY_WRITERS: Final = "SELECT writer, last_n FROM writers WHERE run = ?"
VERIFY_KEYS: Final = "SELECT key, seq FROM keys WHERE run = ?"
VERIFY_USES: Final = """
SELECT sha256, (SELECT size FROM blobs WHERE blobs.sha256 = blob_uses.sha256 AND blobs.uid = runs.uid)
FROM blob_uses JOIN runs USING (run) WHERE run = ?
"""
VERIFY_BLOBS: Final = "SELECT DISTINCT sha256, size FROM blobs"
# Beside the newest position the highest that a row tells of: none may be given twice.
VERIFY_POSITION: Final = f"""
SELECT ({HEAD_POSITION}), max(
  (SELECT coalesce(max(last_position), 0) FROM tombstones), (SELECT coalesce(max(to_position), 0) FROM compactions),
  (SELECT low_water FROM history), ({USERS_POSITION}))
"""  # noqa: S608
_LOST: Final = "run NOT IN (SELECT run FROM runs) AND run NOT IN (SELECT run FROM tombstones WHERE cleared = 0)"
ORPHANED_ROWS: Final = f"""
SELECT 'events', count(*) FROM events WHERE {_LOST}
UNION ALL SELECT 'steps', count(*) FROM steps WHERE {_LOST}
UNION ALL SELECT 'usage', count(*) FROM usage WHERE {_LOST}
UNION ALL SELECT 'writers', count(*) FROM writers WHERE {_LOST}
UNION ALL SELECT 'holders', count(*) FROM holders WHERE {_LOST}
UNION ALL SELECT 'keys', count(*) FROM keys WHERE {_LOST}
UNION ALL SELECT 'documents', count(*) FROM documents WHERE {_LOST}
UNION ALL SELECT 'compactions', count(*) FROM compactions WHERE {_LOST}
UNION ALL SELECT 'blob_uses', count(*) FROM blob_uses WHERE {_LOST}
UNION ALL SELECT 'pins', count(*) FROM pins WHERE {_LOST}
"""  # noqa: S608
