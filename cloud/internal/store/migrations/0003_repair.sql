-- A rollout that is offered to quarantined devices too, so that a release can mend what put them there.
ALTER TABLE rollout ADD COLUMN repair INTEGER NOT NULL DEFAULT 0;
