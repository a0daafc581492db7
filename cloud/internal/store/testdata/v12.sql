-- as before, and
INSERT INTO attestation_key (device, public, since) VALUES ('d1', X'01', 1789000000000);
INSERT INTO countersign (device, seq, hash, at, body) VALUES ('d1', 1, X'0100000000000000000000000000000000000000000000000000000000000000', 1790000000000, X'A0');
UPDATE trail SET countersigned = 1 WHERE device = 'd1';
