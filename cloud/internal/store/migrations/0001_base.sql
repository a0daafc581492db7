-- Times are Unix milliseconds, 0 means never. Booleans are 0 or 1. Maps and lists are JSON.

CREATE TABLE device (
  id              TEXT PRIMARY KEY,
  tenant          TEXT NOT NULL,
  tier            TEXT NOT NULL,
  model           TEXT NOT NULL,
  serial          TEXT NOT NULL,
  site            TEXT NOT NULL,
  "group"         TEXT NOT NULL,
  label           TEXT NOT NULL,
  ek_hash         TEXT NOT NULL UNIQUE,
  ak_public       BLOB NOT NULL,
  cert_serial     TEXT NOT NULL,
  cert_not_after  BIGINT NOT NULL,
  trust           TEXT NOT NULL,
  trust_reasons   TEXT NOT NULL,
  attested_at     BIGINT NOT NULL DEFAULT 0,
  reset_count     BIGINT NOT NULL DEFAULT 0,
  online          INTEGER NOT NULL DEFAULT 0,
  enrolled_at     BIGINT NOT NULL,
  last_seen       BIGINT NOT NULL DEFAULT 0,
  samples         BIGINT NOT NULL DEFAULT 0,
  command_counter BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX device_tenant ON device (tenant, id);
CREATE INDEX device_trust ON device (trust, attested_at);

-- The newest report of each device. Apart from device, because it is large and changes at another pace.
CREATE TABLE state (
  device        TEXT PRIMARY KEY REFERENCES device (id),
  boot          BIGINT NOT NULL,
  seq           BIGINT NOT NULL,
  sent          BIGINT NOT NULL,
  stored_at     BIGINT NOT NULL,
  agent_version TEXT NOT NULL,
  slot          TEXT NOT NULL,
  raw           BLOB NOT NULL
);

-- One run of an agent; ids grow in the order in which the service first heard of them.
CREATE TABLE boot (
  id     INTEGER PRIMARY KEY,
  device TEXT NOT NULL REFERENCES device (id),
  name   BLOB NOT NULL,
  UNIQUE (device, name)
);

CREATE TABLE series (
  id         INTEGER PRIMARY KEY,
  device     TEXT NOT NULL REFERENCES device (id),
  peripheral TEXT NOT NULL,
  name       TEXT NOT NULL,
  count      BIGINT NOT NULL DEFAULT 0,
  last       DOUBLE PRECISION NOT NULL DEFAULT 0,
  last_at    BIGINT NOT NULL DEFAULT 0,
  UNIQUE (device, peripheral, name)
);

-- A boot belongs to one device, so the key says (device, boot, seq, idx): each sample is here once.
CREATE TABLE sample (
  boot   BIGINT NOT NULL,
  seq    BIGINT NOT NULL,
  idx    BIGINT NOT NULL,
  series BIGINT NOT NULL,
  at     BIGINT NOT NULL,
  value  DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (boot, seq, idx)
) WITHOUT ROWID;
CREATE INDEX sample_series ON sample (series, at, value);

CREATE TABLE event (
  n          INTEGER PRIMARY KEY,
  device     TEXT NOT NULL REFERENCES device (id),
  boot       BIGINT NOT NULL,
  seq        BIGINT NOT NULL,
  idx        BIGINT NOT NULL,
  at         BIGINT NOT NULL,
  peripheral TEXT NOT NULL,
  category   TEXT NOT NULL,
  code       TEXT NOT NULL,
  from_value TEXT NOT NULL,
  to_value   TEXT NOT NULL,
  UNIQUE (boot, seq, idx)
);
CREATE INDEX event_device ON event (device, n);

-- The head of each audit trail; the service's own has device ''.
CREATE TABLE trail (
  device  TEXT PRIMARY KEY,
  head    BIGINT NOT NULL,
  hash    BLOB NOT NULL,
  entries BIGINT NOT NULL,
  broken  INTEGER NOT NULL
);
INSERT INTO trail (device, head, hash, entries, broken)
VALUES ('', 0, X'0000000000000000000000000000000000000000000000000000000000000000', 0, 0);

CREATE TABLE audit (
  n         INTEGER PRIMARY KEY,
  device    TEXT NOT NULL,
  seq       BIGINT NOT NULL,
  tenant    TEXT NOT NULL,
  at        BIGINT NOT NULL,
  stored_at BIGINT NOT NULL,
  kind      TEXT NOT NULL,
  severity  TEXT NOT NULL,
  actor     TEXT NOT NULL,
  subject   TEXT NOT NULL,
  detail    TEXT NOT NULL,
  body      BLOB NOT NULL,
  hash      BLOB NOT NULL,
  prev      BLOB NOT NULL,
  UNIQUE (device, seq)
);

CREATE TABLE command (
  n         INTEGER PRIMARY KEY,
  id        TEXT NOT NULL UNIQUE,
  tenant    TEXT NOT NULL,
  device    TEXT NOT NULL REFERENCES device (id),
  counter   BIGINT NOT NULL,
  verb      TEXT NOT NULL,
  args      TEXT NOT NULL,
  issued_by TEXT NOT NULL,
  reason    TEXT NOT NULL,
  issued_at BIGINT NOT NULL,
  not_after BIGINT NOT NULL,
  state     TEXT NOT NULL,
  code      TEXT NOT NULL DEFAULT '',
  text      TEXT NOT NULL DEFAULT '',
  output    BLOB,
  ended_at  BIGINT NOT NULL DEFAULT 0,
  UNIQUE (device, counter)
);
CREATE INDEX command_tenant ON command (tenant, n);
CREATE INDEX command_open ON command (state, not_after);

CREATE TABLE "release" (
  n            INTEGER PRIMARY KEY,
  id           TEXT NOT NULL UNIQUE,
  class        TEXT NOT NULL,
  version      TEXT NOT NULL,
  targets      TEXT NOT NULL,
  published_at BIGINT NOT NULL,
  published_by TEXT NOT NULL
);

CREATE TABLE rollout (
  n          INTEGER PRIMARY KEY,
  id         TEXT NOT NULL UNIQUE,
  tenant     TEXT NOT NULL,
  "release"  TEXT NOT NULL REFERENCES "release" (id),
  "group"    TEXT NOT NULL,
  state      TEXT NOT NULL,
  reason     TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  created_by TEXT NOT NULL,
  ended_at   BIGINT NOT NULL DEFAULT 0,
  deadline   BIGINT NOT NULL,
  max_failed BIGINT NOT NULL
);
CREATE INDEX rollout_tenant ON rollout (tenant, n);
CREATE INDEX rollout_state ON rollout (state);

CREATE TABLE execution (
  n          INTEGER PRIMARY KEY,
  id         TEXT NOT NULL UNIQUE,
  rollout    TEXT NOT NULL REFERENCES rollout (id),
  device     TEXT NOT NULL REFERENCES device (id),
  state      TEXT NOT NULL,
  reason     TEXT NOT NULL DEFAULT '',
  text       TEXT NOT NULL DEFAULT '',
  from_value TEXT NOT NULL DEFAULT '',
  to_value   TEXT NOT NULL DEFAULT '',
  done       BIGINT NOT NULL DEFAULT 0,
  total      BIGINT NOT NULL DEFAULT 0,
  offered_at BIGINT NOT NULL DEFAULT 0,
  updated_at BIGINT NOT NULL,
  UNIQUE (rollout, device)
);
CREATE INDEX execution_device ON execution (device, n);

CREATE TABLE token (
  id         TEXT PRIMARY KEY,
  tenant     TEXT NOT NULL,
  name       TEXT NOT NULL,
  role       TEXT NOT NULL,
  hash       BLOB NOT NULL UNIQUE,
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  revoked_at BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE session (
  hash       BLOB PRIMARY KEY,
  token      TEXT NOT NULL REFERENCES token (id),
  expires_at BIGINT NOT NULL
);

CREATE TABLE listing (
  ek_hash  TEXT PRIMARY KEY,
  tenant   TEXT NOT NULL,
  model    TEXT NOT NULL,
  serial   TEXT NOT NULL,
  site     TEXT NOT NULL,
  "group"  TEXT NOT NULL,
  added_at BIGINT NOT NULL
);
