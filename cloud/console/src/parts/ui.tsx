// Small pieces that every page uses.
import type { ComponentChildren } from 'preact';
import { useEffect, useRef } from 'preact/hooks';
import { ago, clock, tone, words } from '../format';
import { now } from '../live';

/** A state, in words and colour; the words alone say it. */
export function Badge({ state, testid, text }: { state: string; testid?: string; text?: string }) {
  return <span class={`badge ${tone(state)}`} data-testid={testid}>{text ?? words(state || 'unknown')}</span>;
}

export function When({ at }: { at: string | null }) {
  return at ? <time dateTime={at} title={clock(at)}>{ago(at, now.value)}</time> : <span>never</span>;
}

/** A page: its heading takes the focus when it is come to. */
export function Page({ title, aside, children }: { title: string; aside?: ComponentChildren; children: ComponentChildren }) {
  const h = useRef<HTMLHeadingElement>(null);
  useEffect(() => { document.title = `${title} - Tillward`; h.current?.focus(); }, [title]);
  return (
    <main id="main">
      <div class="head"><h1 ref={h} tabIndex={-1}>{title}</h1>{aside}</div>
      {children}
    </main>
  );
}

export function Card({ title, aside, children, testid }: { title: string; aside?: ComponentChildren; children: ComponentChildren; testid?: string }) {
  return (
    <section class="card" aria-label={title} data-testid={testid}>
      <div class="head"><h2>{title}</h2>{aside}</div>
      {children}
    </section>
  );
}

export function Fault({ text, retry }: { text: string; retry?: () => void }) {
  if (!text) return null;
  return <p class="fault" role="alert">{text} {retry && <button type="button" onClick={retry}>Try again</button>}</p>;
}

export function Loading() { return <p class="dim" role="status">Loading…</p>; }

export function Empty({ children }: { children: ComponentChildren }) { return <p class="empty">{children}</p>; }

/** A table that scrolls by itself on a narrow screen. */
export function Table({ label, head, children }: { label: string; head: string[]; children: ComponentChildren }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={label}>
      <table><thead><tr>{head.map((h) => <th scope="col" key={h}>{h}</th>)}</tr></thead><tbody>{children}</tbody></table>
    </div>
  );
}
