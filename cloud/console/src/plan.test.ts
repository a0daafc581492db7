import { expect, test } from 'vitest';
import type { Spec } from './api';
import { fresh, ids, moved, type Pick, planOf, secondsOf, spanOf, specOf, takes, unnamed, wave, whom } from './plan';

test('a new plan begins careful: canaries, an early part, the rest', () => {
  const s = specOf(fresh('agent/1.2.3'));
  expect(s.waves).toEqual([{ name: 'canary', percent: 1, soak_s: 43200 }, { name: 'early', percent: 20, soak_s: 86400 }, { name: 'rest' }]);
  expect(s.gate).toEqual({ success: 95, bad: 5, min_sample: 20, site_bad: 2, health: 3 });
  expect(s).toMatchObject({ per_site: 1, joiners: true });
  expect(s).not.toHaveProperty('filter');
  expect(s).not.toHaveProperty('rate');
});

test('a plan that the service holds comes back as it was', () => {
  const s: Spec = {
    filter: { group: 'rest', devices: ['a', 'b'] },
    waves: [
      { name: 'canary', filter: { devices: ['till-1', 'till-2'] }, soak_s: 5400 },
      { name: 'pilot', filter: { group: 'pilot', model: 'pos-500' }, gate: { success: 99, health: -1 } },
      { name: 'tenth', percent: 10, filter: { site: 'oslo' }, soak_s: 86400 },
      { name: 'rest' },
    ],
    gate: { success: 90, bad: -1, min_sample: 5, bad_cap: 7, site_bad: -1, health: 2.5 },
    rate: { base: 50, factor: 2, every: 1000, max: 400 }, per_site: 2, in_flight: 100, rate_kib: 256, attempts: 2, download: '22:00-05:00', install: 'sun 00:00-24:00',
    deadline_s: 172800, unreachable_s: 3600, joiners: true, repair: true, steps_s: { INSTALLING: 600 },
  };
  expect(specOf(planOf('agent/1.2.3', s))).toEqual(s);
});

test('an empty share is not judged in the gate of the rollout, and is the rollout\'s in that of a wave', () => {
  const p = fresh('x');
  const s = specOf({ ...p, gate: { ...p.gate, bad: '', health: ' ' }, waves: [{ ...wave('a'), gate: { ...p.waves[0]!.gate, success: '99' } }] });
  expect(s.gate).toMatchObject({ bad: -1, health: -1 });
  expect(s.waves).toEqual([{ name: 'a', gate: { success: 99 } }]);
});

test('a wave that names nobody would take everybody, and is told of', () => {
  const at = (pick: Pick, value: string) => ({ ...fresh('x'), waves: [{ ...wave('a'), pick, value }, wave('b')] });
  expect(unnamed(at('group', ' '))?.name).toBe('a');
  expect(unnamed(at('devices', ', '))?.name).toBe('a');
  expect(unnamed(at('any', ''))).toBeUndefined();
  expect(unnamed(at('devices', 'd1'))).toBeUndefined();
  expect(specOf(at('devices', 'd1, d2\nd1')).waves?.[0]).toEqual({ name: 'a', filter: { devices: ['d1', 'd2'] } });
});

test('the last wave takes whoever is left, whatever it picked before', () => {
  const p = { ...fresh('x'), waves: [wave('b'), { ...wave('a', '10'), pick: 'group' as const, value: '' }] };
  expect(specOf(p).waves).toEqual([{ name: 'b' }, { name: 'a' }]);
  expect(unnamed(p)).toBeUndefined();
});

test('nonsense in a number is nothing, and no plan holds it', () => {
  expect(specOf({ ...fresh('x'), perSite: 'many', inFlight: '' })).not.toHaveProperty('per_site');
});

test('spans keep their unit', () => {
  for (const s of [1, 90, 3600, 5400, 86400, 90000]) expect(secondsOf(spanOf(s))).toBe(s);
  expect(spanOf(7200)).toEqual({ n: '2', unit: 'h' });
  expect(spanOf(5400)).toEqual({ n: '90', unit: 'min' });
  expect(spanOf(0).n).toBe('');
  expect(secondsOf({ n: '1.5', unit: 'h' })).toBe(5400);
});

test('waves change places', () => {
  expect(moved(['a', 'b', 'c'], 2, -1)).toEqual(['a', 'c', 'b']);
  expect(moved(['a', 'b', 'c'], 0, 1)).toEqual(['b', 'a', 'c']);
});

test('ids are read however they are pasted, and a filter is said in words', () => {
  expect(ids(' a,b;  c\na ')).toEqual(['a', 'b', 'c']);
  expect(whom(undefined)).toBe('every device');
  expect(whom({ group: 'pilot', site: 'oslo' })).toBe('group pilot, site oslo');
  expect(whom({ devices: ['a', 'b'] })).toBe('2 devices by name');
  expect(takes({ name: 'a', percent: 5 }, false)).toBe('5 %');
  expect(takes({ name: 'a', percent: 5, filter: { group: 'pilot' } }, false)).toBe('5 % of group pilot');
  expect(takes({ name: 'a', filter: { devices: ['x'] } }, false)).toBe('one device');
  expect(takes({ name: 'a', percent: 5 }, true)).toBe('the rest');
});
