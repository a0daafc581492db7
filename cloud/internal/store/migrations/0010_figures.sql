-- What the service answered and how fast, one row for each part of it and span of time; step is its length in
-- milliseconds. body holds counts, and buckets of response times, of everything that part does. Spans of five minutes
-- become hours when they are old, and hours go after 13 months.
CREATE TABLE figures (
  step BIGINT NOT NULL,
  at   BIGINT NOT NULL,
  part TEXT   NOT NULL,
  body BLOB   NOT NULL,
  PRIMARY KEY (step, at, part)
);
