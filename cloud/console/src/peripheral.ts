// What is said of peripherals: paper, read errors, how long something has been so.
import type { Check, Paper, Peripheral, PeripheralDetail, Reads } from './api';
import { many, percent, reason, span, type Tone, words } from './format';
import type { Change } from './live';

export interface Said { text: string; note: string; tone: Tone }

const bases: Record<string, string> = {
  configured: 'by the length of the roll', learned: 'by the rolls before', near_end: 'by the near-end sensor',
};

/** When the paper ends: "Paper for 3 h 20 min", and how sure that is. */
export function paperText(p: Paper, now: number): Said {
  const basis = bases[p.basis] ?? '';
  const lines = p.lines_left > 0 ? many(Math.round(p.lines_left), 'line') + ' left' : '';
  if (!p.run_out_at) return { text: lines || 'No prediction yet', note: ['nothing is printed at the moment', basis].filter(Boolean).join(', '), tone: 'dim' };
  const left = Date.parse(p.run_out_at) - now;
  const range = p.earliest && p.latest ? `between ${span(Math.max(0, Date.parse(p.earliest) - now))} and ${span(Math.max(0, Date.parse(p.latest) - now))}` : '';
  const sure = p.confidence >= 0.8 ? 'quite sure' : p.confidence >= 0.5 ? 'fairly sure' : 'a rough guess';
  return {
    text: left <= 0 ? 'The paper should be out by now' : `Paper for ${span(left)}`,
    note: [lines, range, `${sure} (${Math.round(p.confidence * 100)} %)`, basis].filter(Boolean).join(', '),
    tone: left < 2 * 3600e3 ? 'warn' : p.confidence >= 0.5 ? 'good' : 'dim',
  };
}

/** How a reader reads: "2 % of cards not read", beside the fleet. */
export function readsText(r: Reads): Said {
  const bad = percent(r.rate, 1);
  return {
    text: r.rate === 0 ? 'Every card was read' : `${bad} of cards not read`,
    note: `of ${many(r.reads, 'card')}; ${percent(r.fleet_rate, 1)} with readers of this model${r.worse ? ', so this one is worse than others' : ''}`,
    tone: r.worse ? 'warn' : r.reads < 20 ? 'dim' : 'good',
  };
}

/** What is said of a peripheral's paper or reads. What was so when the till was lost is not so for certain. */
export function more(p: Peripheral, now: number): Said | undefined {
  const said = p.paper ? paperText(p.paper, now) : p.reads ? readsText(p.reads) : undefined;
  return said && p.last ? { ...said, tone: 'dim' } : said;
}

/** What a health check looked at: "reachable ✓, page paper empty". */
export const stepsText = (c: Check): string => c.steps.map((s) => `${words(s.id)} ${s.ok ? '✓' : reason(s.code) || '✗'}`).join(', ');

/** Whether a change may show in the list of peripherals. */
export const concernsList = (c: Change): boolean => c.kind === 'peripheral' || c.kind === 'device';

/** Reasons that somebody looks for, whether the part of the list that is shown has them or not. */
const looked = [
  'COVER_OPEN', 'REC_EMPTY', 'REC_NEAREMPTY', 'M_PAPER_SOON', 'M_CUTTER_ERROR', 'M_READ_ERRORS', 'M_TAMPERED', 'M_DRAWER_UNEXPECTED_OPEN', 'POWER_OFF_OFFLINE', 'M_TILL_OFFLINE', 'M_IN_USE', 'M_NO_DRIVER',
  'M_NO_SENSOR',
];
export const reasons = (shown: string[]): string[] => [...new Set([...looked, ...shown])].filter(Boolean).sort((a, b) => reason(a).localeCompare(reason(b)));

const order = ['Fault', 'Offline', 'Attention', 'Unknown', 'OK'];

export interface Part { health: string; seconds: number; times: number; share: number; reasons: { reason: string; seconds: number; times: number }[] }

/** Durations by light, worst first, with their reasons; shares are of the time that is known. */
export function parts(durations: PeripheralDetail['durations']): Part[] {
  const whole = durations.reduce((n, d) => n + d.seconds, 0);
  return order.flatMap((health) => {
    const of = durations.filter((d) => d.health === health && d.seconds > 0);
    if (of.length === 0) return [];
    const seconds = of.reduce((n, d) => n + d.seconds, 0);
    return [{
      health, seconds, times: of.reduce((n, d) => n + d.times, 0), share: whole > 0 ? seconds / whole : 0,
      reasons: of.filter((d) => d.reason).sort((a, b) => b.seconds - a.seconds).map(({ reason, seconds, times }) => ({ reason, seconds, times })),
    }];
  });
}
