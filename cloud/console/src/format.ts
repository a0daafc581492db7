// How things are said to people.

/** How long ago, in words: "14 min". */
export function span(ms: number): string {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 48 * 3600) return s % 3600 < 60 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} days`;
}

/** When, relative to now; never is a word, too. */
export function ago(iso: string | null, now: number): string {
  if (!iso) return 'never';
  const ms = now - Date.parse(iso);
  return ms < 5000 ? 'just now' : `${span(ms)} ago`;
}

/** A certificate's end: how long it still holds, and whether that needs a look. */
export function expiry(iso: string | null, now: number): { text: string; tone: Tone } {
  if (!iso) return { text: 'none', tone: 'dim' };
  const left = Date.parse(iso) - now;
  if (left <= 0) return { text: `expired ${span(-left)} ago`, tone: 'bad' };
  return { text: `${span(left)} left`, tone: left < 7 * 86400e3 ? 'warn' : 'good' };
}

export function clock(iso: string | null): string {
  return iso ? new Date(iso).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'medium' }) : '';
}

export function day(iso: string | null): string {
  return iso ? new Date(iso).toLocaleDateString(undefined, { dateStyle: 'medium' }) : '';
}

export function bytes(n: number, digits = 1): string {
  const units = ['B', 'KiB', 'MiB', 'GiB'];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i++; }
  return `${i === 0 ? n : n.toFixed(digits)} ${units[i]}`;
}

/** A number that fits beside an axis: 1.5M. */
export function short(n: number, digits = 2): string {
  return new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: digits }).format(n);
}

/** A measured value with the unit its name carries: bytes, temp_mc (thousandths of a degree), percent, seconds. */
export function measure(name: string, n: number, digits?: number): string {
  if (/_bytes$/.test(name)) return bytes(n, digits);
  if (/_mc$/.test(name)) return `${(n / 1000).toFixed(digits ?? 1)} °C`;
  if (/_(percent|pct)$/.test(name)) return `${short(n, digits)} %`;
  if (/_(s|seconds)$/.test(name)) return span(n * 1000);
  return short(n, digits);
}

/** The values at an axis, with as few digits as show each where it is: off by no more than a tenth of a step. */
export function marks(name: string, ticks: number[]): string[] {
  const at = (digits: number) => ticks.map((t) => measure(name, t, digits));
  for (let digits = 0; digits < 4; digits++) {
    const marks = at(digits);
    const fine = at(digits + 2).map(parseFloat);
    const step = Math.min(...fine.slice(1).map((v, i) => Math.abs(v - fine[i]!)));
    if (new Set(marks).size === ticks.length && marks.every((m, i) => Math.abs(parseFloat(m) - fine[i]!) <= step / 10)) return marks;
  }
  return at(4);
}

/** How long to wait before try n: from a second to half a minute, spread by chance (0 to 1). */
export function pause(n: number, chance: number): number {
  return Math.min(1000 * 2 ** n, 30_000) * (0.5 + chance / 2);
}

export type Tone = 'good' | 'warn' | 'bad' | 'busy' | 'dim';

/** The tone of a state: which of the few colours it gets. Unknown is never good. */
export function tone(state: string): Tone {
  switch (state) {
    case 'attested': case 'OK': case 'SUCCEEDED': case 'ALREADY_INSTALLED': case 'COMPLETED': case 'PASSED': case 'PS_ONLINE': case 'online':
      return 'good';
    case 'degraded': case 'Attention': case 'pending': case 'PAUSED': case 'warn': case 'stale': case 'EXPIRED': case 'AWAITING_APPROVAL': case 'ABORTING':
      return 'warn';
    case 'quarantined': case 'Fault': case 'Offline': case 'FAILED': case 'REJECTED': case 'ROLLED_BACK': case 'TIMED_OUT': case 'ABORTED': case 'DENIED': case 'alarm':
    case 'PS_OFF_OFFLINE': case 'PS_OFF': case 'PS_OFFLINE':
      return 'bad';
    case 'SENT': case 'OFFERED': case 'DOWNLOADING': case 'STAGED': case 'INSTALLING': case 'INSTALLED':
    case 'REBOOTING': case 'CHECKING': case 'WAITING': case 'RUNNING': case 'SOAKING':
      return 'busy';
  }
  return 'dim';
}

/** A count with its thousands apart: 4,212. */
export const count = (n: number): string => n.toLocaleString('en');

/** A count with its noun: 1 device, 4,212 devices. */
export const many = (n: number, noun: string): string => `${count(n)} ${noun}${n === 1 ? '' : 's'}`;

/** A share in percent, as short as it may be: 99.4 %. */
export const percent = (part: number, whole: number): string => `${whole > 0 ? parseFloat(((100 * part) / whole).toFixed(1)) : 0} %`;

/** SOME_STATE -> some state. OK stays as it is, and our own prefix goes. */
export const words = (s: string) => (s === 'OK' ? s : s.replace(/^M_/, '').replaceAll('_', ' ').toLowerCase());

const cased = (s: string) => s.replace(/^./, (c) => c.toUpperCase());

/** What the service says, as a sentence of its own. */
export const sentence = (s: string) => cased(s.trim()).replace(/[^.!?]$/, '$&.');

/** A reason as the start of a sentence: REC_NEAREMPTY -> Paper nearly empty. */
export function reason(code: string): string {
  const known: Record<string, string> = {
    REC_NEAREMPTY: 'Paper nearly empty', REC_EMPTY: 'Paper empty', REC_PAPEROK: 'Paper is fine', COVER_OK: 'Cover closed',
    DRAWEROPEN: 'Drawer open', DRAWERCLOSED: 'Drawer closed', POWER_OFF_OFFLINE: 'Not there', POWER_OFFLINE: 'Switched on, not ready', POWER_ONLINE: 'There again',
    M_DRAWER_UNEXPECTED_OPEN: 'Drawer opened by nobody\'s order', M_DRAWER_LEFT_OPEN: 'Drawer left open', M_DRAWER_STUCK: 'Drawer does not open',
    M_PCSCD_GONE: 'Card service stopped', M_PCSCD_BACK: 'Card service runs again', M_IN_USE: 'In use by the till', M_NO_DRIVER: 'Plugged in, nobody watches it', M_NO_ACCESS: 'The agent may not open it',
    M_NO_SENSOR: 'Has no sensor for it', M_NOT_ASKED: 'Not asked yet', M_TILL_OFFLINE: 'The till is offline', M_GONE: 'Not there any more', M_READ_ERRORS: 'Reads worse than others',
    M_PAPER_SOON: 'Paper ends soon', M_TAMPERED: 'Case opened', M_TAMPER_OK: 'Case closed',
  };
  return known[code] ?? cased(words(code.replace(/^PS_/, '')));
}

/** A sensor in a sentence fit for a card: CoverOpen -> Cover open. */
export function sensor(name: string): string {
  return cased(name.replace(/^M_/, '').replace(/^Rec(?=[A-Z])/, 'Paper').replace(/^SC(?=[A-Z])/, 'Card').replace(/Sensor$/, '')
    .replace(/([a-z])([A-Z0-9])/g, '$1 $2').replace(/([0-9])([A-Z])/g, '$1 $2').toLowerCase());
}

/** What an answer of a sensor means: trouble is warned of, no answer is no good answer, and nor is one from before the till was lost. */
export function reading(name: string, value: string, past = false): { text: string; tone: Tone } {
  if (value !== 'Yes' && value !== 'No') return { text: 'cannot tell', tone: 'dim' };
  if (past) return { text: `was ${value.toLowerCase()}`, tone: 'dim' };
  const harmless = /Present|Drawer.?Opened/.test(name);
  return { text: value.toLowerCase(), tone: harmless ? 'dim' : value === 'Yes' ? 'warn' : 'good' };
}

/** A series by its name: memory_free_bytes -> memory free bytes, HoursPoweredCount -> hours powered. */
export function seriesName(name: string): string {
  return cased(name.replace(/^M_/, '').replace(/Count$/, '').replace(/_(bytes|mc|percent|pct|s|seconds)$/, '').replace(/([a-z])([A-Z])/g, '$1 $2').replaceAll('_', ' ').toLowerCase());
}

/**
 * Points as columns of seconds and values for a chart; where nothing was
 * measured for longer than `hole` milliseconds the line breaks.
 */
export function gaps(points: [number, number][], hole: number): [number[], (number | null)[]] {
  const x: number[] = [];
  const y: (number | null)[] = [];
  points.forEach(([at, value], i) => {
    const before = points[i - 1]?.[0];
    if (before !== undefined && at - before > hole * 3) { x.push((before + at) / 2000); y.push(null); }
    x.push(at / 1000);
    y.push(value);
  });
  return [x, y];
}
