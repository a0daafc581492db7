// What changes, as it changes: Server-Sent Events from /v1/live. Whoever shows
// something says which changes concern it and is asked to fetch again.
import { signal } from '@preact/signals';
import { useEffect, useRef, useState } from 'preact/hooks';
import { get, type List, type Problem, rows, type Session } from './api';
import { pause } from './format';

export const live = signal<'on' | 'off' | 'idle'>('idle');
/** The present moment, so that "14 min ago" stays true. */
export const now = signal(Date.now());
setInterval(() => { now.value = Date.now(); }, 5000);

export interface Change { kind: string; id: string }
const listeners = new Set<(c: Change | null) => void>();
let source: EventSource | null = null;
let tries = 0;
let again: ReturnType<typeof setTimeout> | undefined;
let silence: ReturnType<typeof setTimeout> | undefined;

/** A ping comes every 15 seconds; after three missed ones the line is dead. */
const patience = 45_000;

export function connect() {
  drop();
  source = new EventSource('/v1/live');
  const alive = () => { clearTimeout(silence); silence = setTimeout(lost, patience); };
  source.addEventListener('ping', () => {
    const missed = live.value === 'off';
    live.value = 'on';
    tries = 0;
    alive();
    if (missed) tell(null); // changes may have been lost
  });
  source.addEventListener('change', (e) => { alive(); tell(JSON.parse((e as MessageEvent<string>).data) as Change); });
  source.addEventListener('resync', () => { alive(); tell(null); });
  source.onerror = lost;
  alive();
}

function lost() {
  drop();
  live.value = 'off';
  again = setTimeout(() => {
    // An ended session looks like a lost line; asking for it tells them apart.
    get<Session>('/v1/session').then(() => { if (live.value === 'off') connect(); }, (e: Problem) => { if (e.status !== 401 && live.value === 'off') lost(); });
  }, pause(tries++, Math.random()));
}

function drop() {
  source?.close();
  source = null;
  clearTimeout(again);
  clearTimeout(silence);
}

export function disconnect() {
  drop();
  tries = 0;
  live.value = 'idle';
}

function tell(c: Change | null) { for (const l of listeners) l(c); }

export interface Loaded<T> { data: T | undefined; error: string; reload: () => void }

/** Loads path and loads it again when a change concerns it, at most once in `pace` milliseconds. */
export function useLive<T>(path: string, concerns: (c: Change) => boolean, pace = 1000): Loaded<T> {
  return useLoad(path, () => get<T>(path), concerns, pace);
}

/** Loads what `key` names, again and again as things change, one load at a time. */
function useLoad<T>(key: string, fetch: () => Promise<T>, concerns: (c: Change) => boolean, pace: number): Loaded<T> {
  const [data, setData] = useState<T>();
  const [error, setError] = useState('');
  const [round, setRound] = useState(0);
  useEffect(() => {
    let gone = false;
    let busy = false;
    let dirty = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const load = async () => {
      busy = true;
      dirty = false;
      try {
        const d = await fetch();
        if (!gone) { setData(d); setError(''); }
      } catch (e) {
        if (!gone) setError((e as Error).message);
      }
      if (gone) return;
      timer = setTimeout(() => { busy = false; if (dirty) void load(); }, pace);
    };
    const hear = (c: Change | null) => {
      if (c && !concerns(c)) return;
      dirty = true;
      if (!busy) void load();
    };
    void load();
    listeners.add(hear);
    return () => { gone = true; listeners.delete(hear); clearTimeout(timer); };
  }, [key, round]);
  return { data, error, reload: () => setRound((n) => n + 1) };
}

/** Loads what `key` names every `pace` milliseconds: what changes all the time and tells nobody. */
export function useEvery<T>(key: string, fetch: () => Promise<T>, pace: number): Loaded<T> {
  const [data, setData] = useState<T>();
  const [error, setError] = useState('');
  const [round, setRound] = useState(0);
  useEffect(() => {
    let gone = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const load = async () => {
      try {
        const d = await fetch();
        if (!gone) { setData(d); setError(''); }
      } catch (e) {
        if (!gone) setError((e as Error).message);
      }
      if (!gone) timer = setTimeout(() => void load(), pace);
    };
    void load();
    return () => { gone = true; clearTimeout(timer); };
  }, [key, round]);
  return { data, error, reload: () => setRound((n) => n + 1) };
}

/** Calls `hear` when changes concern it, at most once in `pace` milliseconds. */
export function useChanges(concerns: (c: Change | null) => boolean, hear: () => Promise<void>, pace: number) {
  const newest = useRef({ concerns, hear });
  newest.current = { concerns, hear };
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const on = (c: Change | null) => {
      if (timer || !newest.current.concerns(c)) return;
      timer = setTimeout(() => { timer = undefined; void newest.current.hear(); }, pace);
    };
    listeners.add(on);
    return () => { listeners.delete(on); clearTimeout(timer); };
  }, [pace]);
}

/** What somebody types, once they have paused: each letter would be a search through the fleet. */
export function useSettled(value: string, wait = 300): string {
  const [settled, set] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => { set(value); }, wait);
    return () => { clearTimeout(timer); };
  }, [value]);
  return value === '' ? '' : settled;
}

export interface Rows<T> extends Loaded<List<T>> { items: T[]; more: (() => void) | undefined }

/** A list that stays live as it is read on. The longer it has become, the less often it is read again. */
export function useRows<T>(path: string, concerns: (c: Change) => boolean, step = 50, pace = 1000): Rows<T> {
  const [count, setCount] = useState(step);
  const list = useLoad(`${path} ${count}`, () => rows<T>(path, count), concerns, pace * Math.ceil(count / 1000));
  return { ...list, items: list.data?.items ?? [], more: list.data?.next ? () => setCount((n) => n * 2) : undefined };
}
