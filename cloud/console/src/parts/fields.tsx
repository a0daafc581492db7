// Fields of forms that say beside them what an empty one means.
import { useId, useState } from 'preact/hooks';
import { type Device, id, type List } from '../api';
import { useLive } from '../live';
import { ids, type Span, type Unit } from '../plan';

/** A number with its unit; empty is what the placeholder says. */
export function Num({ label, value, set, unit, empty, min = 0, max, step }: {
  label: string; value: string; set: (v: string) => void; unit?: string; empty?: string; min?: number; max?: number; step?: number | 'any';
}) {
  return (
    <label>{label}
      <span class="unit"><input type="number" value={value} min={min} max={max} step={step} placeholder={empty} onInput={(e) => set(e.currentTarget.value)} />{unit && <span>{unit}</span>}</span>
    </label>
  );
}

const names: Record<Unit, string> = { s: 'seconds', min: 'minutes', h: 'hours', d: 'days' };

/** A span of time: how many of what. */
export function SpanField({ label, value, set, empty }: { label: string; value: Span; set: (v: Span) => void; empty?: string }) {
  return (
    <div class="field" role="group" aria-label={label}>
      <span class="label" aria-hidden="true">{label}</span>
      <span class="unit">
        <input type="number" min="0" step="any" value={value.n} placeholder={empty} aria-label={`${label}, how many`} onInput={(e) => set({ ...value, n: e.currentTarget.value })} />
        <select value={value.unit} aria-label={`${label}, unit`} onChange={(e) => set({ ...value, unit: e.currentTarget.value as Unit })}>{Object.entries(names).map(([k, v]) => <option value={k} key={k}>{v}</option>)}</select>
      </span>
    </div>
  );
}

/** A name out of those that are known, or one that is not yet. */
export function Known({ label, value, set, all, empty, wide }: { label: string; value: string; set: (v: string) => void; all: string[]; empty: string; wide?: boolean }) {
  const list = useId();
  return (
    <label class={wide ? 'wide' : undefined}>{label} <input value={value} list={list} maxLength={64} placeholder={empty} autocomplete="off" onInput={(e) => set(e.currentTarget.value)} />
      <datalist id={list}>{all.map((v) => <option value={v} key={v} />)}</datalist>
    </label>
  );
}

/** Devices by name: looked for by label, serial or id, or pasted as ids. */
export function Devices({ label, value, set }: { label: string; value: string[]; set: (v: string[]) => void }) {
  const [q, setQ] = useState('');
  const found = useLive<List<Device>>(`/v1/devices?limit=6&q=${id(q.trim())}`, () => false);
  const known = useLive<List<Device>>('/v1/devices?limit=1000', (c) => c.kind === 'device', 30_000);
  const name = new Map(known.data?.items.map((d) => [d.id, d.label || d.serial]));
  const add = (more: string[]) => { set([...new Set([...value, ...more])]); setQ(''); };
  const pasted = ids(q);
  return (
    <div class="devices">
      <label class="wide">{label} <input type="search" value={q} placeholder="Label, serial or id; or paste ids" autocomplete="off" onInput={(e) => setQ(e.currentTarget.value)}
        onKeyDown={(e) => { if (e.key === 'Enter') { e.preventDefault(); if (pasted.length > 1) add(pasted); else if (found.data?.items[0]) add([found.data.items[0].id]); } }} /></label>
      {q.trim() !== '' && (
        <div class="row found" aria-live="polite">
          {pasted.length > 1
            ? <button type="button" onClick={() => add(pasted)}>Add these {pasted.length}</button>
            : (found.data?.items ?? []).filter((d) => !value.includes(d.id)).map((d) => <button type="button" key={d.id} onClick={() => add([d.id])}>+ {d.label || d.serial || d.id}{d.site && `, ${d.site}`}</button>)}
          {pasted.length === 1 && found.data?.items.length === 0 && <span class="dim">No device matches.</span>}
        </div>
      )}
      {value.length > 0 && (
        <ul class="chips" aria-label={label}>
          {value.slice(0, 50).map((d) => <li key={d}>{name.get(d) || d}<button type="button" class="quiet" aria-label={`Leave out ${name.get(d) || d}`} onClick={() => set(value.filter((x) => x !== d))}>×</button></li>)}
          {value.length > 50 && <li>and {value.length - 50} more</li>}
        </ul>
      )}
    </div>
  );
}
