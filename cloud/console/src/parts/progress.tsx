import type { Counts } from '../api';
import { count, percent } from '../format';
import { partNames, pieces, told } from '../rollout';

/** Parts of a whole as one bar. */
export function Bar({ parts, label }: { parts: { class: string; n: number }[]; label: string }) {
  const total = Math.max(parts.reduce((sum, p) => sum + p.n, 0), 1);
  // What is there is seen, however little it is.
  const widths = parts.map((p) => (p.n > 0 ? Math.max(p.n / total, 0.008) : 0));
  const all = widths.reduce((sum, w) => sum + w, 0) || 1;
  let x = 0;
  return (
    <svg viewBox="0 0 100 4" preserveAspectRatio="none" role="img" aria-label={label}>
      {parts.map((p, i) => { const w = (widths[i]! * 100) / all; const r = <rect key={p.class} x={x} y="0" width={w} height="4" class={p.class} />; x += w; return r; })}
    </svg>
  );
}

/** How far a rollout is: a segment for each kind of state, and the same in words. */
export function Progress({ counts, neutral, legend }: { counts: Counts; neutral: number; legend?: boolean }) {
  const { pieces: all, total } = pieces(counts, neutral);
  const text = told(all) || 'no devices yet';
  const n = (part: string) => all.find((p) => p.part === part)?.n ?? 0;
  const done = n('done');
  return (
    <figure class="bar">
      <Bar parts={all.map((p) => ({ class: p.part, n: p.n }))} label={text} />
      {legend && total > 0
        ? <figcaption class="legend">{all.map((p) => <span key={p.part}><i class={p.part} /><strong>{count(p.n)}</strong> {partNames[p.part]} {p.states > 1 && <span class="dim">{p.text}</span>}</span>)}</figcaption>
        : <figcaption>{total > 0 ? <>{count(done)} of {count(total)} done{done > 0 && done < total && ` (${percent(done, total)})`}{n('bad') > 0 && <>, <span class="ink bad">{count(n('bad'))} ended badly</span></>}</> : text}</figcaption>}
    </figure>
  );
}
