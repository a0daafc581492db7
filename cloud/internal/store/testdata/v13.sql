INSERT INTO device (id, tenant, tier, model, serial, site, "group", label, ek_hash, ak_public, cert_serial, cert_not_after, trust, trust_reasons,
  attested_at, reset_count, online, enrolled_at, last_seen, samples, command_counter)
VALUES ('d1', 'main', 'C', 'vend-1', 'S1', 'berlin', 'canary', 'front', 'ek1', X'01', 'ab', 1795000000000, 'attested', '[]', 1790000000000, 4, 1, 1789000000000, 1790000000000, 2, 1);
INSERT INTO state (device, boot, seq, sent, stored_at, agent_version, slot, raw) VALUES ('d1', 1, 3, 1790000000000, 1790000000100, '0.1.0', 'a', X'A0');
INSERT INTO boot (id, device, name, front, turn) VALUES (1, 'd1', X'01000000000000000000000000000000', 1, 1);
INSERT INTO series (id, device, peripheral, name, count, last, last_at) VALUES (1, 'd1', 'printer', 'temp', 2, 22.5, 1790000001000);
INSERT INTO sample (boot, seq, idx, series, at, value) VALUES (1, 1, 0, 1, 1790000000000, 21), (1, 1, 1, 1, 1790000001000, 22.5);
INSERT INTO event (n, device, boot, seq, idx, at, peripheral, category, code, from_value, to_value)
VALUES (1, 'd1', 1, 2, 0, 1790000000000, 'printer', 'POSPrinter', 'COVER_OPEN', 'No', 'Yes');
INSERT INTO trail (device, head, hash, entries, broken) VALUES ('d1', 1, X'0100000000000000000000000000000000000000000000000000000000000000', 1, 0);
INSERT INTO facet (id, tenant, own, kind, severity, outcome) VALUES (1, 'main', 0, 'enrol.done', 'info', '');
INSERT INTO audit (n, device, seq, tenant, at, stored_at, kind, severity, actor, subject, detail, facet, body, hash, prev)
VALUES (1, 'd1', 1, 'main', 1790000000000, 1790000000000, 'enrol.done', 'info', '', '', '{}', 1, X'A0',
  X'0100000000000000000000000000000000000000000000000000000000000000', X'0000000000000000000000000000000000000000000000000000000000000000');
INSERT INTO command (n, id, tenant, device, counter, verb, args, issued_by, reason, issued_at, not_after, state, code, text, output, ended_at)
VALUES (1, 'c1', 'main', 'd1', 1, 'identify', '{"seconds":"5"}', 'anna', 'find it', 1790000000000, 1790003600000, 'SUCCEEDED', '', '', NULL, 1790000002000);
INSERT INTO "release" (n, id, class, version, targets, published_at, published_by, component, models, requires)
VALUES (1, 'agent/1.0.0', 'agent', '1.0.0', '[]', 1790000000000, 'anna', 'agent', '[]', '{}');
INSERT INTO rollout (n, id, tenant, "release", state, reason, created_at, created_by, started_at, spec, waves, holds, joiners, version)
VALUES (1, 'r1', 'main', 'agent/1.0.0', 'RUNNING', '', 1790000000000, 'anna', 1790000000000,
  '{"filter":{"group":"canary"},"gate":{"success":-1,"bad":-1,"bad_cap":1},"in_flight":50,"deadline":3600000000000,"attempts":1}',
  '[{"state":"RUNNING","started_at":"2026-09-21T13:33:20Z"}]', '[{"model":"bad","reason":"3 of 20","since":"2026-09-21T13:33:20Z"}]', 0, 7);
INSERT INTO execution (n, id, rollout, device, state, offered_at, entered_at, updated_at, wave, attempt, step, version, changed, bytes_wire)
VALUES (1, 'x1', 'r1', 'd1', 'DOWNLOADING', 1790000000000, 1790000000000, 1790000000000, 0, 1, 2, 3, 1, 100);
UPDATE counter SET n = 1 WHERE name = 'execution';
INSERT INTO trouble (slot, device, faults, reconnects, crashes) VALUES (2983333, 'd1', 1, 2, 0);
INSERT INTO site (tenant, name, zone, download, install) VALUES ('main', 'berlin', 'Europe/Berlin', '', '22:00-05:00');
INSERT INTO token (id, tenant, name, role, hash, created_at, expires_at) VALUES ('t1', 'main', 'first', 'admin', X'0000000000000000000000000000000000000000000000000000000000000000', 1790000000000, 0);
INSERT INTO listing (ek_hash, tenant, model, serial, site, "group", added_at) VALUES ('ek1', 'main', 'vend-1', 'S1', 'berlin', 'canary', 1789000000000);
UPDATE device SET findings = '[{"check":"boot.unjudged","text":"nothing to compare with"}]', boot_digest = X'44', boot_release = 'agent/1.0.0', waiver_until = 1790003600000,
  waiver_by = 'anna', waiver_reason = 'inventory week', next_serial = 'ac', next_not_after = 1797000000000, recovery_serial = 'ad' WHERE id = 'd1';
INSERT INTO attestation (device, n, at, trust, "release", reset_count, digest, findings)
VALUES ('d1', 1, 1790000000000, 'attested', 'agent/1.0.0', 4, X'44', '[{"check":"boot.unjudged","text":"nothing to compare with"}]');
INSERT INTO boot_reference (model, "release", body, published_at) VALUES ('vend-1', 'agent/1.0.0', X'7B7D', 1790000000000);
INSERT INTO firmware_event (n, tenant, model, pcr, digest, what, first_device, first_at, devices, state) VALUES (1, 'main', 'vend-1', 4, 'aa', 'boot manager', 'd1', 1790000000000, 1, 'open');
INSERT INTO firmware_sighting (event, device) VALUES (1, 'd1');
INSERT INTO listing (ek_hash, tenant, model, serial, site, "group", added_at, device, vendor, batch, order_number, claim_hash)
VALUES ('ek2', '', 'vend-1', 'S2', '', '', 1789000000000, 'd2', 'acme', 'b1', 'PO-7', 'code');
INSERT INTO waiting (device, ek_hash, tier, model, serial, source, first_at, last_at) VALUES ('d2', 'ek2', 'A', 'vend-1', 'S2', '192.0.2.1', 1789000000000, 1790000000000);
INSERT INTO ownership (device, voucher, entries, owner, state) VALUES ('d1', X'616263', 2, 'main', 'owned');
UPDATE device SET installed = '[{"component":"agent","version":"0.1.0","slot":"a"}]', free_mib = 512 WHERE id = 'd1';
UPDATE sample SET epoch = 1789990000, kept = 1;
UPDATE event SET mono = 5000, count = 7;
INSERT INTO peripheral (device, id, category, driver, maker, model, serial, firmware, simulated, claim, "key", interface, caps, roll_lines, power, sensors, said_health, said_reason,
  said_since, health, reason, since, spans, first_at, seen_at, run_out_at, run_out_from, run_out_to, confidence, lines_left, lines_per_hour, basis, reads, read_failures, read_error_rate, fleet_error_rate)
VALUES ('d1', 'printer', 'POSPrinter', 'escpos', 'Maker', 'P1', '7', '1.0', 0, 'own', 'usb:04b8:0e15:7', 'USB', '["CapCoverSensor"]', 18876, 'PS_ONLINE', '{"CoverOpen":"Yes"}', 'Fault', 'COVER_OPEN',
  1790000000000, 'Fault', 'COVER_OPEN', 1790000000000, 1, 1789000000000, 1790000000000, 1790010000000, 1790009000000, 1790012000000, 0.8, 900, 300, 'configured', 0, 0, 0, 0);
INSERT INTO peripheral_span (device, peripheral, n, health, reason, from_at, to_at) VALUES ('d1', 'printer', 1, 'OK', '', 1789000000000, 1790000000000);
INSERT INTO health_check (n, device, boot, seq, idx, at, peripheral, level, ok, steps) VALUES (1, 'd1', 1, 4, 0, 1790000000000, 'printer', 'internal', 0, '[{"id":"status","ok":false,"code":"COVER_OPEN","ms":12}]');
INSERT INTO usage (device, cursor, body) VALUES ('d1', '{"boots":{"1":1},"event":1}', '{}');
INSERT INTO read_baseline (tenant, model, day, reads, failures) VALUES ('main', 'R1', 20717, 1000, 3);
INSERT INTO export (sink, n, sent, lost, at) VALUES ('siem', 1, 1, 2, 1790000000000);
INSERT INTO figures (step, at, part, body) VALUES (300000, 1790000000000, 'api', X'01');
INSERT INTO attestation_key (device, public, since) VALUES ('d1', X'01', 1789000000000);
INSERT INTO countersign (device, seq, hash, at, body) VALUES ('d1', 1, X'0100000000000000000000000000000000000000000000000000000000000000', 1790000000000, X'A0');
UPDATE trail SET countersigned = 1 WHERE device = 'd1';
