import { expect, test } from 'vitest';
import type { Figure } from './api';
import { answers, columns, faulty, healthName, ofAll, perSecond, rate, share, slowest, timed, took } from './figures';

const figure = (at: string, f: Partial<Figure> = {}): Figure => ({ at, span_s: 10, ok: 0, redirected: 0, refused: 0, failed: 0, bytes: 0, p50_ms: 0, p95_ms: 0, p99_ms: 0, ...f });

test('a line breaks where the service did not run, and stays at zero where nothing was asked', () => {
  const points = [
    figure('2026-11-26T10:00:00Z', { ok: 50, p50_ms: 4 }), figure('2026-11-26T10:00:10Z'), figure('2026-11-26T10:05:00Z', { ok: 10, span_s: 300 }),
  ];
  const [x, y, ms] = columns(points, perSecond(answers), timed((f) => f.p50_ms));
  expect(x?.length).toBe(4);
  expect(y).toEqual([5, 0, null, 10 / 300]);
  expect(ms).toEqual([4, null, null, null]);
  expect(columns(points, ofAll((f) => f.ok))[1]).toEqual([1, null, null, 1]); // of nothing there is no share
});

test('small numbers are not rounded away', () => {
  expect([0, 0.001, 0.25, 3.14159, 12345.6].map(rate)).toEqual(['0', '< 0.01', '0.25', '3.1', '12,346']);
  expect([0, 0.4321, 12.3, 1500].map(took)).toEqual(['–', '0.43 ms', '12 ms', '1.5 s']);
  expect([0, 0.00001, 0.0123, 1].map(share)).toEqual(['0 %', '< 0.01 %', '1.2 %', '100 %']);
  expect(faulty(figure('', { ok: 3, failed: 1 }))).toBe(0.25);
  expect(faulty(figure(''))).toBe(0);
});

test('what comes in several is told apart', () => {
  expect(['store', 'export/siem', 'disk /var/log', 'gateway'].map(healthName)).toEqual(['Database', 'Export to the SIEM: siem', 'Disk: /var/log', 'gateway']);
});

test('the slowest come first, and what has no time not at all', () => {
  const ops = [['fast', 1], ['slow', 90], ['untimed', 0]].map(([op, p95_ms]) => ({ part: 'api', op: String(op), total: figure('', { ok: 1, p95_ms: Number(p95_ms) }) }));
  expect(slowest(ops).map((o) => o.op)).toEqual(['slow', 'fast']);
});
