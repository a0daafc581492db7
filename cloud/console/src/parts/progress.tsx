import { progress, type Tone } from '../format';

const names: Record<Tone, string> = { good: 'Done', busy: 'Under way', dim: 'To come', warn: 'Out of time', bad: 'Ended badly' };

/** How far a rollout is: a segment for each kind of state, and the same in words. */
export function Progress({ counts, total, legend }: { counts: Record<string, number>; total: number; legend?: boolean }) {
  const parts = progress(counts);
  const text = parts.map((p) => p.text).join(', ') || 'no devices yet';
  const done = parts.find((p) => p.tone === 'good')?.n ?? 0;
  let x = 0;
  return (
    <figure class="bar">
      <svg viewBox="0 0 100 4" preserveAspectRatio="none" role="img" aria-label={text}>
        {parts.map((p) => { const w = (p.n * 100) / Math.max(total, 1); const r = <rect key={p.tone} x={x} y="0" width={w} height="4" class={p.tone} />; x += w; return r; })}
      </svg>
      {legend && total > 0
        ? <figcaption class="legend">{parts.map((p) => <span key={p.tone}><i class={p.tone} /><strong>{p.n}</strong> {names[p.tone]} <span class="dim">{p.text.includes(',') ? p.text : p.text.replace(/^\d+ /, '')}</span></span>)}</figcaption>
        : <figcaption>{total > 0 ? `${done} of ${total} done${parts.some((p) => p.tone === 'bad' || p.tone === 'warn') ? `, ${parts.filter((p) => p.tone === 'bad' || p.tone === 'warn').map((p) => p.text).join(', ')}` : ''}` : text}</figcaption>}
    </figure>
  );
}
