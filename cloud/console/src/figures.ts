// Figures of the service as charts show them.
import type { Figure, PartFigures } from './api';

export const answers = (f: Figure): number => f.ok + f.redirected + f.refused + f.failed;

/** A rate, as short as it may be: 0.05, 1.2, 340. */
export function rate(n: number): string {
  if (n === 0) return '0';
  if (n < 0.01) return '< 0.01';
  if (n < 10) return String(parseFloat(n.toPrecision(2)));
  return Math.round(n).toLocaleString('en');
}

/** Milliseconds as people say them: 0.4 ms, 12 ms, 1.5 s. */
export function took(ms: number): string {
  if (ms <= 0) return '–';
  if (ms < 10) return `${parseFloat(ms.toPrecision(2))} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return `${parseFloat((ms / 1000).toPrecision(2))} s`;
}

/** Milliseconds beside an axis, which has a zero. */
export const tick = (ms: number): string => (ms === 0 ? '0' : took(ms));

/** The share of what was the service's fault. */
export function faulty(f: Figure): number {
  const n = answers(f);
  return n > 0 ? f.failed / n : 0;
}

/** A share in percent that never rounds a fault away. */
export function share(part: number): string {
  if (part === 0) return '0 %';
  return part < 0.0001 ? '< 0.01 %' : `${parseFloat((100 * part).toPrecision(2))} %`;
}

/** What the parts are called. */
export function partName(part: string): string {
  const known: Record<string, string> = {
    api: 'Operator API', console: 'Console files', device: 'Device HTTPS', 'mqtt-connect': 'MQTT connections', 'mqtt-up': 'MQTT from tills', 'mqtt-down': 'MQTT to tills',
    'export-entries': 'Exported entries', store: 'Database', 'store-rows': 'Database, rows changed', 'store-reads': 'Database, queries', export: 'Export to the SIEM', verifier: 'Appraisals', dispatch: 'Commands', rollout: 'Rollouts', gateway: 'Gateway',
  };
  return known[part] ?? part;
}

/** What the parts are called whose health is told; one that comes in several has its name behind a slash or a space. */
export function healthName(part: string): string {
  const known: Record<string, string> = {
    store: 'Database', broker: 'MQTT broker', ingest: 'Messages from tills', verifier: 'Appraisals', rollout: 'Rollouts', export: 'Export to the SIEM',
    certificates: 'Certificates', disk: 'Disk', clock: 'Clock', 'access-log': 'Access log', archive: 'Archive',
  };
  const [first = '', rest] = part.split(/[/ ](.*)/s);
  return rest ? `${known[first] ?? first}: ${rest}` : known[part] ?? part;
}

/**
 * Lines over one time axis: seconds, and a column for each line. Where the
 * service did not run the lines break.
 */
export function columns(points: Figure[], ...lines: ((f: Figure) => number | null)[]): (number | null)[][] {
  const out: (number | null)[][] = [[], ...lines.map(() => [])];
  let end = 0;
  for (const p of points) {
    const at = Date.parse(p.at) / 1000;
    if (end > 0 && at - end > Math.max(1.5, p.span_s * 0.5)) {
      out[0]!.push((end + at) / 2);
      for (const line of out.slice(1)) line.push(null);
    }
    out[0]!.push(at + p.span_s / 2);
    lines.forEach((f, i) => out[i + 1]!.push(f(p)));
    end = at + p.span_s;
  }
  return out;
}

export const perSecond = (pick: (f: Figure) => number) => (f: Figure): number | null => (f.span_s > 0 ? pick(f) / f.span_s : null);
export const ofAll = (pick: (f: Figure) => number) => (f: Figure): number | null => (answers(f) > 0 ? pick(f) / answers(f) : null);
export const timed = (pick: (f: Figure) => number) => (f: Figure): number | null => (pick(f) > 0 ? pick(f) : null);

/** The slowest first: by what 95 of a hundred took at most, those that failed before those that did not at a tie. */
export function slowest(ops: PartFigures[], most = 12): PartFigures[] {
  return ops.filter((o) => o.total.p95_ms > 0).sort((a, b) => b.total.p95_ms - a.total.p95_ms || b.total.failed - a.total.failed).slice(0, most);
}
