import { describe, expect, it } from 'vitest';
import type { Check, Paper, Peripheral } from './api';
import { concernsList, more, paperText, parts, readsText, reasons, stepsText } from './peripheral';

const noon = Date.parse('2026-11-26T12:00:00Z');
const paper = (over: Partial<Paper> = {}): Paper => ({
  run_out_at: '2026-11-26T15:20:00Z', earliest: '2026-11-26T14:50:00Z', latest: '2026-11-26T15:50:00Z', confidence: 0.9, lines_left: 812.4, lines_per_hour: 240, basis: 'configured', ...over,
});

describe('paper', () => {
  it('says for how long, how sure and by what', () => {
    expect(paperText(paper(), noon)).toEqual({ text: 'Paper for 3 h 20 min', note: '812 lines left, between 2 h 50 min and 3 h 50 min, quite sure (90 %), by the length of the roll', tone: 'good' });
  });
  it('warns two hours before', () => expect(paperText(paper({ run_out_at: '2026-11-26T13:30:00Z' }), noon).tone).toBe('warn'));
  it('does not promise what it does not know', () => {
    expect(paperText(paper({ confidence: 0.2 }), noon).note).toContain('a rough guess');
    expect(paperText(paper({ run_out_at: null }), noon)).toMatchObject({ text: '812 lines left', tone: 'dim' });
    expect(paperText(paper({ run_out_at: null, lines_left: 0 }), noon).tone).toBe('dim');
  });
  it('says when it should be over', () => expect(paperText(paper({ run_out_at: '2026-11-26T11:00:00Z' }), noon)).toMatchObject({ text: 'The paper should be out by now', tone: 'warn' }));
});

describe('reads', () => {
  it('stands beside the fleet', () => {
    expect(readsText({ rate: 0.08, fleet_rate: 0.01, reads: 250, worse: true })).toEqual({ text: '8 % of cards not read', note: 'of 250 cards; 1 % with readers of this model, so this one is worse than others', tone: 'warn' });
    expect(readsText({ rate: 0, fleet_rate: 0.01, reads: 250, worse: false }).tone).toBe('good');
  });
  it('is not green for a handful', () => expect(readsText({ rate: 0, fleet_rate: 0.01, reads: 3, worse: false }).tone).toBe('dim'));
});

describe('durations', () => {
  it('sums by light, worst first, and keeps the reasons', () => {
    const all = parts([
      { health: 'OK', reason: '', seconds: 3000, times: 3 }, { health: 'Fault', reason: 'COVER_OPEN', seconds: 200, times: 2 }, { health: 'Fault', reason: 'REC_EMPTY', seconds: 800, times: 1 },
      { health: 'Offline', reason: 'POWER_OFF_OFFLINE', seconds: 0, times: 0 },
    ]);
    expect(all.map((a) => [a.health, a.seconds, a.times, a.share])).toEqual([['Fault', 1000, 3, 0.25], ['OK', 3000, 3, 0.75]]);
    expect(all[0]!.reasons.map((r) => r.reason)).toEqual(['REC_EMPTY', 'COVER_OPEN']);
  });
});

describe('what cannot be known', () => {
  const printer = (over: Partial<Peripheral>): Peripheral => ({
    id: 'receipt', category: 'POSPrinter', driver: 'escpos', maker: '', model: '', serial: '', firmware: '', simulated: false, power: 'PS_ONLINE', health: 'OK', reason: '', advice: '', since: null,
    sensors: {}, claim: 'own', key: '', interface: '', caps: [], roll_lines: 1000, paper: null, reads: null, last: null, gone_at: null, ...over,
  });
  const last = { health: 'OK', reason: '', since: null };
  it('is not green while the till is lost', () => {
    expect(more(printer({ paper: paper() }), noon)?.tone).toBe('good');
    expect(more(printer({ paper: paper(), last }), noon)?.tone).toBe('dim');
    expect(more(printer({ reads: { rate: 0, fleet_rate: 0, reads: 250, worse: false }, last }), noon)?.tone).toBe('dim');
    expect(more(printer({}), noon)).toBeUndefined();
  });
  it('is not green when it is a rough guess', () => {
    expect(paperText(paper({ confidence: 0.3 }), noon).tone).toBe('dim');
    expect(paperText(paper({ confidence: 0.3, run_out_at: '2026-11-26T13:30:00Z' }), noon).tone).toBe('warn');
  });
});

it('says what a health check looked at', () => {
  const check: Check = { at: null, level: 'external', ok: false, steps: [{ id: 'reachable', ok: true, code: '', ms: 3 }, { id: 'page', ok: false, code: 'REC_EMPTY', ms: 900 }, { id: 'drawer', ok: false, code: '', ms: 1 }] };
  expect(stepsText(check)).toBe('reachable ✓, page Paper empty, drawer ✗');
});

it('has the list follow what changes on peripherals', () => {
  expect(['peripheral', 'device', 'audit', 'command'].map((kind) => concernsList({ kind, id: 'd1' }))).toEqual([true, true, false, false]);
});

it('offers reasons that the rows at hand do not have, each once', () => {
  const all = reasons(['', 'E_TIMEOUT', 'REC_EMPTY']);
  expect(all).toEqual(expect.arrayContaining(['COVER_OPEN', 'E_TIMEOUT', 'M_TILL_OFFLINE']));
  expect(all.filter((r) => r === 'REC_EMPTY' || r === '')).toEqual(['REC_EMPTY']);
});
