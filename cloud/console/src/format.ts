// How things are said to people.

/** How long ago, in words: "14 min". */
export function span(ms: number): string {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 48 * 3600) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} days`;
}

/** When, relative to now; never is a word, too. */
export function ago(iso: string | null, now: number): string {
  return iso ? `${span(now - Date.parse(iso))} ago` : 'never';
}

export function clock(iso: string | null): string {
  return iso ? new Date(iso).toLocaleString() : '';
}

export function bytes(n: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB'];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i++; }
  return `${i === 0 ? n : n.toFixed(1)} ${units[i]}`;
}

/** A number that fits beside an axis: 1.5 M. */
export function short(n: number): string {
  return new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 2 }).format(n);
}

/** The tone of a state: which of the few colours it gets. Unknown is never good. */
export function tone(state: string): 'good' | 'warn' | 'bad' | 'busy' | 'dim' {
  switch (state) {
    case 'attested': case 'OK': case 'SUCCEEDED': case 'ALREADY_INSTALLED': case 'COMPLETED': case 'PS_ONLINE': case 'online':
      return 'good';
    case 'degraded': case 'Attention': case 'pending': case 'PAUSED': case 'warn': case 'stale': case 'EXPIRED': case 'TIMED_OUT':
      return 'warn';
    case 'quarantined': case 'Fault': case 'Offline': case 'FAILED': case 'REJECTED': case 'ROLLED_BACK': case 'ABORTED': case 'alarm':
    case 'PS_OFF_OFFLINE': case 'PS_OFF': case 'PS_OFFLINE':
      return 'bad';
    case 'QUEUED': case 'SENT': case 'OFFERED': case 'WAITING': case 'DOWNLOADING': case 'STAGED': case 'INSTALLING': case 'INSTALLED':
    case 'REBOOTING': case 'CHECKING': case 'RUNNING':
      return 'busy';
  }
  return 'dim';
}

/** SOME_STATE -> some state. */
export const words = (s: string) => s.replaceAll('_', ' ').toLowerCase();

/** A sensor in a sentence fit for a card: CoverOpen Yes -> Cover open: yes. */
export function sensor(name: string): string {
  return name.replace(/^M_/, '').replace(/([a-z])([A-Z])/g, '$1 $2').replace(/^Rec /, 'Paper ').replace(/^SC/, 'Card ').toLowerCase()
    .replace(/^./, (c) => c.toUpperCase());
}
