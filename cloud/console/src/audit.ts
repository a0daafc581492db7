// What is looked for in the audit trails, as the address bar and as the API have it.
import type { TrailEntry } from './api';

export const nothing = { who: '', what: '', device: '', site: '', subject: '', severity: '', outcome: '', trail: '', since: '', from: '', to: '', clock: '' };
export type Asked = typeof nothing;

const spans: Record<string, number> = { '1h': 3600e3, '24h': 86400e3, '7d': 7 * 86400e3, '30d': 30 * 86400e3, '90d': 90 * 86400e3 };

/** The classes of kinds that the service and the tills record. */
export const classes = ['access', 'agent', 'attest', 'audit', 'authority', 'broker', 'claim', 'clock', 'command', 'device', 'enrol', 'export', 'firmware', 'identity', 'ingest', 'link', 'manifest', 'order', 'ownership', 'peripheral', 'release', 'rollout', 'service', 'site', 'spool', 'token', 'update', 'vault'];

/** What an address asks for; words that mean nothing are passed over. */
export function asked(search: string): Asked {
  const q = new URLSearchParams(search);
  const out = { ...nothing };
  for (const k of Object.keys(nothing) as (keyof Asked)[]) out[k] = q.get(k) ?? '';
  if (out.since && out.since !== 'own' && !spans[out.since]) out.since = '';
  return out;
}

/** The address of what is asked for. */
export function address(a: Asked): string {
  const q = new URLSearchParams(Object.entries(a).filter(([, v]) => v));
  return q.size > 0 ? `/audit?${q}` : '/audit';
}

/** What a field for day and time says, by the clock on the wall here; nonsense is nothing. */
function moment(local: string): string {
  const t = new Date(local);
  return local && !isNaN(t.getTime()) ? t.toISOString() : '';
}

/** The query of the API. A span begins at a whole minute, so that the same search stays the same for a while. */
export function query(a: Asked, now: number): URLSearchParams {
  const { since, from, to, ...rest } = a;
  const q = new URLSearchParams(Object.entries(rest).map(([k, v]) => [k, v.trim()] as [string, string]).filter(([, v]) => v));
  const set = (k: string, v: string) => { if (v) q.set(k, v); };
  const span = spans[since];
  if (span) set('from', new Date(Math.floor(now / 60e3) * 60e3 - span).toISOString());
  if (since === 'own') { set('from', moment(from)); set('to', moment(to)); }
  return q;
}

/** Entries as JSON lines, for a file. */
export function lines(items: TrailEntry[]): string {
  return items.map((e) => `${JSON.stringify(e)}\n`).join('');
}

/** Where an entry's subject has a page of its own. */
export function page(e: TrailEntry): string {
  if (e.subject.startsWith('ro_')) return `/rollouts/${encodeURIComponent(e.subject)}`;
  if (!e.device && /^[a-z2-7]{24}$/.test(e.subject)) return `/device/${encodeURIComponent(e.subject)}`;
  return '';
}
