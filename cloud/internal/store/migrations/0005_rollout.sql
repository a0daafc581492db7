-- Staged rollouts: what an operator composed, where each wave and each device stands, what devices really run, and the
-- hours of sites.

-- The plan, the state of the waves and the holds are JSON, read and written as a whole; version counts their changes.
ALTER TABLE rollout ADD COLUMN spec TEXT NOT NULL DEFAULT '{}';
ALTER TABLE rollout ADD COLUMN waves TEXT NOT NULL DEFAULT '[]';
ALTER TABLE rollout ADD COLUMN holds TEXT NOT NULL DEFAULT '[]';
ALTER TABLE rollout ADD COLUMN joiners INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollout ADD COLUMN version BIGINT NOT NULL DEFAULT 1;
ALTER TABLE rollout ADD COLUMN auto INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollout ADD COLUMN approved_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rollout ADD COLUMN approved_by TEXT NOT NULL DEFAULT '';
ALTER TABLE rollout ADD COLUMN started_at BIGINT NOT NULL DEFAULT 0;
-- sqlite only
-- What was begun before knew one limit: how many devices may end badly. It keeps that one and gets no other.
UPDATE rollout SET started_at = created_at, spec = json_object(
  'filter', json_object('group', "group"),
  'gate', json_object('success', -1, 'bad', -1, 'bad_cap', CASE WHEN max_failed < 1 THEN 1 ELSE max_failed END, 'site_bad', -1, 'health', -1),
  'in_flight', 50, 'deadline', deadline * 1000000, 'attempts', 1, 'repair', json(CASE WHEN repair <> 0 THEN 'true' ELSE 'false' END));
-- end
ALTER TABLE rollout DROP COLUMN "group";
ALTER TABLE rollout DROP COLUMN deadline;
ALTER TABLE rollout DROP COLUMN max_failed;
ALTER TABLE rollout DROP COLUMN repair;
CREATE INDEX rollout_joiners ON rollout (state, n) WHERE joiners <> 0;

-- changed is the number of the change that touched a row last, over all executions; who has read up to one reads on
-- from there. doubted: the device was found to run something older than it said.
ALTER TABLE execution ADD COLUMN wave BIGINT NOT NULL DEFAULT -1;
ALTER TABLE execution ADD COLUMN attempt BIGINT NOT NULL DEFAULT 0;
ALTER TABLE execution ADD COLUMN step BIGINT NOT NULL DEFAULT 0;
ALTER TABLE execution ADD COLUMN version BIGINT NOT NULL DEFAULT 1;
ALTER TABLE execution ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;
ALTER TABLE execution ADD COLUMN entered_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE execution ADD COLUMN bytes_wire BIGINT NOT NULL DEFAULT 0;
ALTER TABLE execution ADD COLUMN bytes_peer BIGINT NOT NULL DEFAULT 0;
ALTER TABLE execution ADD COLUMN bytes_medium BIGINT NOT NULL DEFAULT 0;
ALTER TABLE execution ADD COLUMN bytes_reused BIGINT NOT NULL DEFAULT 0;
ALTER TABLE execution ADD COLUMN doubted INTEGER NOT NULL DEFAULT 0;
UPDATE execution SET changed = n, entered_at = updated_at, attempt = CASE WHEN offered_at > 0 THEN 1 ELSE 0 END, wave = 0;
CREATE INDEX execution_changed ON execution (rollout, changed);
CREATE INDEX execution_stands ON execution (rollout, state, reason, wave);

-- Numbers that are given once: of changes of executions, and of changes in who is a member of what.
CREATE TABLE counter (
  name TEXT PRIMARY KEY,
  n    BIGINT NOT NULL
);
INSERT INTO counter (name, n) SELECT 'execution', COALESCE(MAX(n), 0) FROM execution;
INSERT INTO counter (name, n) VALUES ('member', 1);

ALTER TABLE "release" ADD COLUMN component TEXT NOT NULL DEFAULT '';
ALTER TABLE "release" ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
ALTER TABLE "release" ADD COLUMN models TEXT NOT NULL DEFAULT '[]';
ALTER TABLE "release" ADD COLUMN requires TEXT NOT NULL DEFAULT '{}';
ALTER TABLE "release" ADD COLUMN withdrawn INTEGER NOT NULL DEFAULT 0;
UPDATE "release" SET component = CASE WHEN length(id) > length(version) + 1 THEN substr(id, 1, length(id) - length(version) - 1) ELSE class END;

-- What really runs, as the device found it; crashes as it counts them.
ALTER TABLE device ADD COLUMN installed TEXT NOT NULL DEFAULT '[]';
ALTER TABLE device ADD COLUMN free_mib BIGINT NOT NULL DEFAULT 0;
ALTER TABLE device ADD COLUMN supply TEXT NOT NULL DEFAULT '';
ALTER TABLE device ADD COLUMN share TEXT NOT NULL DEFAULT '';
ALTER TABLE device ADD COLUMN crashes BIGINT NOT NULL DEFAULT 0;
CREATE INDEX device_site ON device (tenant, site, former_of);

-- What went wrong, in slots of ten minutes since 1970; a slot in which nothing did has no row. By the slot first: read
-- from a time on, and dropped after a month.
CREATE TABLE trouble (
  slot       BIGINT NOT NULL,
  device     TEXT NOT NULL,
  faults     BIGINT NOT NULL,
  reconnects BIGINT NOT NULL,
  crashes    BIGINT NOT NULL,
  PRIMARY KEY (slot, device)
) WITHOUT ROWID;

CREATE TABLE site (
  tenant   TEXT NOT NULL,
  name     TEXT NOT NULL,
  zone     TEXT NOT NULL DEFAULT '',
  download TEXT NOT NULL DEFAULT '',
  install  TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (tenant, name)
);
