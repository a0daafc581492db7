-- as before, and
INSERT INTO lost_range (device, first, last) VALUES ('d1', 3, 5);
UPDATE attestation_key SET first = 1, last = 1 WHERE device = 'd1';
