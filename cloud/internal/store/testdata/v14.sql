-- as before, and
INSERT INTO lost_range (device, first, last) VALUES ('d1', 3, 5);
