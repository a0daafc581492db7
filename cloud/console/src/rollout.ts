// What a rollout's numbers mean: the parts of its bar, its gates, its health,
// its bytes and what happened when.
import type { AuditEvent, Bytes, Counts, Execution, Faults, Gate, Health, Rollout } from './api';
import { count, percent, sentence, type Tone, words } from './format';

export type Part = 'done' | 'busy' | 'wait' | 'next' | 'void' | 'bad';
const parts: Part[] = ['done', 'busy', 'wait', 'next', 'void', 'bad'];
export const partNames: Record<Part, string> = { done: 'Done', busy: 'Under way', wait: 'Waiting', next: 'To come', void: 'No verdict', bad: 'Ended badly' };

/** The states of a device's part in a rollout, in order, then its ends. */
export const executionStates = [
  'QUEUED', 'OFFERED', 'WAITING', 'DOWNLOADING', 'STAGED', 'INSTALLING', 'INSTALLED', 'REBOOTING', 'CHECKING',
  'SUCCEEDED', 'ALREADY_INSTALLED', 'FAILED', 'ROLLED_BACK', 'REJECTED', 'TIMED_OUT', 'CANCELED', 'REMOVED',
];

/** Which part of the bar a state belongs to; who left, or was called off, is in none. */
export function part(state: string): Part | '' {
  switch (state) {
    case 'SUCCEEDED': case 'ALREADY_INSTALLED': return 'done';
    case 'WAITING': return 'wait';
    case 'QUEUED': return 'next';
    case 'FAILED': case 'ROLLED_BACK': case 'REJECTED': case 'TIMED_OUT': return 'bad';
    case 'CANCELED': case 'REMOVED': return '';
  }
  return 'busy';
}

/** A piece of the bar: how many, and of which states. */
export interface Piece { part: Part; n: number; states: number; text: string }

/** Whether a device's part ended in a way that says nothing of the release. */
export function neutral(e: { state: string; reason: string }): boolean {
  if (e.state === 'REJECTED') return e.reason === 'downgrade' || e.reason === 'expired';
  return (e.state === 'FAILED' || e.state === 'TIMED_OUT') && ['canceled', 'superseded', 'unreachable', 'waited', 'expired', 'busy'].includes(e.reason);
}

/** The pieces of a rollout in an order that does not jump, and how many devices they are. So many of its bad ends say nothing of the release. */
export function pieces(counts: Counts, voids = 0): { pieces: Piece[]; total: number } {
  const all = parts.map((p): Piece => {
    const mine = executionStates.filter((s) => part(s) === p && (counts[s] ?? 0) > 0);
    const n = mine.reduce((sum, s) => sum + counts[s]!, 0);
    const text = mine.map((s) => `${count(counts[s]!)} ${words(s)}`).join(', ');
    if (p === 'void') return { part: p, states: 0, n: voids, text: 'called back, silent or waited too long before anything was touched' };
    return { part: p, states: mine.length, n: p === 'bad' ? n - voids : n, text: p === 'bad' && voids > 0 ? `among ${text}` : text };
  });
  return { pieces: all.filter((p) => p.n > 0), total: all.reduce((sum, p) => sum + p.n, 0) };
}

/** The bar in words. */
export const told = (all: Piece[]): string => all.map((p) => `${count(p.n)} ${partNames[p.part].toLowerCase()}`).join(', ');

/** What a device waits for, in two or three words. */
const waits: Record<string, string> = {
  'window-download': 'hours to fetch', 'window-install': 'hours to install', 'idle-lock': 'the till in use', power: 'power', space: 'space',
  budget: 'bytes of the day', 'audit-full': 'a full audit trail', site: 'another till of the site', busy: 'another update',
  window: 'hours', offline: 'the connection', unreachable: 'the connection', held: 'a hold', wave: 'its wave', rate: 'the rate',
  'model-unproved': 'proof on its model', requires: 'something required', model: 'nothing: wrong model', quarantined: 'trust', rollout: 'the rollout',
  next: 'its turn, which is now', offered: 'an answer', downloading: 'its download', staged: 'its install', installing: 'its install',
};
export const wait = (reason: string): string => waits[reason] ?? (words(reason.replaceAll('-', ' ')) || 'something else');

/** Who cannot be brought a release now, in two or three words. */
const blocks: Record<string, string> = {
  window: 'outside their hours', space: 'with too little space', requires: 'without what it requires', model: 'of another model', offline: 'not connected',
  quarantined: 'not trusted', busy: 'at another update', held: 'held', power: 'without power',
};
export const blockedBy = (reason: string): string => blocks[reason] ?? words(reason.replaceAll('-', ' '));

/** How many of these wait for what, the most first; by wave. */
export function reasons(waiting: Execution[]): Map<number, { reason: string; n: number }[]> {
  const by = new Map<number, Map<string, number>>();
  for (const e of waiting) {
    const mine = by.get(e.wave) ?? new Map<string, number>();
    by.set(e.wave, mine.set(e.reason, (mine.get(e.reason) ?? 0) + 1));
  }
  return new Map([...by].map(([wave, m]) => [wave, [...m].map(([reason, n]) => ({ reason, n })).sort((a, b) => b.n - a.n || a.reason.localeCompare(b.reason))]));
}

const usual = { success: 95, bad: 5, min_sample: 20, bad_cap: 0, site_bad: 2, health: 3 };

/** A gate as it counts: a wave's own over the rollout's over what is usual. */
export function gate(own: Gate | undefined, over: Gate | undefined): Required<Gate> {
  const g = { ...usual };
  for (const from of [over, own]) for (const k of Object.keys(g) as (keyof Gate)[]) if (from?.[k]) g[k] = from[k]!;
  return g;
}

export interface Limit { text: string; tone: Tone }

/** Where a wave stands against its gate. */
export function limits(g: Required<Gate>, good: number, bad: number): Limit[] {
  const ended = good + bad;
  const out: Limit[] = [];
  if (g.success >= 0) {
    const met = good * 100 >= g.success * ended;
    out.push({ text: ended ? `${percent(good, ended)} ended well, ${g.success} % must` : `${g.success} % must end well`, tone: !ended ? 'dim' : met ? 'good' : 'warn' });
  }
  if (g.bad >= 0) {
    const judged = ended >= g.min_sample;
    const over = bad * 100 > g.bad * ended;
    const soon = judged ? '' : `, judged from ${g.min_sample} on`;
    out.push({ text: ended ? `${percent(bad, ended)} ended badly, ${g.bad} % may${soon}` : `${g.bad} % may end badly${soon}`, tone: over ? (judged ? 'bad' : 'warn') : ended ? 'good' : 'dim' });
  }
  return out;
}

/** What of a soak is left in milliseconds; nothing when the wave does not soak. */
export function soaking(w: { state: string; soaked_at: string | null; soak_s: number }, now: number): number | undefined {
  return w.state === 'SOAKING' && w.soaked_at ? Math.max(0, Date.parse(w.soaked_at) + w.soak_s * 1000 - now) : undefined;
}

export interface Compared { what: string; updated: string; control: string; note: string; tone: Tone }

/** Updated devices against those that are not yet, each fault in a thousand device-hours. */
export function compared(h: Health, g: Required<Gate>): Compared[] {
  const per = (n: number, f: Faults) => (f.hours > 0 ? 1000 * n / f.hours : 0);
  const said = (n: number, f: Faults) => (f.hours > 0 ? `${count(n)} (${parseFloat(per(n, f).toPrecision(2))})` : 'nothing known yet');
  return ([['Peripherals went bad', 'peripheral'], ['Connection lost', 'reconnects'], ['Agent crashed', 'crashes']] as const).map(([what, k]): Compared => {
    const u = h.updated[k];
    const both = h.updated.hours > 0 && h.control.hours > 0;
    const times = both && h.control[k] > 0 ? per(u, h.updated) / per(h.control[k], h.control) : undefined;
    // As the service judges: one more than was seen, and few are chance.
    const over = both && g.health >= 0 && u > 5 && u > (g.health * (h.control[k] + 1) / h.control.hours) * h.updated.hours;
    const note = !both ? 'too little known' : times === undefined ? (u === 0 ? 'none on either side' : 'none among the others') : `${parseFloat(times.toPrecision(2))} times`;
    return { what, updated: said(u, h.updated), control: said(h.control[k], h.control), note, tone: !both ? 'dim' : over ? 'bad' : times !== undefined && times > 1.5 && u > 5 ? 'warn' : 'good' };
  });
}

export interface Source { name: string; n: number; tone: Tone | 'wait' }

/** Where the bytes came from; what did not come from the service was saved. */
export function sources(b: Bytes): { all: Source[]; total: number; saved: number } {
  const all: Source[] = [
    { name: 'found on the devices', n: b.reused, tone: 'good' }, { name: 'from tills of the site', n: b.peer, tone: 'busy' },
    { name: 'from sticks', n: b.medium, tone: 'wait' }, { name: 'from the service', n: b.wire, tone: 'dim' },
  ];
  const total = all.reduce((sum, s) => sum + s.n, 0);
  return { all: all.filter((s) => s.n > 0), total, saved: total - b.wire };
}

export interface Moment { at: string; text: string; tone: Tone }

const acts: Record<string, string> = {
  'rollout.submit': 'handed in', 'rollout.approve': 'approved', 'rollout.deny': 'denied', 'rollout.pause': 'paused', 'rollout.resume': 'resumed', 'rollout.abort': 'aborted',
  'rollout.complete': 'completed without those who are left', 'rollout.retry': 'tried again', 'rollout.start': 'started', 'rollout.changed': 'composed anew',
};

/** What happened when, newest first: what the rollout itself holds, and who did what by the trail. */
export function timeline(r: Rollout, trail: AuditEvent[]): Moment[] {
  const out: Moment[] = [];
  const add = (at: string | null, text: string, tone: Tone = 'dim') => { if (at) out.push({ at, text, tone }); };
  const mine = trail.filter((e) => e.subject === r.id);
  const said = new Set(mine.map((e) => e.kind));
  add(r.created_at, `Composed by ${r.created_by}`);
  if (!said.has('rollout.approve')) add(r.approved_at, `Approved by ${r.approved_by}`, 'good');
  if (!said.has('rollout.start')) add(r.started_at, 'Started', 'busy');
  for (const w of r.waves) {
    add(w.started_at, `Wave ${w.name} began`, 'busy');
    if (w.soak_s > 0) add(w.soaked_at, `Wave ${w.name}: everybody ended, now watched`, 'busy');
    if (w.state === 'PASSED' || w.state === 'FAILED') add(w.ended_at, `Wave ${w.name} ${w.state === 'PASSED' ? 'passed' : 'failed'}`, w.state === 'PASSED' ? 'good' : 'bad');
  }
  for (const h of r.holds) {
    const what = h.model ? `Model ${h.model}` : `Site ${h.site}`;
    add(h.since, `${what} held: ${h.reason}`, 'bad');
    add(h.released_at, `${what} let in again`, 'good');
  }
  for (const e of mine) {
    const did = acts[e.kind];
    if (did) add(e.at, sentence(`${did} by ${e.actor}${e.detail?.device ? `, ${e.detail.device}` : ''}${e.detail?.reason ? `: ${e.detail.reason}` : ''}`).replace(/\.$/, ''), /pause|deny|abort/.test(e.kind) ? 'warn' : /approve/.test(e.kind) ? 'good' : 'dim');
    if (e.kind === 'rollout.paused') add(e.at, `Paused by itself: ${e.detail?.reason ?? ''}`, 'bad');
  }
  if (!said.has('rollout.deny') && !said.has('rollout.complete')) add(r.ended_at, sentence(words(r.state)).replace(/\.$/, ''), r.state === 'COMPLETED' ? 'good' : 'warn');
  const order = new Map(out.map((m, i) => [m, i]));
  return out.sort((a, b) => Date.parse(b.at) - Date.parse(a.at) || order.get(b)! - order.get(a)!);
}

/** Whether the rollout has ended for good. */
export const ended = (state: string): boolean => ['DENIED', 'ABORTED', 'COMPLETED', 'SUPERSEDED'].includes(state);
