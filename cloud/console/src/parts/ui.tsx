// Small pieces that every page uses.
import type { ComponentChildren } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { ago, clock, tone, type Tone, words } from '../format';
import { now, type Rows } from '../live';
import { admin, operator } from '../session';

const shapes: Record<Tone, string> = {
  good: 'M3 8.5l3.2 3L13 4.8', warn: 'M8 3.5v5.5M8 11.8v.7', bad: 'M4 4l8 8M12 4l-8 8', busy: 'M3.5 8h.01M8 8h.01M12.5 8h.01', dim: 'M4 8h8',
};

/** The mark: a till's drawer under a roof. */
export function Mark() {
  return <svg class="mark" viewBox="0 0 32 32" aria-hidden="true"><path d="M16 3 29 9v8c0 6.5-5 10.5-13 12C8 27.5 3 23.5 3 17V9z" /><path class="in" d="M10 14h12M10 19h12M14 14v5" /></svg>;
}

/** A state, in words, colour and shape; the words alone say it. */
export function Badge({ state, testid, text, as }: { state: string; testid?: string; text?: string; as?: Tone }) {
  const t = as ?? tone(state);
  return (
    <span class={`badge ${t}`} data-testid={testid}>
      <svg viewBox="0 0 16 16" aria-hidden="true"><path d={shapes[t]} /></svg>{text ?? words(state || 'unknown')}
    </span>
  );
}

/** The health of a peripheral or a device: what cannot tell says so, and what was well when last seen is not well for certain. */
export function Health({ health, online = true }: { health: string; online?: boolean }) {
  if (health === 'Unknown' || !health) return <Badge state="" text="cannot tell" />;
  return online ? <Badge state={health} /> : <Badge state={health} as={health === 'OK' ? 'dim' : undefined} text={`was ${words(health)}`} />;
}

export function When({ at }: { at: string | null }) {
  return at ? <time dateTime={at} title={clock(at)}>{ago(at, now.value)}</time> : <span>never</span>;
}

/** A page: its heading takes the focus when it is come to. */
export function Page({ title, lead, up, aside, children }: {
  title: string; lead?: ComponentChildren; up?: [to: string, text: string]; aside?: ComponentChildren; children: ComponentChildren;
}) {
  const h = useRef<HTMLHeadingElement>(null);
  useEffect(() => { h.current?.focus({ preventScroll: true }); }, []);
  useEffect(() => { document.title = `${title} – Tillward`; }, [title]);
  return (
    <main id="main" tabIndex={-1}>
      <div class="title">
        {up && <a class="up" href={up[0]}>‹ {up[1]}</a>}
        <div class="head"><h1 ref={h} tabIndex={-1}>{title}</h1>{aside}</div>
        {lead && <p class="lead">{lead}</p>}
      </div>
      {children}
    </main>
  );
}

export function Card({ title, note, aside, children }: { title: string; note?: ComponentChildren; aside?: ComponentChildren; children: ComponentChildren }) {
  return (
    <section class="card" aria-label={title}>
      <div class="head"><div><h2>{title}</h2>{note && <p class="dim">{note}</p>}</div>{aside}</div>
      {children}
    </section>
  );
}

export function Fault({ text, retry }: { text: string; retry?: () => void }) {
  if (!text) return null;
  return <p class="fault" role="alert"><span>{text}</span> {retry && <button type="button" onClick={retry}>Try again</button>}</p>;
}

/** Grey lines where rows will be. */
export function Loading() {
  return <div class="loading" role="status"><span class="hidden">Loading</span><i /><i /><i /></div>;
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return <div class="empty"><strong>{title}</strong>{children && <p>{children}</p>}</div>;
}

/** Its children for those who may act; the others learn why there is nothing to press. */
export function Operators({ what, children }: { what: string; children: ComponentChildren }) {
  return operator.value ? <>{children}</> : <p class="dim">Your token may look, not act: {what} takes one with the role operator.</p>;
}

/** The same for what changes whom the fleet trusts. */
export function Admins({ what, children }: { what: string; children: ComponentChildren }) {
  return admin.value ? <>{children}</> : <p class="dim">Your token may not do this: {what} takes one with the role admin.</p>;
}

/** Does one thing at a time and keeps what came of it: the fault, or what to say when it is done. */
export function useAct(): { busy: boolean; error: string; done: string; act: (f: () => Promise<unknown>, done: string) => Promise<boolean> } {
  const [s, set] = useState({ busy: false, error: '', done: '' });
  const act = async (f: () => Promise<unknown>, done: string) => {
    set({ busy: true, error: '', done: '' });
    try {
      await f();
      set({ busy: false, error: '', done });
      return true;
    } catch (e) {
      set({ busy: false, error: (e as Error).message, done: '' });
      return false;
    }
  };
  return { ...s, act };
}

/** What came of an act, told to a screen reader, too. */
export function Outcome({ done, error }: { done: string; error: string }) {
  return <><div aria-live="polite">{done && <p class="ink good">{done}</p>}</div><Fault text={error} /></>;
}

/** A form that a button opened: it takes the focus, and gives it back when it goes. */
export function Opened({ class: name, send, children }: { class: string; send: () => void; children: ComponentChildren }) {
  const form = useRef<HTMLFormElement>(null);
  useEffect(() => {
    const from = document.activeElement;
    form.current?.querySelector<HTMLElement>('input, select')?.focus();
    return () => { if (from instanceof HTMLElement && from.isConnected) from.focus(); };
  }, []);
  return <form ref={form} class={name} onSubmit={(e) => { e.preventDefault(); send(); }}>{children}</form>;
}

/** What a list shows before, instead of and after its rows: fault, loading, nothing, more. */
export function Listed<T>({ rows, empty, children }: { rows: Rows<T>; empty: ComponentChildren; children: ComponentChildren }) {
  return (
    <>
      <Fault text={rows.error} retry={rows.reload} />
      {!rows.data && !rows.error && <Loading />}
      {rows.data && (rows.items.length === 0 ? empty : children)}
      <More rows={rows} />
    </>
  );
}

/** A table; on a phone each row becomes a small card, its cells named by the head. */
export function Table({ label, head, children }: { label: string; head: string[]; children: ComponentChildren }) {
  return (
    <div class="scroll" tabIndex={0} role="group" aria-label={`${label}, table`}>
      <table><thead><tr>{head.map((h) => <th scope="col" key={h}>{h}</th>)}</tr></thead><tbody>{children}</tbody></table>
    </div>
  );
}

/** The end of a list that goes on. */
export function More({ rows }: { rows: { more: (() => void) | undefined } }) {
  return rows.more ? <button type="button" class="more" onClick={rows.more}>Show more</button> : null;
}

/** Hands something over as a file. */
export function save(name: string, content: BlobPart) {
  const url = URL.createObjectURL(new Blob([content], { type: 'application/octet-stream' }));
  Object.assign(document.createElement('a'), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
