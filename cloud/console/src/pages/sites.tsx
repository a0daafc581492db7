import { useId, useState } from 'preact/hooks';
import { id, type List, put, type Site } from '../api';
import { count } from '../format';
import { now, useLive } from '../live';
import { Badge, Card, Empty, Fault, Loading, Opened, Outcome, Page, Table, useAct } from '../parts/ui';
import { operator } from '../session';

const zones = Intl.supportedValuesOf('timeZone');
const blank: Site = { name: '', zone: '', download: '', install: '', devices: 0 };

/** The clock on a site's wall; nothing for a zone that this browser does not know. */
export function there(zone: string, ms: number): string {
  try { return new Date(ms).toLocaleTimeString('en-GB', { weekday: 'short', hour: '2-digit', minute: '2-digit', timeZone: zone || 'UTC' }); } catch { return ''; }
}

export function Sites() {
  const { data, error, reload } = useLive<List<Site>>('/v1/sites', (c) => c.kind === 'device', 30_000);
  const [q, setQ] = useState('');
  const [edit, setEdit] = useState<Site>();
  const act = useAct();
  const items = (data?.items ?? []).filter((s) => `${s.name} ${s.zone}`.toLowerCase().includes(q.trim().toLowerCase()));
  const save = async (s: Site) => {
    const { name, ...body } = s;
    if (await act.act(() => put(`/v1/sites/${id(name)}`, { zone: body.zone.trim(), download: body.download.trim(), install: body.install.trim() }), `Saved: ${name}. Rollouts go by it from now on.`)) { setEdit(undefined); reload(); }
  };
  const form = edit && <Edit key={edit.name} site={edit} busy={act.busy} save={(s) => void save(s)} close={() => setEdit(undefined)} />;
  return (
    <Page title="Sites" lead="Where tills stand, by which clock, and in which hours they may be updated. A rollout that names hours of its own goes before these."
      aside={operator.value && <button type="button" data-testid="site-add" onClick={() => setEdit(blank)}>Add a site</button>}>
      {edit && !edit.name && <Card title="New site">{form}</Card>}
      <Outcome done={act.done} error={act.error} />
      <Fault text={error} retry={reload} />
      {!data && !error && <Loading />}
      {data?.items.length === 0 && <Empty title="No device stands at a site yet.">A device is given its site on its own page; the site shows here then.</Empty>}
      {data && data.items.length > 0 && (
        <>
          {data.items.length > 8 && <div class="row filters" role="search"><label class="wide">Search <input type="search" value={q} placeholder="Name or zone" onInput={(e) => setQ(e.currentTarget.value)} /></label></div>}
          {items.length === 0 && <Empty title="No site matches."><button type="button" onClick={() => setQ('')}>Show all sites</button></Empty>}
          {items.length > 0 && (
            <Table label="Sites" head={['Site', 'Clock', 'May fetch', 'May touch the till', 'Devices', ...(operator.value ? ['Change'] : [])]}>
              {items.map((s) => edit?.name === s.name
                ? <tr key={s.name}><td colSpan={6}><h2>{s.name}</h2>{form}</td></tr>
                : (
                  <tr key={s.name} data-testid="site-row">
                    <td class="name"><strong>{s.name}</strong></td>
                    <td data-label="Clock">{s.zone || 'UTC'}<small>{there(s.zone, now.value)} there</small></td>
                    <td data-label="May fetch">{s.download || <Badge state="" text="any time" />}</td>
                    <td data-label="May touch">{s.install || <Badge state="" text="any time" />}</td>
                    <td data-label="Devices" class="num">{count(s.devices)}</td>
                    {operator.value && <td><button type="button" data-testid="site-edit" onClick={() => setEdit(s)}>Edit<span class="hidden"> {s.name}</span></button></td>}
                  </tr>
                ))}
            </Table>
          )}
        </>
      )}
    </Page>
  );
}

function Edit({ site, busy, save, close }: { site: Site; busy: boolean; save: (s: Site) => void; close: () => void }) {
  const [s, setS] = useState(site);
  const list = useId();
  const set = (k: 'name' | 'zone' | 'download' | 'install') => (e: Event) => setS({ ...s, [k]: (e.currentTarget as HTMLInputElement).value });
  return (
    <Opened class="inset" send={() => save({ ...s, name: s.name.trim() })}>
      <div class="row">
        {!site.name && <label>Name <input value={s.name} required maxLength={64} onInput={set('name')} /></label>}
        <label>Time zone <input value={s.zone} list={list} maxLength={64} placeholder="UTC" onInput={set('zone')} /><datalist id={list}>{zones.map((z) => <option value={z} key={z} />)}</datalist></label>
        <label class="wide">May fetch <input value={s.download} maxLength={512} placeholder="any time" onInput={set('download')} /></label>
        <label class="wide">May touch the till <input value={s.install} maxLength={512} placeholder="any time" onInput={set('install')} /></label>
      </div>
      <p class="dim">Hours by the clock of the site, such as <code>22:00-05:00</code> or <code>mon-fri 22:00-05:00, sun 00:00-24:00</code>. A span that ends before it begins ends on the next day.</p>
      <div class="row acts"><button type="submit" class="main" data-testid="site-save" disabled={busy || !s.name.trim()}>Save</button><button type="button" onClick={close}>Cancel</button></div>
    </Opened>
  );
}
