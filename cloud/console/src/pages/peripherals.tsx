import { useState } from 'preact/hooks';
import { id, type List, type Placed, type Site } from '../api';
import { reason, span } from '../format';
import { now, useLive, useRows, useSettled } from '../live';
import { categories, category } from '../parts/peripheral';
import { Empty, Health, Listed, Page, Table } from '../parts/ui';
import { concernsList, more, reasons } from '../peripheral';
import { go } from '../router';

const nothing = { health: '', category: '', reason: '', site: '', q: '', soon: '' };
const lights = ['Fault', 'Offline', 'Attention', 'Unknown', 'OK'];

/** The filter as the API takes it: paper that ends within so many hours is a time. */
function query(f: typeof nothing): URLSearchParams {
  const { soon, ...rest } = f;
  const q = new URLSearchParams(Object.entries(rest).filter(([, v]) => v));
  if (soon) q.set('run_out_before', new Date(Math.ceil(Date.now() / 60e3) * 60e3 + Number(soon) * 3600e3).toISOString());
  return q;
}

export function Peripherals() {
  const [filter, setFilter] = useState(nothing);
  const set = (part: Partial<typeof nothing>) => setFilter({ ...filter, ...part });
  const q = query({ ...filter, q: useSettled(filter.q) });
  const placed = useLive<List<Site>>('/v1/sites', () => false);
  const rows = useRows<Placed>(`/v1/peripherals?${q}`, concernsList, 100, 3000);
  const sites = [...new Set([filter.site, ...(placed.data?.items ?? []).map((s) => s.name), ...rows.items.map((p) => p.site)])].filter(Boolean).sort();
  return (
    <Page title="Peripherals" lead="Every printer, drawer, reader and scanner of the fleet: how it is, since when, and what to do.">
      <form class="row filters" role="search" onSubmit={(e) => e.preventDefault()}>
        <label class="wide">Search <input type="search" value={filter.q} placeholder="Name, model, serial or till" onInput={(e) => set({ q: e.currentTarget.value })} /></label>
        <label>Light <select data-testid="light" value={filter.health} onChange={(e) => set({ health: e.currentTarget.value })}><option value="">any</option>{lights.map((h) => <option key={h} value={h}>{h === 'Unknown' ? 'cannot tell' : h.toLowerCase()}</option>)}</select></label>
        <label>Kind <select value={filter.category} onChange={(e) => set({ category: e.currentTarget.value })}><option value="">any</option>{Object.entries(categories).map(([k, v]) => <option key={k} value={k}>{v}</option>)}</select></label>
        <label>Reason <select value={filter.reason} onChange={(e) => set({ reason: e.currentTarget.value })}><option value="">any</option>{reasons([filter.reason, ...rows.items.map((p) => p.reason)]).map((r) => <option key={r} value={r}>{reason(r)}</option>)}</select></label>
        {sites.length > 0 && <label>Site <select value={filter.site} onChange={(e) => set({ site: e.currentTarget.value })}><option value="">any</option>{sites.map((s) => <option key={s}>{s}</option>)}</select></label>}
        <label>Paper ends within <select value={filter.soon} onChange={(e) => set({ soon: e.currentTarget.value })}><option value="">any time</option><option value="2">2 hours</option><option value="8">8 hours</option><option value="24">a day</option></select></label>
        {q.size > 0 && <button type="button" class="quiet" onClick={() => setFilter(nothing)}>Clear</button>}
      </form>
      <Listed rows={rows} empty={q.size > 0
        ? <Empty title="No peripheral matches."><button type="button" onClick={() => setFilter(nothing)}>Show all peripherals</button></Empty>
        : <Empty title="No peripheral has been told of yet.">What is listed in an agent's file, one <code>[[device]]</code> each, or is plugged into a till by USB, shows here within a minute.</Empty>}>
        <Table label="Peripherals" head={['Peripheral', 'Light', 'Why', 'Paper or reads', 'Till', 'Site']}>
          {rows.items.map((p) => <Row p={p} key={`${p.device} ${p.id}`} />)}
        </Table>
      </Listed>
    </Page>
  );
}

function Row({ p }: { p: Placed }) {
  const at = `/device/${id(p.device)}/${id(p.id)}`;
  const open = (e: MouseEvent) => { if (!(e.target as Element).closest('a') && !getSelection()?.toString()) go(at); };
  const also = more(p, now.value);
  return (
    <tr data-testid="peripheral-row" data-device={p.device} data-id={p.id} data-health={p.health} class="link" onClick={open}>
      <td class="name"><a href={at}>{p.id}</a><small>{category(p.category)}{(p.maker || p.model) && ` · ${[p.maker, p.model].filter(Boolean).join(' ')}`}</small></td>
      <td data-label="Light"><Health health={p.health} /></td>
      <td data-label="Why">{p.health !== 'OK' && p.reason ? <>{reason(p.reason)}{p.since && ` for ${span(now.value - Date.parse(p.since))}`}{p.advice && <small>{p.advice}</small>}</> : '–'}</td>
      <td data-label="Paper, reads">{also ? <span class={`ink ${also.tone}`} title={also.note}>{also.text}</span> : '–'}</td>
      <td data-label="Till"><a href={`/device/${id(p.device)}`}>{p.device_label || p.device}</a></td>
      <td data-label="Site">{p.site || '–'}</td>
    </tr>
  );
}
