-- What a sink of the export keeps back and since when it stands still: last is the number of the last row that it let
-- pass, skipped counts rows that its filter kept back, stalled_at is since when it stands, once the alarm was raised.
ALTER TABLE export ADD COLUMN last BIGINT NOT NULL DEFAULT 0;
ALTER TABLE export ADD COLUMN skipped BIGINT NOT NULL DEFAULT 0;
ALTER TABLE export ADD COLUMN stalled_at BIGINT NOT NULL DEFAULT 0;
UPDATE export SET last = n;
