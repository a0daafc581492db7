-- Peripherals: how each is and was, what a count means, what is derived from counts and events, and health checks.

-- epoch: Unix seconds at which a count began, 0 for a measurement; kept: the peripheral itself keeps the count.
ALTER TABLE sample ADD COLUMN epoch BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sample ADD COLUMN kept INTEGER NOT NULL DEFAULT 0;
ALTER TABLE event ADD COLUMN mono BIGINT NOT NULL DEFAULT 0;
ALTER TABLE event ADD COLUMN count BIGINT NOT NULL DEFAULT 0;

-- SHA-256 of the peripherals of the newest report: while it stays, nothing of them is looked at. spans: how often the
-- device was lost.
ALTER TABLE state ADD COLUMN peripherals BLOB NOT NULL DEFAULT X'';
ALTER TABLE device ADD COLUMN spans BIGINT NOT NULL DEFAULT 0;

-- said: what the till says; was: what it said before it began to ask anew, 0 when nothing is to be taken up again;
-- health, reason, since: what the service makes of it while the till is there. gone_at: not in the newest report.
-- soon, worse and what follows is derived from counts and events.
CREATE TABLE peripheral (
  device         TEXT NOT NULL REFERENCES device (id),
  id             TEXT NOT NULL,
  category       TEXT NOT NULL,
  driver         TEXT NOT NULL,
  maker          TEXT NOT NULL,
  model          TEXT NOT NULL,
  serial         TEXT NOT NULL,
  firmware       TEXT NOT NULL,
  simulated      INTEGER NOT NULL,
  claim          TEXT NOT NULL,
  "key"          TEXT NOT NULL,
  interface      TEXT NOT NULL,
  caps           TEXT NOT NULL,
  roll_lines     BIGINT NOT NULL,
  power          TEXT NOT NULL,
  sensors        TEXT NOT NULL,
  said_health    TEXT NOT NULL,
  said_reason    TEXT NOT NULL,
  said_since     BIGINT NOT NULL,
  was_health     TEXT NOT NULL DEFAULT '',
  was_reason     TEXT NOT NULL DEFAULT '',
  was_since      BIGINT NOT NULL DEFAULT 0,
  health         TEXT NOT NULL,
  reason         TEXT NOT NULL,
  since          BIGINT NOT NULL,
  spans          BIGINT NOT NULL DEFAULT 0,
  first_at       BIGINT NOT NULL,
  seen_at        BIGINT NOT NULL,
  gone_at        BIGINT NOT NULL DEFAULT 0,
  soon           INTEGER NOT NULL DEFAULT 0,
  worse          INTEGER NOT NULL DEFAULT 0,
  run_out_at     BIGINT NOT NULL DEFAULT 0,
  run_out_from   BIGINT NOT NULL DEFAULT 0,
  run_out_to     BIGINT NOT NULL DEFAULT 0,
  confidence     DOUBLE PRECISION NOT NULL DEFAULT 0,
  lines_left     DOUBLE PRECISION NOT NULL DEFAULT 0,
  lines_per_hour DOUBLE PRECISION NOT NULL DEFAULT 0,
  basis          TEXT NOT NULL DEFAULT '',
  reads          BIGINT NOT NULL DEFAULT 0,
  read_failures  BIGINT NOT NULL DEFAULT 0,
  read_error_rate  DOUBLE PRECISION NOT NULL DEFAULT 0,
  fleet_error_rate DOUBLE PRECISION NOT NULL DEFAULT 0,
  PRIMARY KEY (device, id)
);
CREATE INDEX peripheral_health ON peripheral (health, device, id);
CREATE INDEX peripheral_reason ON peripheral (reason, device, id);
CREATE INDEX peripheral_run_out ON peripheral (run_out_at) WHERE run_out_at > 0;

-- A time that is over in which one state held; of peripheral '': in which the till was lost. n grows with each.
CREATE TABLE peripheral_span (
  device     TEXT NOT NULL,
  peripheral TEXT NOT NULL,
  n          BIGINT NOT NULL,
  health     TEXT NOT NULL,
  reason     TEXT NOT NULL,
  from_at    BIGINT NOT NULL,
  to_at      BIGINT NOT NULL,
  PRIMARY KEY (device, peripheral, n)
) WITHOUT ROWID;

CREATE TABLE health_check (
  n          INTEGER PRIMARY KEY,
  device     TEXT NOT NULL REFERENCES device (id),
  boot       BIGINT NOT NULL,
  seq        BIGINT NOT NULL,
  idx        BIGINT NOT NULL,
  at         BIGINT NOT NULL,
  peripheral TEXT NOT NULL,
  level      TEXT NOT NULL,
  ok         INTEGER NOT NULL,
  steps      TEXT NOT NULL,
  UNIQUE (boot, seq, idx)
);
CREATE INDEX health_check_peripheral ON health_check (device, peripheral, n);

-- How the peripherals of a device are used, as far as samples and events were read: cursor is JSON with the seq of the
-- last sample of each of the newest boots and n of the last event. body is JSON, read and written as a whole.
CREATE TABLE usage (
  device TEXT PRIMARY KEY REFERENCES device (id),
  cursor TEXT NOT NULL,
  body   TEXT NOT NULL
);

-- Reads of all readers of one model by day since 1970, the baseline of each of them.
CREATE TABLE read_baseline (
  tenant   TEXT NOT NULL,
  model    TEXT NOT NULL,
  day      BIGINT NOT NULL,
  reads    BIGINT NOT NULL,
  failures BIGINT NOT NULL,
  PRIMARY KEY (tenant, model, day)
) WITHOUT ROWID;
