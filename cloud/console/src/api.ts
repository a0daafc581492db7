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
  findings: Finding[]; boot_release: string; boot_digest: string; reset_count: number; waiver: Waiver | null; certificate: Certificate;
  revoked_at: string | null; revoked_why: string; former_of: string; left_at: string | null; ownership?: Ownership;
}

export interface Finding { check: string; pcr?: string; event?: string; release?: string; text: string }
export interface Waiver { until: string; by: string; reason: string }
/** The certificate in use, the newer one that waits to be shown, and the one that opens quarantine only. */
export interface Certificate { serial: string; not_after: string | null; next: Issued | null; recovery: string }
export interface Issued { serial: string; not_after: string | null }
export interface Ownership { state: string; owner: string; deadline: string | null; entries: number }
export interface Attestation {
  at: string | null; trust: string; release: string; reset_count: number; digest: string; findings: Finding[];
}
export interface Waiting {
  device: string; ek_sha256: string; tier: string; model: string; serial: string; from: string;
  first_at: string | null; last_at: string | null; listed: boolean; claimed: boolean;
}
export interface FirmwareEvent {
  model: string; pcr: number; digest: string; what: string; devices: number; first_at: string | null; first: string;
  state: string; by: string; at: string | null;
}
export interface Reference {
  model: string; release: string; published_at: string | null;
  body: { policy: number[] | null; soft: number[] | null; floor: number; chains: { name: string; registers: Record<string, unknown[]> | null }[] | null } | null;
}
export interface Issuing { serial: string; not_before: string | null; not_after: string | null; current: boolean }
/** Someone who owns devices, or shall. */
export interface Party { name: string; tenant?: string; key: string }
/** What the voucher of a device says. */
export interface Title {
  device: string; vendor: string; model: string; serial: string; order: string; state: string; owner: Party; since: string | null;
  may_transfer: boolean; next: Party | null; override: boolean; not_before: string | null; deadline: string | null; entries: number; voucher: string;
}
export interface Imported { device: string; serial: string; outcome: string; text: string }
export interface Batch { vendor: string; batch: string; order: string; devices: number; added: number }

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
  if (body instanceof Blob) {
    init.headers = { ...init.headers, 'Content-Type': body.type };
    init.body = body;
  } else if (body !== undefined) {
    init.headers = { ...init.headers, 'Content-Type': 'application/json' };
    init.body = JSON.stringify(body);
  }
  let res: Response;
  try {
    res = await fetch(path, init);
  } catch {
    throw new Problem(0, 'The fleet service cannot be reached. Is it running?');
  }
  if (res.ok) {
    const text = await res.text();
    return (text ? JSON.parse(text) : undefined) as T;
  }
  if (res.status === 401 && !(method === 'POST' && path === '/v1/session')) onSignedOut();
  let detail = `The fleet service answered ${res.status}.`;
  try {
    const p = (await res.json()) as { detail?: string; errors?: { message: string }[] };
    if (p.detail) detail = [p.detail, ...(p.errors ?? []).map((e) => e.message)].join(' ');
  } catch { /* no problem document */ }
  throw new Problem(res.status, detail);
}

export const get = <T>(path: string) => call<T>('GET', path);

/** The first `count` rows of a list, read by its keys in pages of what the service gives at once. A filtered page may be empty and still not be the last. */
export async function rows<T>(path: string, count: number): Promise<List<T>> {
  const all: List<T> = { items: [], next: '' };
  do {
    const query = new URLSearchParams({ limit: String(Math.min(1000, count - all.items.length)), ...(all.next && { after: all.next }) });
    const page = await get<List<T>>(`${path}${path.includes('?') ? '&' : '?'}${query}`);
    all.items.push(...page.items);
    all.next = page.next === all.next ? '' : page.next;
  } while (all.next && all.items.length < count);
  return all;
}

export const post = <T>(path: string, body: unknown) => call<T>('POST', path, body);
export const put = <T>(path: string, body: unknown) => call<T>('PUT', path, body);
export const patch = <T>(path: string, body: unknown) => call<T>('PATCH', path, body);
/** Sends a file as it is. */
export const upload = <T>(path: string, file: Blob, type: string) => call<T>('POST', path, file.slice(0, file.size, type));
export const id = encodeURIComponent;
