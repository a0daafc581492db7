// The public API as the console uses it: types, and one way to call it.

export interface Peripheral {
  id: string; category: string; driver: string; maker: string; model: string; serial: string; firmware: string;
  simulated: boolean; power: string; health: string; reason: string; advice: string; since: string | null;
  sensors: Record<string, string> | null;
  claim: string; key: string; interface: string; caps: string[] | null; roll_lines: number; paper: Paper | null; reads: Reads | null;
  /** How it was, while its till is offline and when it is gone: sensors, paper and reads are of then, too. */
  last: Light | null; gone_at: string | null;
}

export interface Light { health: string; reason: string; since: string | null }
/** When a printer's roll will be used up, as the service works it out. */
export interface Paper {
  run_out_at: string | null; earliest: string | null; latest: string | null; confidence: number; lines_left: number; lines_per_hour: number; basis: string;
}
/** How often cards are not read, beside all readers of that model. */
export interface Reads { rate: number; fleet_rate: number; reads: number; worse: boolean }
/** A peripheral in a list of the fleet's. */
export interface Placed extends Peripheral { device: string; device_label: string; site: string }
export interface Span { health: string; reason: string; from: string | null; to: string | null }
export interface Check { at: string | null; level: string; ok: boolean; steps: { id: string; ok: boolean; code: string; ms: number }[] }
export interface PeripheralDetail extends Placed {
  durations: { health: string; reason: string; seconds: number; times: number }[]; spans: Span[]; checks: Check[];
}

export interface Device {
  id: string; tenant: string; tier: string; model: string; serial: string; site: string; group: string; label: string;
  trust: string; trust_reasons: string[]; attested_at: string | null; online: boolean; enrolled_at: string | null;
  last_seen: string | null; agent_version: string; slot: string; health: string; audit_head: number; audit_ok: boolean;
  samples: number; cert_serial: string; cert_not_after: string | null; ek_sha256: string; peripherals: Peripheral[];
  state: { started_at: string | null; spool_depth: number; spool_shed: number; audit_recorded: number; samples_recorded: number };
  findings: Finding[]; boot_release: string; boot_digest: string; reset_count: number; waiver: Waiver | null; certificate: Certificate;
  revoked_at: string | null; revoked_why: string; former_of: string; left_at: string | null; ownership?: Ownership; audit?: AuditProof;
}

/** How far a trail is proven: entries up to these numbers; 0 is none. */
export interface AuditProof {
  head: number; broken: boolean; missing: number; lost: number; anchored_to: number; anchored_at: string | null; countersigned_to: number; archived_to: number;
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
/** An entry that a search found, of whatever trail. */
export interface TrailEntry {
  n: number; device: string; seq: number; at: string | null; stored_at: string | null; kind: string; severity: string; actor: string; subject: string;
  outcome: string; site: string; detail: Record<string, string> | null; hash: string; prev: string;
}
export interface TrailFound { items: TrailEntry[]; next: string; newest: string; reached: string | null }
export interface Chain { ok: boolean; entries: number; first: number; last: number; broken_at: number; text: string }
export interface Command {
  id: string; device: string; verb: string; args: Record<string, string> | null; by: string; reason: string;
  issued_at: string | null; not_after: string | null; state: string; code: string; text: string; output: string;
  output_encoding?: string; ended_at: string | null;
}
export interface Release {
  id: string; component: string; class: string; version: string; tenant: string; models: string[]; requires: Record<string, string>; withdrawn: boolean;
  published_at: string | null; published_by: string; targets: { path: string; sha256: string; length: number }[];
}

/** Picks devices; what is left out picks all. */
export interface Filter { group?: string; model?: string; site?: string; devices?: string[] }
/** Shares in percent of what ended. Nothing or 0: as by default; negative: not judged. */
export interface Gate { success?: number; bad?: number; min_sample?: number; bad_cap?: number; site_bad?: number; health?: number }
export interface Rate { base?: number; factor?: number; every?: number; max?: number }
export interface WaveSpec { name: string; filter?: Filter; percent?: number; soak_s?: number; gate?: Gate }
/** How a rollout goes. */
export interface Spec {
  filter?: Filter; waves?: WaveSpec[]; gate?: Gate; rate?: Rate; per_site?: number; in_flight?: number; download?: string; install?: string;
  deadline_s?: number; steps_s?: Record<string, number>; attempts?: number; unreachable_s?: number; joiners?: boolean; rate_kib?: number; repair?: boolean;
}
export interface Preview {
  reaches: number; sites: number; waves: { name: string; devices: number }[]; blocked: { reason: string; text: string; devices: number }[]; text: string;
}
export type Counts = Record<string, number>;
export interface Wave {
  name: string; state: string; started_at: string | null; soaked_at: string | null; soak_s: number; ended_at: string | null;
  counts: Counts; total: number; good: number; bad: number; neutral: number; unreachable: number;
}
export interface Hold { model: string; site: string; reason: string; since: string | null; released_at: string | null }
export interface Faults { devices: number; hours: number; peripheral: number; reconnects: number; crashes: number }
export interface Health { updated: Faults; control: Faults; models?: Record<string, Health> }
/** Where the bytes of an artifact came from. */
export interface Bytes { wire: number; peer: number; medium: number; reused: number }
/** A rollout; what may be missing comes only when one is asked for. */
export interface Rollout {
  id: string; release: string; state: string; reason: string; auto: boolean; created_at: string | null; created_by: string;
  approved_at: string | null; approved_by: string; started_at: string | null; ended_at: string | null;
  spec: Spec; waves: Wave[]; holds: Hold[]; counts: Counts; total: number; good: number; bad: number; neutral: number; unreachable: number;
  health?: Health; bytes?: Bytes; eta?: string | null; version: number;
}
export interface Execution {
  id: string; rollout: string; device: string; model: string; site: string; wave: number; state: string; reason: string; text: string; from: string; to: string;
  attempt: number; done: number; total: number; bytes: Bytes; offered_at: string | null; entered_at: string | null; updated_at: string | null;
}
export interface Installed { component: string; version: string; slot: string; hash: string; trial: boolean }
export interface Delay { rollout: string; reason: string; text: string; since: string | null }
/** What a device runs, and why it waits for what it does not. */
export interface DeviceUpdate { installed: Installed[]; free_mib: number; supply: string; executions: Execution[]; waiting: Delay[] }
/** A place with devices, its time zone and its hours. */
export interface Site { name: string; zone: string; download: string; install: string; devices: number }
/** Where the trails are sent to, and how that goes. */
export interface Export {
  name: string; kind: string; format: string; to: string; state: string; lag: number; cursor: number; sent: number; lost: number;
  moved_at: string | null; last_error: string; failed_at: string | null; failing_since: string | null; stalled: boolean; skipped: number;
}
/** How a part of the service is, and what to do. */
export interface PartHealth { part: string; state: string; since: string | null; what: string; todo: string }
/** What was answered in a span of time, and the milliseconds that half, 95 and 99 of a hundred answers took at most. */
export interface Figure {
  at: string; span_s: number; ok: number; redirected: number; refused: number; failed: number; bytes: number; p50_ms: number; p95_ms: number; p99_ms: number;
}
/** The figures of a part of the service, or of one thing that it does. */
export interface PartFigures { part: string; op?: string; total: Figure; points?: Figure[] }
export interface Figures { from: string; to: string; step_s: number; parts: PartFigures[]; ops: PartFigures[] }
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
