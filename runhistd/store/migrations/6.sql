-- What each user has stored is kept, so that a limit can be held without counting.

CREATE TABLE users (
  uid INTEGER PRIMARY KEY,
  runs INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  position INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO users (uid, runs, bytes)
SELECT uid, sum(runs), sum(bytes) FROM (
  SELECT uid, count(*) AS runs, 0 AS bytes FROM runs GROUP BY uid
  UNION ALL SELECT uid, 0, sum(size) FROM blobs GROUP BY uid
  UNION ALL SELECT uid, 0,
    sum(octet_length(data) + coalesce(octet_length(usage), 0) + coalesce(octet_length(key), 0) + 200)
  FROM events JOIN (SELECT run, uid FROM runs UNION ALL SELECT run, uid FROM tombstones WHERE cleared = 0) USING (run)
  GROUP BY uid
) GROUP BY uid;
UPDATE users SET position = (SELECT position FROM history);
