// What changes, as it changes: Server-Sent Events from /v1/live. Whoever shows
// something says which changes concern it and is asked to fetch again.
import { signal } from '@preact/signals';
import { useEffect, useState } from 'preact/hooks';
import { get, Problem } from './api';

export const live = signal<'on' | 'off' | 'idle'>('idle');
/** The present minute, so that "14 min ago" stays true. */
export const now = signal(Date.now());
setInterval(() => { now.value = Date.now(); }, 5000);

type Change = { kind: string; id: string };
const listeners = new Set<(c: Change | null) => void>();
let source: EventSource | null = null;
let retry = 1000;

export function connect() {
  source?.close();
  source = new EventSource('/v1/live');
  source.addEventListener('ping', () => {
    const missed = live.value === 'off';
    live.value = 'on';
    retry = 1000;
    if (missed) tell(null); // changes may have been lost
  });
  source.addEventListener('change', (e) => tell(JSON.parse((e as MessageEvent<string>).data) as Change));
  source.addEventListener('resync', () => tell(null));
  source.onerror = () => {
    live.value = 'off';
    source?.close();
    source = null;
    setTimeout(() => { if (!source && live.value === 'off') connect(); }, retry * (0.5 + Math.random()));
    retry = Math.min(retry * 2, 30_000);
  };
}

export function disconnect() {
  source?.close();
  source = null;
  live.value = 'idle';
}

function tell(c: Change | null) { for (const l of listeners) l(c); }

export interface Loaded<T> { data: T | undefined; error: string; reload: () => void }

/**
 * Loads path and loads it again when a change concerns it, at most once in
 * `pace` milliseconds.
 */
export function useLive<T>(path: string, concerns: (c: Change) => boolean, pace = 1000): Loaded<T> {
  const [data, setData] = useState<T>();
  const [error, setError] = useState('');
  const [round, setRound] = useState(0);
  useEffect(() => {
    let gone = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let dirty = false;
    const load = async () => {
      dirty = false;
      try {
        const d = await get<T>(path);
        if (!gone) { setData(d); setError(''); }
      } catch (e) {
        if (!gone) setError(e instanceof Problem ? e.message : String(e));
      }
      if (gone) return;
      timer = setTimeout(() => { timer = undefined; if (dirty) void load(); }, pace);
    };
    const hear = (c: Change | null) => {
      if (c && !concerns(c)) return;
      dirty = true;
      if (!timer) void load();
    };
    void load();
    listeners.add(hear);
    return () => { gone = true; listeners.delete(hear); if (timer) clearTimeout(timer); };
  }, [path, round]);
  return { data, error, reload: () => setRound((n) => n + 1) };
}
