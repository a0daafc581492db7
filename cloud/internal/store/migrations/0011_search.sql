-- What an entry of a trail has in common with many others, kept once. A search picks facets; each of its indexes begins
-- with one column, goes on with the facet and ends with n, so that one of these columns together with any choice of
-- trail, kind, severity and outcome is read in order, newest first, and nothing else is.
CREATE TABLE facet (
  id       INTEGER PRIMARY KEY,
  tenant   TEXT NOT NULL,
  own      INTEGER NOT NULL,
  kind     TEXT NOT NULL,
  severity TEXT NOT NULL,
  outcome  TEXT NOT NULL,
  UNIQUE (tenant, own, kind, severity, outcome)
);
INSERT INTO facet (tenant, own, kind, severity, outcome)
SELECT DISTINCT tenant, CASE WHEN device = '' THEN 1 ELSE 0 END, kind, severity, outcome FROM audit;
ALTER TABLE audit ADD COLUMN facet INTEGER NOT NULL DEFAULT 0;
-- A device is the actor of nearly all of its entries; it is not named again, and they are found by the device.
UPDATE audit SET actor = CASE WHEN actor = device THEN '' ELSE actor END,
  facet = (SELECT f.id FROM facet f WHERE f.tenant = audit.tenant AND f.own = CASE WHEN audit.device = '' THEN 1 ELSE 0 END
  AND f.kind = audit.kind AND f.severity = audit.severity AND f.outcome = audit.outcome);
CREATE INDEX audit_facet ON audit (facet, n);
CREATE INDEX audit_device ON audit (device, facet, n) WHERE device <> '';
CREATE INDEX audit_site ON audit (site, facet, n) WHERE site <> '';
CREATE INDEX audit_subject ON audit (subject, facet, n) WHERE subject <> '';
CREATE INDEX audit_actor ON audit (actor, facet, n) WHERE actor <> '';
