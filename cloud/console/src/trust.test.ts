import { expect, test } from 'vitest';
import type { AuditEvent, Title } from './api';
import { alarm, grouped, meaning, party, register, steps, todo, until, waivable, why } from './trust';

const event = (seq: number, kind: string, subject: string, detail: Record<string, string> | null = null): AuditEvent =>
  ({ seq, kind, subject, detail, at: null, stored_at: null, severity: 'alarm', actor: 'service', hash: '', prev: '' });

test('every check of a verdict says what to do', () => {
  for (const check of [
    'quote.signature', 'quote.binding', 'quote.selection', 'quote.values', 'quote.replayed', 'quote.malformed', 'tpm.reset-count', 'tpm.firmware',
    'boot.unknown-event', 'boot.rejected-event', 'boot.missing-event', 'boot.no-log', 'boot.log-replay', 'boot.not-covered', 'boot.unjudged', 'boot.old-release', 'boot.not-offered',
    'identity.revoked', 'identity.replaced', 'identity.clone', 'identity.keys', 'identity.restricted', 'enrol.ek-certificate', 'enrol.ek-listed', 'enrol.ek-duplicate', 'enrol.activation',
    'enrol.certify', 'enrol.tier', 'enrol.claim', 'enrol.binding', 'enrol.key-attributes', 'enrol.selection', 'enrol.owner',
  ]) expect(todo(check), check).toMatch(/^[A-Z].+\.$/);
  expect(todo('boot.of-tomorrow')).toBe('');
});

test('an alarm is known by its check, then by its kind, and never without advice', () => {
  expect(alarm(event(1, 'enrol.refused', 'd', { check: 'enrol.tier' })).title).toBe('Weaker identity than enrolled');
  expect(alarm(event(1, 'enrol.refused', 'd', { check: 'enrol.activation' })).todo).toBe(todo('enrol.activation'));
  expect(alarm(event(1, 'device.revoked', 'd')).title).toBe('Revoked by an operator');
  expect(alarm(event(1, 'identity.revoked', 'd', { check: 'identity.revoked' })).title).toBe('Revoked, still trying');
  expect(alarm(event(1, 'identity.expiring', 'd', { check: 'identity.expiring' })).title).toBe('Certificate about to expire');
  expect(alarm(event(1, 'audit.chain_broken', 'd')).title).toBe('Broken audit trail');
  expect(alarm(event(1, 'audit.anchor_bad', 'd')).title).toBe('TPM does not vouch for the trail');
  expect(alarm(event(1, 'something.new', 'd'))).toEqual({ title: 'something.new', todo: 'Read the entry below and look at the device it names.' });
});

test('alarms stand by whom they are about, each kind once', () => {
  const groups = grouped([
    event(5, 'identity.clone', 'a', { check: 'identity.clone', what: 'newest' }), event(4, 'attest.quarantined', 'b'),
    event(3, 'identity.clone', 'a', { check: 'identity.clone' }), event(2, 'audit.chain_broken', 'a', { fault: 'gap' }),
  ]);
  expect(groups.map((g) => [g.subject, g.events.length])).toEqual([['a', 3], ['b', 1]]);
  expect(groups[0]!.kinds.map((k) => [k.alarm.title, k.n, why(k.last)])).toEqual([['Two of one identity', 2, 'newest'], ['Broken audit trail', 1, 'gap']]);
});

test('an alarm says what its entry brings', () => {
  expect(why(event(1, 'identity.expiring', 'd', { not_after: '2026-12-05T12:00:00Z' }))).toMatch(/^Its certificate ends on .*2026/);
  expect(why(event(1, 'ownership.override', 'd', { to: 'Market', object_until: '2026-12-05T12:00:00Z' }))).toMatch(/^It goes to Market unless you object until .*2026/);
  expect(why(event(1, 'x', 'd'))).toBe('');
});

test('a boot that was not judged is not said to be good', () => {
  expect(meaning('attested', true)).toContain('started as its release should');
  expect(meaning('attested', false)).toContain('not judged');
  expect(meaning('quarantined', false)).toContain('kept from the fleet');
  expect(meaning('of tomorrow', true)).toBe('');
});

test('a waiver stands against a boot, never against a proof or an identity', () => {
  const of = (...checks: string[]) => waivable(checks.map((check) => ({ check, text: '' })));
  expect(of('boot.unknown-event', 'boot.no-log')).toBe(true);
  for (const check of ['quote.signature', 'tpm.reset-count', 'identity.revoked', 'identity.clone']) expect(of('boot.unknown-event', check), check).toBe(false);
});

test('a waiver ends within 30 days, whatever the date field says', () => {
  const now = new Date(2026, 10, 1, 12).getTime();
  expect(until('2026-11-08', now)).toBe(new Date(2026, 10, 8, 23, 59, 59).toISOString());
  for (const late of ['2026-12-01', '2027-06-01']) expect(Date.parse(until(late, now)) - now, late).toBeLessThan(30 * 86400e3);
});

test('a register is called by what it measures', () => {
  expect(register('7')).toBe('register 7 (Secure Boot keys)');
  expect(register(23)).toBe('register 23');
});

const title = (part: Partial<Title>): Title => ({
  device: 'd', vendor: 'Vend', model: 'm', serial: 's', order: '', state: 'owned', owner: { name: 'Shop', key: '' }, since: null, may_transfer: true, next: null,
  override: false, not_before: null, deadline: null, entries: 2, voucher: '', ...part,
});

test('the way of a device: vendor, owner, next owner', () => {
  const names = (t: Title) => steps(t, 0).map((s) => `${s.who} ${s.name}`);
  expect(names(title({}))).toEqual(['Vendor Vend', 'Owner Shop', 'Next owner nobody']);
  expect(names(title({ state: 'offered', next: { name: 'Market', key: '' } }))).toEqual(['Vendor Vend', 'Owner Shop', 'Next owner Market']);
  // Who has accepted owns it by the voucher, while it is still ours to be emptied.
  expect(names(title({ state: 'releasing', owner: { name: 'Market', key: '' } }))).toEqual(['Vendor Vend', 'Owner until now this tenant', 'Next owner Market']);
  expect(steps(title({ state: 'offered', next: { name: 'Market', key: '' }, not_before: '2026-01-02T00:00:00Z' }), 0)[2]!.text).toContain('from ');
});

test('a party file is read as the console of the buyer writes it; other files say what to ask for', () => {
  expect(party('{"public_key":"AAAA","name":"Market","tenant":"market"}')).toEqual({ key: 'AAAA', name: 'Market', tenant: 'market' });
  expect(party('{"public_key":"AAAA","name":"Market"}').tenant).toBe('');
  for (const bad of ['', '[]', '{"name":"Market"}', '{"public_key":7,"name":"Market"}']) expect(() => party(bad), bad).toThrow('party file');
});
