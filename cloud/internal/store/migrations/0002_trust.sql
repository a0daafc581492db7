-- What the verifier knows of a device's boot, who has waived what, and who owns what.

ALTER TABLE device ADD COLUMN findings TEXT NOT NULL DEFAULT '[]';
ALTER TABLE device ADD COLUMN boot_digest BLOB NOT NULL DEFAULT X'';
ALTER TABLE device ADD COLUMN boot_release TEXT NOT NULL DEFAULT '';
ALTER TABLE device ADD COLUMN waiver_until BIGINT NOT NULL DEFAULT 0;
ALTER TABLE device ADD COLUMN waiver_by TEXT NOT NULL DEFAULT '';
ALTER TABLE device ADD COLUMN waiver_reason TEXT NOT NULL DEFAULT '';
-- What was issued and not shown yet stands beside what is in use.
ALTER TABLE device ADD COLUMN next_serial TEXT NOT NULL DEFAULT '';
ALTER TABLE device ADD COLUMN next_not_after BIGINT NOT NULL DEFAULT 0;
ALTER TABLE device ADD COLUMN recovery_serial TEXT NOT NULL DEFAULT '';
ALTER TABLE device ADD COLUMN next_recovery TEXT NOT NULL DEFAULT '';
ALTER TABLE device ADD COLUMN next_ak BLOB NOT NULL DEFAULT X'';
ALTER TABLE device ADD COLUMN revoked_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE device ADD COLUMN revoked_why TEXT NOT NULL DEFAULT '';
-- A device that was given up leaves its past with the old owner: a row under a name of its own, of which former_of
-- is the device.
ALTER TABLE device ADD COLUMN former_of TEXT NOT NULL DEFAULT '';
ALTER TABLE device ADD COLUMN left_at BIGINT NOT NULL DEFAULT 0;
CREATE INDEX device_former ON device (former_of);
CREATE INDEX device_expiry ON device (cert_not_after);

-- Appraisals that said something new, counted for each device.
CREATE TABLE attestation (
  device      TEXT NOT NULL REFERENCES device (id),
  n           BIGINT NOT NULL,
  at          BIGINT NOT NULL,
  trust       TEXT NOT NULL,
  "release"   TEXT NOT NULL,
  reset_count BIGINT NOT NULL,
  digest      BLOB NOT NULL,
  findings    TEXT NOT NULL,
  PRIMARY KEY (device, n)
);

-- Reference values, as the release signed them.
CREATE TABLE boot_reference (
  n            INTEGER PRIMARY KEY,
  model        TEXT NOT NULL,
  "release"    TEXT NOT NULL,
  body         BLOB NOT NULL,
  published_at BIGINT NOT NULL,
  UNIQUE (model, "release")
);

-- Firmware events that no reference knows: decided once for a model, by each tenant for his own devices.
CREATE TABLE firmware_event (
  n            INTEGER PRIMARY KEY,
  tenant       TEXT NOT NULL,
  model        TEXT NOT NULL,
  pcr          BIGINT NOT NULL,
  digest       TEXT NOT NULL,
  what         TEXT NOT NULL,
  first_device TEXT NOT NULL,
  first_at     BIGINT NOT NULL,
  devices      BIGINT NOT NULL DEFAULT 0,
  state        TEXT NOT NULL,
  decided_by   TEXT NOT NULL DEFAULT '',
  decided_at   BIGINT NOT NULL DEFAULT 0,
  UNIQUE (tenant, model, pcr, digest)
);
CREATE TABLE firmware_sighting (
  event  BIGINT NOT NULL REFERENCES firmware_event (n),
  device TEXT NOT NULL REFERENCES device (id),
  PRIMARY KEY (event, device)
);
CREATE INDEX firmware_sighting_device ON firmware_sighting (device);

-- A listing without tenant is a device that a vendor made and that nobody has claimed.
ALTER TABLE listing ADD COLUMN device TEXT NOT NULL DEFAULT '';
ALTER TABLE listing ADD COLUMN vendor TEXT NOT NULL DEFAULT '';
ALTER TABLE listing ADD COLUMN batch TEXT NOT NULL DEFAULT '';
ALTER TABLE listing ADD COLUMN order_number TEXT NOT NULL DEFAULT '';
ALTER TABLE listing ADD COLUMN claim_hash TEXT NOT NULL DEFAULT '';
ALTER TABLE listing ADD COLUMN claimed_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE listing ADD COLUMN wrong_claims BIGINT NOT NULL DEFAULT 0;
ALTER TABLE listing ADD COLUMN wrong_at BIGINT NOT NULL DEFAULT 0;
CREATE INDEX listing_device ON listing (device);
CREATE INDEX listing_order ON listing (vendor, order_number);
CREATE INDEX listing_claim ON listing (claim_hash);

-- Genuine devices that asked and that nobody owns.
CREATE TABLE waiting (
  device      TEXT PRIMARY KEY,
  ek_hash     TEXT NOT NULL,
  tier        TEXT NOT NULL,
  model       TEXT NOT NULL,
  serial      TEXT NOT NULL,
  source      TEXT NOT NULL,
  first_at    BIGINT NOT NULL,
  last_at     BIGINT NOT NULL
);
CREATE INDEX waiting_last ON waiting (last_at);

-- Where a device stands between two owners. It belongs to the device and not to its tenant, and stays when the
-- device moves on: a shorter chain must never be taken for the present one.
CREATE TABLE ownership (
  device   TEXT PRIMARY KEY,
  voucher  BLOB NOT NULL,
  entries  BIGINT NOT NULL,
  owner    TEXT NOT NULL,
  state    TEXT NOT NULL,
  deadline BIGINT NOT NULL DEFAULT 0
);
