-- What came of what an entry tells, and the site that it happened at, as that was called when the entry was stored.
ALTER TABLE audit ADD COLUMN outcome TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN site TEXT NOT NULL DEFAULT '';
