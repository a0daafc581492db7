// The public API as the console uses it: types, and one way to call it.

export interface Peripheral {
  id: string; category: string; driver: string; maker: string; model: string; serial: string; firmware: string;
  simulated: boolean; power: string; health: string; reason: string; advice: string; since: string | null;
  sensors: Record<string, string> | null;
}

export interface Device {
  id: string; tenant: string; tier: string; model: string; serial: string; site: string; group: string; label: string;
  trust: string; trust_reasons: string[]; attested_at: string | null; online: boolean; enrolled_at: string | null;
  last_seen: string | null; agent_version: string; slot: string; health: string; audit_head: number; audit_ok: boolean;
  samples: number; cert_serial: string; cert_not_after: string | null; ek_sha256: string; peripherals: Peripheral[];
  state: { started_at: string | null; spool_depth: number; spool_shed: number; audit_recorded: number; samples_recorded: number };
}

export interface Summary {
  devices: number; online: number; by_trust: Record<string, number>; by_version: Record<string, number>;
  by_health: Record<string, number>; samples: number; audit_events: number;
}

export interface Series { peripheral: string; name: string; last: number; at: string | null; count: number }
export interface PeripheralEvent { at: string | null; peripheral: string; category: string; code: string; from: string; to: string }
export interface AuditEvent {
  seq: number; at: string | null; kind: string; severity: string; actor: string; subject: string;
  detail: Record<string, string> | null; hash: string; prev: string; stored_at: string | null;
}
export interface Chain { ok: boolean; entries: number; first: number; last: number; broken_at: number; text: string }
export interface Command {
  id: string; device: string; verb: string; args: Record<string, string> | null; by: string; reason: string;
  issued_at: string | null; not_after: string | null; state: string; code: string; text: string; output: string;
  output_encoding?: string; ended_at: string | null;
}
export interface Release {
  id: string; class: string; version: string; published_at: string | null; published_by: string;
  targets: { path: string; sha256: string; length: number }[];
}
export interface Rollout {
  id: string; release: string; group: string; state: string; reason: string; created_at: string | null; created_by: string;
  ended_at: string | null; deadline_s: number; max_failed: number; counts: Record<string, number>; total: number;
}
export interface Execution {
  id: string; device: string; state: string; reason: string; text: string; from: string; to: string;
  done: number; total: number; updated_at: string | null;
}
export interface Session { name: string; role: string; tenant: string }
export interface List<T> { items: T[]; next: string }

/** A refusal of the API, with what to do about it [RFC 9457]. */
export class Problem extends Error {
  constructor(readonly status: number, detail: string) { super(detail); }
}

/** Called when the session has ended. */
let onSignedOut: () => void = () => undefined;
export function whenSignedOut(f: () => void) { onSignedOut = f; }

export async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  const init: RequestInit = { method, headers: { 'X-Tillward': '1' } };
  if (body !== undefined) {
    init.headers = { ...init.headers, 'Content-Type': 'application/json' };
    init.body = JSON.stringify(body);
  }
  let res: Response;
  try {
    res = await fetch(path, init);
  } catch {
    throw new Problem(0, 'The fleet service cannot be reached. Is it running?');
  }
  if (res.ok) return (res.status === 204 ? undefined : await res.json()) as T;
  if (res.status === 401 && !(method === 'POST' && path === '/v1/session')) onSignedOut();
  let detail = `The fleet service answered ${res.status}.`;
  try {
    const p = (await res.json()) as { detail?: string; errors?: { message: string }[] };
    if (p.detail) detail = [p.detail, ...(p.errors ?? []).map((e) => e.message)].join(' ');
  } catch { /* no problem document */ }
  throw new Problem(res.status, detail);
}

export const get = <T>(path: string) => call<T>('GET', path);

/** The first `count` rows of a list, read by its keys in pages of what the service gives at once. */
export async function rows<T>(path: string, count: number): Promise<List<T>> {
  const all: List<T> = { items: [], next: '' };
  do {
    const query = new URLSearchParams({ limit: String(Math.min(1000, count - all.items.length)), ...(all.next && { after: all.next }) });
    const page = await get<List<T>>(`${path}${path.includes('?') ? '&' : '?'}${query}`);
    all.items.push(...page.items);
    all.next = page.items.length > 0 ? page.next : '';
  } while (all.next && all.items.length < count);
  return all;
}

export const post = <T>(path: string, body: unknown) => call<T>('POST', path, body);
export const patch = <T>(path: string, body: unknown) => call<T>('PATCH', path, body);
export const id = encodeURIComponent;
