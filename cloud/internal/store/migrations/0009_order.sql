-- Telemetry may come ahead of older telemetry that a device still has. How far a boot's telemetry is whole, and in which
-- order the boots of a device said theirs: what is derived from counts goes no further, and in that order.
ALTER TABLE boot ADD COLUMN front BIGINT NOT NULL DEFAULT 0; -- the highest sequence of telemetry before which nothing is missing
ALTER TABLE boot ADD COLUMN turn BIGINT NOT NULL DEFAULT 0;  -- its place among the boots of the device; 0: nothing came in order yet
UPDATE boot SET turn = id, front = COALESCE((SELECT MAX(seq) FROM sample WHERE sample.boot = boot.id), 0);
