-- What a device lost with a damaged file, as its TPM signed, one row for each break of its trail that is not in a sealed
-- file yet: another break is another, and not excused by it. break_first is where a break begins that no anchor has signed.
CREATE TABLE lost_range (
  device TEXT NOT NULL,
  first  BIGINT NOT NULL,
  last   BIGINT NOT NULL,
  PRIMARY KEY (device, first)
);
ALTER TABLE trail ADD COLUMN break_first BIGINT NOT NULL DEFAULT 0;
UPDATE trail SET break_first = break_seq - break_lost WHERE break_seq > 0;
-- What was signed before is counted only. Where as much as that is missing before breaks, it is those; else the trail does
-- not hold, as it did not before, or somebody has to look at it.
INSERT INTO lost_range (device, first, last)
WITH hole AS (
  SELECT a.device, a.seq, (SELECT COALESCE(MAX(p.seq), t.base) FROM audit p WHERE p.device = a.device AND p.seq < a.seq AND p.seq > t.base) AS behind
  FROM audit a JOIN trail t ON t.device = a.device WHERE t.lost > 0 AND a.kind = 'audit.break' AND a.seq > t.base AND a.seq <= t.anchored
)
SELECT h.device, h.behind + 1, h.seq - 1 FROM hole h JOIN trail t ON t.device = h.device
WHERE h.seq > h.behind + 1 AND (SELECT SUM(o.seq - o.behind - 1) FROM hole o WHERE o.device = h.device)
  <= t.lost - t.base + COALESCE((SELECT SUM(g.entries) FROM segment g WHERE g.trail = h.device), 0);

-- The service has told that entries are missing: only then it tells that they have come.
ALTER TABLE trail ADD COLUMN gap_told INTEGER NOT NULL DEFAULT 0;
UPDATE trail SET gap_told = 1 WHERE entries + lost < head;

-- Between which entries a key has signed anchors (0: none): what signs none at hand is forgotten, and a sealed file names
-- the keys that it needs. Which key signed what was not noted before, so each may have signed all that is there.
ALTER TABLE attestation_key ADD COLUMN first BIGINT NOT NULL DEFAULT 0;
ALTER TABLE attestation_key ADD COLUMN last BIGINT NOT NULL DEFAULT 0;
UPDATE attestation_key SET first = 1, last = COALESCE((SELECT t.head FROM trail t WHERE t.device = attestation_key.device), 0);
