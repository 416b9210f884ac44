-- Data of events that is content of the blob store.

ALTER TABLE events ADD COLUMN data_blob BLOB;
ALTER TABLE events ADD COLUMN data_size INTEGER;
CREATE INDEX events_by_blob ON events (run, data_blob) WHERE data_blob IS NOT NULL;
