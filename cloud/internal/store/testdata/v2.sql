INSERT INTO device (id, tenant, tier, model, serial, site, "group", label, ek_hash, ak_public, cert_serial, cert_not_after, trust, trust_reasons,
  attested_at, reset_count, online, enrolled_at, last_seen, samples, command_counter)
VALUES ('d1', 'main', 'C', 'vend-1', 'S1', 'berlin', 'canary', 'front', 'ek1', X'01', 'ab', 1795000000000, 'attested', '[]', 1790000000000, 4, 1, 1789000000000, 1790000000000, 2, 1);
INSERT INTO state (device, boot, seq, sent, stored_at, agent_version, slot, raw) VALUES ('d1', 1, 3, 1790000000000, 1790000000100, '0.1.0', 'a', X'A0');
INSERT INTO boot (id, device, name) VALUES (1, 'd1', X'01000000000000000000000000000000');
INSERT INTO series (id, device, peripheral, name, count, last, last_at) VALUES (1, 'd1', 'printer', 'temp', 2, 22.5, 1790000001000);
INSERT INTO sample (boot, seq, idx, series, at, value) VALUES (1, 1, 0, 1, 1790000000000, 21), (1, 1, 1, 1, 1790000001000, 22.5);
INSERT INTO event (n, device, boot, seq, idx, at, peripheral, category, code, from_value, to_value)
VALUES (1, 'd1', 1, 2, 0, 1790000000000, 'printer', 'POSPrinter', 'COVER_OPEN', 'No', 'Yes');
INSERT INTO trail (device, head, hash, entries, broken) VALUES ('d1', 1, X'0100000000000000000000000000000000000000000000000000000000000000', 1, 0);
INSERT INTO audit (n, device, seq, tenant, at, stored_at, kind, severity, actor, subject, detail, body, hash, prev)
VALUES (1, 'd1', 1, 'main', 1790000000000, 1790000000000, 'enrol.done', 'info', '', '', '{}', X'A0',
  X'0100000000000000000000000000000000000000000000000000000000000000', X'0000000000000000000000000000000000000000000000000000000000000000');
INSERT INTO command (n, id, tenant, device, counter, verb, args, issued_by, reason, issued_at, not_after, state, code, text, output, ended_at)
VALUES (1, 'c1', 'main', 'd1', 1, 'identify', '{"seconds":"5"}', 'anna', 'find it', 1790000000000, 1790003600000, 'SUCCEEDED', '', '', NULL, 1790000002000);
INSERT INTO "release" (n, id, class, version, targets, published_at, published_by) VALUES (1, 'agent/1.0.0', 'agent', '1.0.0', '[]', 1790000000000, 'anna');
INSERT INTO rollout (n, id, tenant, "release", "group", state, reason, created_at, created_by, ended_at, deadline, max_failed)
VALUES (1, 'r1', 'main', 'agent/1.0.0', 'canary', 'RUNNING', '', 1790000000000, 'anna', 0, 3600000, 1);
INSERT INTO execution (n, id, rollout, device, state, updated_at) VALUES (1, 'x1', 'r1', 'd1', 'DOWNLOADING', 1790000000000);
INSERT INTO token (id, tenant, name, role, hash, created_at, expires_at) VALUES ('t1', 'main', 'first', 'admin', X'0000000000000000000000000000000000000000000000000000000000000000', 1790000000000, 0);
INSERT INTO listing (ek_hash, tenant, model, serial, site, "group", added_at) VALUES ('ek1', 'main', 'vend-1', 'S1', 'berlin', 'canary', 1789000000000);
