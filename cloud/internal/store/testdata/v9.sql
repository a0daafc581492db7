-- as before, and
UPDATE boot SET front = 1, turn = 1;
