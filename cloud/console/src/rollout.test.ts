import { expect, test } from 'vitest';
import type { AuditEvent, Execution, Rollout } from './api';
import { compared, gate, limits, neutral, part, pieces, reasons, soaking, sources, timeline, wait } from './rollout';

test('a bar shows what is done first and what went wrong last', () => {
  const bar = pieces({ FAILED: 1, TIMED_OUT: 2, QUEUED: 12, SUCCEEDED: 22, ALREADY_INSTALLED: 2, DOWNLOADING: 0, WAITING: 3, REMOVED: 4, CANCELED: 1 });
  expect(bar.pieces.map((p) => [p.part, p.n])).toEqual([['done', 24], ['wait', 3], ['next', 12], ['bad', 3]]);
  expect(bar.pieces[0]?.text).toBe('22 succeeded, 2 already installed');
  expect(bar.total).toBe(42);
});

test('ends that say nothing of the release are not held against it', () => {
  const bar = pieces({ SUCCEEDED: 4, FAILED: 3, TIMED_OUT: 2 }, 2);
  expect(bar.pieces.map((p) => [p.part, p.n])).toEqual([['done', 4], ['void', 2], ['bad', 3]]);
  expect(bar.total).toBe(9);
  expect(neutral({ state: 'TIMED_OUT', reason: 'unreachable' })).toBe(true);
  expect(neutral({ state: 'REJECTED', reason: 'downgrade' })).toBe(true);
  expect(neutral({ state: 'REJECTED', reason: 'expired' })).toBe(true);
  expect(neutral({ state: 'FAILED', reason: 'selfcheck' })).toBe(false);
  expect(neutral({ state: 'SUCCEEDED', reason: 'canceled' })).toBe(false);
});

test('a state that this console does not know is under way, never done', () => expect(part('SOMETHING_NEW')).toBe('busy'));

test('who waits is counted by reason and wave, the most first', () => {
  const e = (wave: number, reason: string) => ({ wave, reason }) as Execution;
  const r = reasons([e(0, 'space'), e(0, 'window-install'), e(0, 'window-install'), e(1, 'power')]);
  expect(r.get(0)).toEqual([{ reason: 'window-install', n: 2 }, { reason: 'space', n: 1 }]);
  expect(r.get(1)).toEqual([{ reason: 'power', n: 1 }]);
  expect(wait('window-install')).toBe('hours to install');
  expect(wait('new-thing')).toBe('new thing');
});

test('a wave\'s own gate goes before the rollout\'s, which goes before what is usual', () => {
  expect(gate({ success: 99 }, { success: 90, bad: -1 })).toEqual({ success: 99, bad: -1, min_sample: 20, bad_cap: 0, site_bad: 2, health: 3 });
});

test('limits say how far it is to the gate', () => {
  const g = gate(undefined, undefined);
  expect(limits(g, 0, 0).map((l) => l.tone)).toEqual(['dim', 'dim']);
  expect(limits(g, 98, 2)).toEqual([{ text: '98 % ended well, 95 % must', tone: 'good' }, { text: '2 % ended badly, 5 % may', tone: 'good' }]);
  expect(limits(g, 8, 2).map((l) => l.tone)).toEqual(['warn', 'warn']);
  expect(limits(g, 8, 2)[1]?.text).toContain('judged from 20 on');
  expect(limits(g, 80, 20)[1]?.tone).toBe('bad');
  expect(limits({ ...g, success: -1, bad: -1 }, 8, 2)).toEqual([]);
});

test('a soak counts down and only while it soaks', () => {
  const w = { state: 'SOAKING', soaked_at: new Date(1000).toISOString(), soak_s: 60 };
  expect(soaking(w, 31_000)).toBe(30_000);
  expect(soaking(w, 999_000)).toBe(0);
  expect(soaking({ ...w, state: 'PASSED' }, 31_000)).toBeUndefined();
});

test('health compares rates, not counts, and one lucky control group accuses nobody', () => {
  const f = (devices: number, hours: number, peripheral: number) => ({ devices, hours, peripheral, reconnects: 0, crashes: 0 });
  const g = gate(undefined, undefined);
  const at = (u: number, c: number) => compared({ updated: f(10, 100, u), control: f(100, 1000, c) }, g)[0]!;
  expect(at(10, 10)).toMatchObject({ updated: '10 (100)', control: '10 (10)', note: '10 times', tone: 'bad' });
  expect(at(5, 0).tone).toBe('good');
  expect(at(1, 10)).toMatchObject({ note: '1 times', tone: 'good' });
  expect(compared({ updated: f(0, 0, 0), control: f(0, 0, 0) }, g)[0]).toMatchObject({ note: 'too little known', tone: 'dim' });
});

test('bytes that did not come from the service were saved', () => {
  const s = sources({ wire: 5, peer: 20, medium: 0, reused: 75 });
  expect([s.total, s.saved]).toEqual([100, 95]);
  expect(s.all.map((x) => x.n)).toEqual([75, 20, 5]);
});

test('the timeline tells of waves, holds and people, newest first', () => {
  const at = (s: number) => new Date(s * 1000).toISOString();
  const r = {
    id: 'ro_1', state: 'PAUSED', created_at: at(1), created_by: 'ann', approved_at: at(2), approved_by: 'bob', started_at: at(3), ended_at: null,
    waves: [{ name: 'canary', state: 'PASSED', started_at: at(3), soaked_at: at(4), soak_s: 60, ended_at: at(5) }],
    holds: [{ model: 'pos-9', site: '', reason: 'too many', since: at(6), released_at: null }],
  } as unknown as Rollout;
  const e = (kind: string, subject: string, s: number, reason = '') => ({ kind, subject, at: at(s), actor: 'ann', detail: { reason } }) as unknown as AuditEvent;
  const all = timeline(r, [e('rollout.pause', 'ro_1', 7, 'lunch'), e('rollout.pause', 'ro_2', 8), e('release.published', 'ro_1', 9)]).map((m) => m.text);
  expect(all).toEqual([
    'Paused by ann: lunch', 'Model pos-9 held: too many', 'Wave canary passed', 'Wave canary: everybody ended, now watched', 'Wave canary began', 'Started', 'Approved by bob', 'Composed by ann',
  ]);
  const denied = timeline({ ...r, state: 'DENIED', waves: [], holds: [], started_at: null, approved_at: null, ended_at: at(9) }, [e('rollout.deny', 'ro_1', 9, 'not now'), e('rollout.deny', 'ro_2', 9)]);
  expect(denied.map((m) => m.text)).toEqual(['Denied by ann: not now', 'Composed by ann']);
});
