import { useState } from 'preact/hooks';
import { type Device, get, type List, type Summary } from '../api';
import { useLive } from '../live';
import { Badge, Empty, Fault, Loading, Page, Table, When } from '../parts/ui';
import { go } from '../router';

export function Fleet() {
  const [q, setQ] = useState('');
  const [trust, setTrust] = useState('');
  const [online, setOnline] = useState('');
  const [more, setMore] = useState<{ items: Device[]; next: string } | null>(null);
  const query = new URLSearchParams({ limit: '100', ...(q && { q }), ...(trust && { trust }), ...(online && { online }) });
  const list = useLive<List<Device>>(`/v1/devices?${query}`, (c) => c.kind === 'device' || c.kind === 'event');
  const sum = useLive<Summary>('/v1/summary', (c) => c.kind === 'device', 2000);
  const filter = (set: (v: string) => void) => (v: string) => { setMore(null); set(v); };
  const items = [...(list.data?.items ?? []), ...(more?.items ?? [])];
  const next = more ? more.next : list.data?.next;
  const load = async () => {
    const page = await get<List<Device>>(`/v1/devices?${query}&after=${encodeURIComponent(next ?? '')}`);
    setMore({ items: [...(more?.items ?? []), ...page.items], next: page.next });
  };
  const h = sum.data?.by_health ?? {};
  const t = sum.data?.by_trust ?? {};
  const tiles: [string, number, string][] = [
    ['Devices', sum.data?.devices ?? 0, ''],
    ['Online', sum.data?.online ?? 0, ''],
    ['Attested', t.attested ?? 0, ''],
    ['Need a look', (h.Attention ?? 0) + (h.Fault ?? 0) + (h.Offline ?? 0), (h.Fault ?? 0) > 0 ? 'bad' : 'warn'],
    ['Quarantined', t.quarantined ?? 0, 'bad'],
  ];
  return (
    <Page title="Fleet">
      <dl class="tiles">{tiles.map(([name, n, tone]) => <div class={n > 0 ? tone : ''} key={name}><dt>{name}</dt><dd>{n}</dd></div>)}</dl>
      <form class="row" role="search" onSubmit={(e) => e.preventDefault()}>
        <label>Search <input type="search" value={q} placeholder="id, serial, label, site, model" onInput={(e) => filter(setQ)(e.currentTarget.value)} /></label>
        <label>Trust <select value={trust} onChange={(e) => filter(setTrust)(e.currentTarget.value)}>
          <option value="">any</option>{['attested', 'pending', 'degraded', 'quarantined', 'stale'].map((s) => <option key={s}>{s}</option>)}
        </select></label>
        <label>Connection <select value={online} onChange={(e) => filter(setOnline)(e.currentTarget.value)}>
          <option value="">any</option><option value="true">online</option><option value="false">offline</option>
        </select></label>
      </form>
      <Fault text={list.error} retry={list.reload} />
      {!list.data && !list.error && <Loading />}
      {list.data && items.length === 0 && (q || trust || online
        ? <Empty>No device matches. Clear the search to see all.</Empty>
        : <Empty>No device has joined yet. A box joins by itself at its first boot when its TPM is on your vendor's list; <code>tillward-sim run</code> shows it on a desk.</Empty>)}
      {items.length > 0 && (
        <Table label="Devices" head={['Device', 'Trust', 'Peripherals', 'Site', 'Group', 'Agent', 'Seen']}>
          {items.map((d) => (
            <tr key={d.id} data-testid="fleet-row" data-device={d.id} data-trust={d.trust} class="link" onClick={(e) => { if (!(e.target as Element).closest('a')) go(`/device/${d.id}`); }}>
              <td><a href={`/device/${d.id}`}>{d.label || d.serial || d.id}</a><small>{d.id}</small></td>
              <td><Badge state={d.trust} /></td>
              <td><Badge state={d.health} text={d.health === 'Unknown' ? 'cannot tell' : undefined} /></td>
              <td>{d.site || '–'}</td>
              <td>{d.group || '–'}</td>
              <td>{d.agent_version || '–'}</td>
              <td>{d.online ? <Badge state="online" /> : <When at={d.last_seen} />}</td>
            </tr>
          ))}
        </Table>
      )}
      {next && <button type="button" onClick={() => void load()}>Load more</button>}
    </Page>
  );
}
