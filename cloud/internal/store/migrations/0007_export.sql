-- How far each sink of the export has come: n is of the last row of audit that its receiver has for sure, lost counts
-- rows that were deleted before they were sent. Rows of audit get numbers that grow in the order they are stored and
-- leave none out, so a number that is missing was deleted; whoever deletes old rows leaves the newest one.
CREATE TABLE export (
  sink TEXT PRIMARY KEY,
  n    BIGINT NOT NULL,
  sent BIGINT NOT NULL,
  lost BIGINT NOT NULL,
  at   BIGINT NOT NULL
);
