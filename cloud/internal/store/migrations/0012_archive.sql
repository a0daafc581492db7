-- What proves the trails: the keys that devices sign anchors with, what the service countersigned, what was put away.

-- Every attestation key that a device has had, from when it could sign with it.
CREATE TABLE attestation_key (
  device TEXT NOT NULL,
  public BLOB NOT NULL,
  since  BIGINT NOT NULL,
  PRIMARY KEY (device, public)
);
INSERT INTO attestation_key (device, public, since) SELECT id, ak_public, enrolled_at FROM device WHERE ak_public <> X'';
INSERT INTO attestation_key (device, public, since) SELECT id, next_ak, enrolled_at FROM device WHERE next_ak <> X'' AND next_ak <> ak_public;

-- The orders by which the service told a device how much of its trail it holds.
CREATE TABLE countersign (
  device TEXT NOT NULL,
  seq    BIGINT NOT NULL,
  hash   BLOB NOT NULL,
  at     BIGINT NOT NULL,
  body   BLOB NOT NULL,
  PRIMARY KEY (device, seq)
);

-- Sealed files with entries that are no longer in audit, and of each trail how far that goes (base). Anchors are those
-- whose signature was checked; told says that the device has recorded for a day without one, and the service's trail says so.
-- Entries that were lost with a device's damaged file are counted when an anchor has signed the record of it.
CREATE TABLE segment (
  n       INTEGER PRIMARY KEY,
  trail   TEXT NOT NULL,
  first   BIGINT NOT NULL,
  last    BIGINT NOT NULL,
  hash    BLOB NOT NULL,
  entries BIGINT NOT NULL,
  file    TEXT NOT NULL,
  sha256  BLOB NOT NULL,
  bytes   BIGINT NOT NULL,
  at      BIGINT NOT NULL,
  UNIQUE (trail, first)
);
ALTER TABLE trail ADD COLUMN base BIGINT NOT NULL DEFAULT 0;
ALTER TABLE trail ADD COLUMN base_hash BLOB NOT NULL DEFAULT X'0000000000000000000000000000000000000000000000000000000000000000';
ALTER TABLE trail ADD COLUMN countersigned BIGINT NOT NULL DEFAULT 0;
ALTER TABLE trail ADD COLUMN anchored BIGINT NOT NULL DEFAULT 0;
ALTER TABLE trail ADD COLUMN anchor_counter BIGINT NOT NULL DEFAULT 0;
ALTER TABLE trail ADD COLUMN anchor_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE trail ADD COLUMN anchor_stored BIGINT NOT NULL DEFAULT 0;
ALTER TABLE trail ADD COLUMN told INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trail ADD COLUMN lost BIGINT NOT NULL DEFAULT 0;
ALTER TABLE trail ADD COLUMN break_seq BIGINT NOT NULL DEFAULT 0;
ALTER TABLE trail ADD COLUMN break_lost BIGINT NOT NULL DEFAULT 0;

-- The trails are append-only. A row here opens them for the rest of a transaction, which takes it out again: 'leave' lets the
-- past of a device that goes to another owner take another name, 'segment' lets rows go that a segment holds.
CREATE TABLE audit_gate (why TEXT NOT NULL);
-- sqlite only
CREATE TRIGGER audit_unchanged BEFORE UPDATE OF n, seq, tenant, at, stored_at, kind, severity, subject, outcome, site, detail, body, hash, prev ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trails are append-only: no entry is changed'); END;
CREATE TRIGGER audit_named BEFORE UPDATE OF device, actor ON audit WHEN NOT EXISTS (SELECT 1 FROM audit_gate WHERE why = 'leave')
BEGIN SELECT RAISE(ABORT, 'the audit trails are append-only: no entry is changed'); END;
CREATE TRIGGER audit_kept BEFORE DELETE ON audit WHEN NOT EXISTS (SELECT 1 FROM audit_gate WHERE why = 'segment')
  OR NOT EXISTS (SELECT 1 FROM segment WHERE trail = OLD.device AND OLD.seq BETWEEN first AND last) OR OLD.n = (SELECT MAX(n) FROM audit)
BEGIN SELECT RAISE(ABORT, 'the audit trails are append-only: an entry goes only when a sealed segment holds it, and the newest stays'); END;
CREATE TRIGGER countersign_unchanged BEFORE UPDATE ON countersign WHEN NOT EXISTS (SELECT 1 FROM audit_gate WHERE why = 'leave')
BEGIN SELECT RAISE(ABORT, 'countersignatures are append-only'); END;
CREATE TRIGGER countersign_kept BEFORE DELETE ON countersign WHEN NOT EXISTS (SELECT 1 FROM audit_gate WHERE why = 'segment')
  OR NOT EXISTS (SELECT 1 FROM segment WHERE trail = OLD.device AND OLD.seq BETWEEN first AND last)
BEGIN SELECT RAISE(ABORT, 'countersignatures are append-only: one goes only when a sealed segment holds it'); END;
CREATE TRIGGER segment_unchanged BEFORE UPDATE ON segment WHEN NOT EXISTS (SELECT 1 FROM audit_gate WHERE why = 'leave')
BEGIN SELECT RAISE(ABORT, 'segments are append-only'); END;
CREATE TRIGGER segment_kept BEFORE DELETE ON segment
BEGIN SELECT RAISE(ABORT, 'segments are append-only'); END;
-- end
