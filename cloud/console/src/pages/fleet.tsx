import { useState } from 'preact/hooks';
import type { Device, Summary } from '../api';
import { short, type Tone } from '../format';
import { useLive, useRows, useSettled } from '../live';
import { Badge, Empty, Fault, Health, Loading, More, Page, Table, When } from '../parts/ui';
import { concernsList } from '../peripheral';
import { go } from '../router';

const nothing = { q: '', trust: '', online: '', site: '', group: '', former: '' };

export function Fleet() {
  const [filter, setFilter] = useState(nothing);
  const set = (part: Partial<typeof nothing>) => setFilter({ ...filter, ...part });
  const query = new URLSearchParams(Object.entries({ ...filter, q: useSettled(filter.q) }).filter(([, v]) => v));
  const rows = useRows<Device>(`/v1/devices?${query}`, concernsList, 100);
  const sum = useLive<Summary>('/v1/summary', concernsList, 3000);
  const filtered = query.size > 0;
  const items = rows.items;
  return (
    <Page title="Fleet" lead="Every till, what it has proven about itself, and how its peripherals are.">
      {sum.data && <Tiles s={sum.data} pick={(p) => setFilter({ ...nothing, ...p })} />}
      <form class="row filters" role="search" onSubmit={(e) => e.preventDefault()}>
        <label class="wide">Search <input type="search" value={filter.q} placeholder="Label, serial, id or model" onInput={(e) => set({ q: e.currentTarget.value })} /></label>
        <label>Trust <select value={filter.trust} onChange={(e) => set({ trust: e.currentTarget.value })}>
          <option value="">any</option>{['attested', 'pending', 'degraded', 'quarantined', 'stale'].map((s) => <option key={s}>{s}</option>)}
        </select></label>
        <label>Connection <select value={filter.online} onChange={(e) => set({ online: e.currentTarget.value })}>
          <option value="">any</option><option value="true">online</option><option value="false">offline</option>
        </select></label>
        <Choice name="Site" value={filter.site} from={items.map((d) => d.site)} set={(site) => set({ site })} />
        <Choice name="Group" value={filter.group} from={items.map((d) => d.group)} set={(group) => set({ group })} />
        <label class="check" title="What devices left behind that went to another owner"><input type="checkbox" checked={filter.former !== ''} onChange={(e) => set({ former: e.currentTarget.checked ? 'true' : '' })} /> Moved on</label>
        {filtered && <button type="button" class="quiet" onClick={() => setFilter(nothing)}>Clear</button>}
      </form>
      <Fault text={rows.error || sum.error} retry={rows.reload} />
      {!rows.data && !rows.error && <Loading />}
      {rows.data && items.length === 0 && (filtered
        ? <Empty title="No device matches."><button type="button" onClick={() => setFilter(nothing)}>Show all devices</button></Empty>
        : <Empty title="No device has joined yet.">A box joins by itself at its first boot when its TPM is on your vendor's list. To see it on a desk, run <code>tillward-sim run</code>.</Empty>)}
      {items.length > 0 && (
        <Table label="Devices" head={['Device', 'Trust', 'Peripherals', 'Site', 'Group', 'Version', 'Last seen']}>
          {items.map((d) => <Row d={d} key={d.id} />)}
        </Table>
      )}
      <More rows={rows} />
    </Page>
  );
}

function Row({ d }: { d: Device }) {
  const open = (e: MouseEvent) => { if (!(e.target as Element).closest('a') && !getSelection()?.toString()) go(`/device/${d.id}`); };
  return (
    <tr data-testid="fleet-row" data-device={d.id} data-trust={d.trust} class="link" onClick={open}>
      <td class="name"><a href={`/device/${d.id}`}>{d.label || d.serial || d.id}</a><small>{d.id}</small></td>
      <td data-label="Trust"><Badge state={d.trust} /></td>
      <td data-label="Peripherals"><Health health={d.health} online={d.online} /></td>
      <td data-label="Site">{d.site || '–'}</td>
      <td data-label="Group">{d.group || '–'}</td>
      <td data-label="Version">{d.agent_version || '–'}</td>
      <td data-label="Last seen">{d.online ? <Badge state="online" /> : <When at={d.last_seen} />}</td>
    </tr>
  );
}

/** A filter by what the list holds; the chosen one stays when the list is empty. */
function Choice({ name, value, from, set }: { name: string; value: string; from: string[]; set: (v: string) => void }) {
  const all = [...new Set([value, ...from])].filter(Boolean).sort();
  if (all.length === 0) return null;
  return <label>{name} <select value={value} onChange={(e) => set(e.currentTarget.value)}><option value="">any</option>{all.map((v) => <option key={v}>{v}</option>)}</select></label>;
}

function Tiles({ s, pick }: { s: Summary; pick: (p: Partial<typeof nothing>) => void }) {
  const h = s.by_health;
  const look = (h.Attention ?? 0) + (h.Fault ?? 0) + (h.Offline ?? 0);
  const doubt = s.devices - (s.by_trust.attested ?? 0);
  const versions = Object.entries(s.by_version).filter(([v]) => v).sort(([, a], [, b]) => b - a);
  const held = s.by_trust.quarantined ?? 0;
  return (
    <ul class="tiles" aria-label="The fleet in numbers">
      <Tile name="Devices" n={s.devices} note={`${short(s.samples)} samples stored`} act={() => pick({})} />
      <Tile name="Online" n={s.online} note={s.devices > s.online ? `${s.devices - s.online} not connected` : 'all connected'} tone={s.devices > s.online ? 'warn' : 'good'} act={() => pick({ online: 'true' })} />
      <Tile name="Attested" n={s.by_trust.attested ?? 0} note={held > 0 ? `${held} quarantined` : doubt > 0 ? `${doubt} not yet proven` : 'all proven'}
        tone={held > 0 ? 'bad' : doubt > 0 ? 'warn' : 'good'} act={() => pick({ trust: held > 0 ? 'quarantined' : 'attested' })} />
      <Tile name="Need a look" n={look} note={h.Fault ? `${h.Fault} with a fault` : look > 0 ? 'attention or offline' : `${h.Unknown ?? 0} cannot tell`} tone={h.Fault ? 'bad' : look > 0 ? 'warn' : undefined} />
      <Tile name="Versions" n={versions.length} note={versions.slice(0, 2).map(([v, n]) => `${n} on ${v}`).join(', ') || 'none reported'} />
    </ul>
  );
}

function Tile({ name, n, note, tone, act }: { name: string; n: number; note: string; tone?: Tone; act?: () => void }) {
  const inside = <><span class="what">{name}</span><span class="n">{n}</span><span class={`note ${tone ?? ''}`}>{note}</span></>;
  return <li>{act ? <button type="button" class="tile" onClick={act}>{inside}</button> : <div class="tile">{inside}</div>}</li>;
}
