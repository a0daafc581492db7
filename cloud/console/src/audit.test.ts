import { expect, test } from 'vitest';
import type { TrailEntry } from './api';
import { address, asked, lines, nothing, page, query } from './audit';

const noon = Date.parse('2026-11-24T12:00:30Z');

test('an address and what it asks for are the same', () => {
  const a = { ...nothing, who: 'anna', what: 'update.', outcome: 'failure', since: '7d' };
  expect(address(a)).toBe('/audit?who=anna&what=update.&outcome=failure&since=7d');
  expect(asked(address(a).slice('/audit'.length))).toEqual(a);
  expect(address(nothing)).toBe('/audit');
  expect(asked('?since=never&x=1')).toEqual(nothing);
});

test('what is asked for becomes a query of the API', () => {
  expect(`${query({ ...nothing, who: ' anna ', since: '1h' }, noon)}`).toBe('who=anna&from=2026-11-24T11%3A00%3A00.000Z');
  const own = query({ ...nothing, since: 'own', from: '2026-11-01T08:00', to: 'nonsense', clock: 'event' }, noon);
  expect(own.get('from')).toBe(new Date('2026-11-01T08:00').toISOString());
  expect(own.has('to')).toBe(false);
  expect(own.get('clock')).toBe('event');
  expect(query({ ...nothing, from: '2026-11-01T08:00' }, noon).size).toBe(0); // not its own time: it is not shown either
});

test('entries become lines, and subjects have pages', () => {
  const e = { n: 7, device: '', subject: 'ro_x', kind: 'rollout.pause' } as TrailEntry;
  expect(lines([e, e])).toBe(`${JSON.stringify(e)}\n${JSON.stringify(e)}\n`);
  expect(lines([])).toBe('');
  expect(page(e)).toBe('/rollouts/ro_x');
  expect(page({ ...e, subject: 'abcdefghijklmnopqrstuvwx' })).toBe('/device/abcdefghijklmnopqrstuvwx');
  expect(page({ ...e, subject: 'receipt' })).toBe('');
});
