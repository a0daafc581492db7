-- as before, and
INSERT INTO figures (step, at, part, body) VALUES (300000, 1790000000000, 'api', X'01');
