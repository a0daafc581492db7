import { useEffect, useRef, useState } from 'preact/hooks';
import { get, id, type TrailEntry, type TrailFound } from '../api';
import { page } from '../audit';
import { clock, words } from '../format';
import { type Change, useChanges } from '../live';
import { Badge, Table, When } from './ui';

export interface Found {
  items: TrailEntry[]; more: (() => void) | undefined; reached: string | null; busy: boolean; error: string; again: () => void;
}

const step = 100;
/** Where two common things hardly ever come together, a page may be empty; so many are asked for at once. */
const tries = 6;

/** A search that is read on by its cursor, and that goes on with what comes. */
export function useSearch(query: string, live: boolean): Found {
  const [s, set] = useState<{ items: TrailEntry[]; next: string; newest: string; reached: string | null; busy: boolean; error: string }>({ items: [], next: '', newest: '', reached: null, busy: true, error: '' });
  const [round, setRound] = useState(0);
  const now = useRef(s);
  now.current = s;
  const turn = useRef(0);
  const read = async (after: string, had: TrailEntry[]) => {
    const mine = ++turn.current;
    set((o) => ({ ...o, items: had, busy: true, error: '' }));
    let next = after;
    let items = had;
    try {
      for (let n = 0; n < tries && items.length < had.length + step; n++) {
        const f = await get<TrailFound>(`/v1/audit/search?${new URLSearchParams([...new URLSearchParams(query), ['limit', String(step)], ...(next ? [['after', next]] : [])] as [string, string][])}`);
        if (mine !== turn.current) return;
        items = [...items, ...f.items];
        next = f.next;
        set((o) => ({ items, next, newest: after || n ? o.newest : f.newest, reached: f.reached ?? o.reached, busy: true, error: '' }));
        if (!next) break;
      }
      set((o) => ({ ...o, busy: false }));
    } catch (e) {
      if (mine === turn.current) set((o) => ({ ...o, busy: false, error: (e as Error).message }));
    }
  };
  useEffect(() => { void read('', []); return () => { turn.current++; }; }, [query, round]);
  useChanges((c: Change | null) => live && (!c || c.kind !== 'event'), async () => {
    const { newest, busy } = now.current;
    if (busy || !newest) return;
    const mine = turn.current;
    const q = new URLSearchParams(query);
    q.delete('from');
    try {
      const f = await get<TrailFound>(`/v1/audit/search?${q}&order=asc&limit=1000&after=${newest}`);
      if (mine === turn.current) set((o) => ({ ...o, items: [...f.items.reverse(), ...o.items], newest: f.next || f.newest }));
    } catch { /* the live line says that it is lost */ }
  }, 2000);
  return { items: s.items, more: s.next && !s.busy ? () => void read(s.next, s.items) : undefined, reached: s.next ? s.reached : null, busy: s.busy, error: s.error, again: () => setRound((n) => n + 1) };
}

const tones = { success: 'good', failure: 'bad', refused: 'warn' } as const;

/** What was found; a row opens. */
export function Entries({ items, pick }: { items: TrailEntry[]; pick: (part: { who?: string; what?: string; site?: string }) => void }) {
  const [open, setOpen] = useState(0);
  return (
    <Table label="Entries" head={['When', 'What', 'Outcome', 'Who', 'Subject', 'Site', 'Trail']}>
      {items.map((e) => <Entry e={e} open={open === e.n} toggle={() => setOpen(open === e.n ? 0 : e.n)} pick={pick} key={e.n} />)}
    </Table>
  );
}

function Entry({ e, open, toggle, pick }: { e: TrailEntry; open: boolean; toggle: () => void; pick: (part: { who?: string; what?: string; site?: string }) => void }) {
  const click = (ev: MouseEvent) => { if (!(ev.target as Element).closest('a, button') && !getSelection()?.toString()) toggle(); };
  const about = page(e);
  return (
    <>
      <tr data-testid="found-row" data-n={e.n} data-kind={e.kind} class="link" onClick={click}>
        <td data-label="When"><When at={e.at} /></td>
        <td data-label="What" class="name"><button type="button" class="plain" aria-expanded={open} aria-controls={`entry-${e.n}`} onClick={toggle}>{e.kind}</button>{e.severity !== 'info' && <> <Badge state={e.severity} /></>}</td>
        <td data-label="Outcome">{e.outcome ? <Badge state={e.outcome} as={tones[e.outcome as keyof typeof tones]} text={words(e.outcome)} /> : '–'}</td>
        <td data-label="Who">{e.actor === e.device && e.device ? 'the till' : e.actor || '–'}</td>
        <td data-label="Subject">{about ? <a href={about}>{e.subject}</a> : e.subject || '–'}</td>
        <td data-label="Site">{e.site || '–'}</td>
        <td data-label="Trail">{e.device ? <a href={`/device/${id(e.device)}`}>{e.device}</a> : 'service'}</td>
      </tr>
      {open && (
        <tr data-testid="found-open" id={`entry-${e.n}`} class="opened"><td colSpan={7}>
          <dl class="facts">
            <div><dt>Happened</dt><dd>{clock(e.at) || 'not known'}</dd></div>
            <div><dt>Stored</dt><dd>{clock(e.stored_at)}</dd></div>
            <div><dt>Trail</dt><dd>{e.device ? <><a href={`/device/${id(e.device)}`}>{e.device}</a>, its own</> : 'of the service'}, entry {e.seq}</dd></div>
            <div><dt>Number</dt><dd>{e.n} of all</dd></div>
            {Object.entries(e.detail ?? {}).filter(([, v]) => v).map(([k, v]) => <div key={k}><dt>{k}</dt><dd>{v}</dd></div>)}
            <div class="wide"><dt>Hash</dt><dd><code>{e.hash}</code></dd></div>
            <div class="wide"><dt>Follows</dt><dd><code>{e.prev}</code></dd></div>
          </dl>
          <p class="row">
            <span class="dim">Look for all</span>
            <button type="button" class="quiet" onClick={() => pick({ what: e.kind })}>{e.kind}</button>
            {e.actor && e.actor !== e.device && <button type="button" class="quiet" onClick={() => pick({ who: e.actor })}>by {e.actor}</button>}
            {e.site && <button type="button" class="quiet" onClick={() => pick({ site: e.site })}>at {e.site}</button>}
          </p>
        </td></tr>
      )}
    </>
  );
}
