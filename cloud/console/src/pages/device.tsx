import { type Device, id, type List, type Peripheral, type PeripheralEvent } from '../api';
import { clock, sensor, span, words } from '../format';
import { now, useLive } from '../live';
import { Charts } from '../parts/chart';
import { Commands } from '../parts/commands';
import { Trail } from '../parts/trail';
import { Badge, Card, Empty, Fault, Loading, Page, Table, When } from '../parts/ui';

const tiers: Record<string, string> = {
  A: 'TPM with its maker\'s certificate', B: 'TPM on the vendor\'s list', C: 'virtual TPM', D: 'software key',
};

export function DevicePage({ device }: { device: string }) {
  const { data: d, error, reload } = useLive<Device>(`/v1/devices/${id(device)}`, (c) => c.id === device);
  if (!d) return <Page title="Device">{error ? <Fault text={error} retry={reload} /> : <Loading />}</Page>;
  return (
    <Page title={d.label || d.serial || d.id} aside={<span>{d.online ? <Badge state="online" /> : <>offline, seen <When at={d.last_seen} /></>}</span>}>
      <Fault text={error} retry={reload} />
      <Card title="Identity and trust">
        <dl class="facts">
          <div><dt>Attestation</dt><dd><Badge state={d.trust} testid="device-trust" /> <When at={d.attested_at} /></dd></div>
          {d.trust_reasons.length > 0 && <div><dt>Why</dt><dd>{d.trust_reasons.join('; ')}</dd></div>}
          <div><dt>Identity</dt><dd>tier {d.tier}: {tiers[d.tier]}</dd></div>
          <div><dt>Certificate</dt><dd>until {clock(d.cert_not_after)}</dd></div>
          <div><dt>Device</dt><dd><code>{d.id}</code></dd></div>
          <div><dt>Serial, model</dt><dd>{d.serial || '–'}, {d.model || '–'}</dd></div>
          <div><dt>Agent</dt><dd>{d.agent_version || '–'} from slot {d.slot || '–'}, started <When at={d.state.started_at} /></dd></div>
          <div><dt>Site, group</dt><dd>{d.site || '–'}, {d.group || '–'}</dd></div>
          <div><dt>Waiting on the device</dt><dd>{d.state.spool_depth} messages{d.state.spool_shed > 0 && `, ${d.state.spool_shed} given up for lack of space`}</dd></div>
        </dl>
      </Card>
      <Card title="Peripherals">
        {d.peripherals.length === 0 && <Empty>None reported yet. They are listed in the agent's file as [[device]].</Empty>}
        <ul class="peripherals">{d.peripherals.map((p) => <PeripheralCard p={p} key={p.id} />)}</ul>
      </Card>
      <Card title="Telemetry"><Charts device={device} /></Card>
      <Commands device={device} />
      <Trail title="Audit trail" path={`/v1/devices/${id(device)}/audit`} concerns={(c) => c.kind === 'audit' && c.id === device} />
      <Events device={device} />
    </Page>
  );
}

function PeripheralCard({ p }: { p: Peripheral }) {
  return (
    <li data-testid="peripheral" data-id={p.id} data-health={p.health}>
      <div class="head"><h3>{p.id}</h3>{p.simulated && <span class="badge dim">simulated</span>}<Badge state={p.health} text={p.health === 'Unknown' ? 'cannot tell' : undefined} /></div>
      <p>{p.category}{p.model && `, ${p.maker} ${p.model}`} <span class="dim">({p.driver}, {words(p.power.replace(/^PS_/, ''))})</span></p>
      {p.reason && <p><strong>{words(p.reason)}</strong>{p.since && ` for ${span(now.value - Date.parse(p.since))}`}</p>}
      {p.advice && <p>{p.advice}</p>}
      <dl class="sensors">
        {Object.entries(p.sensors ?? {}).sort().map(([k, v]) => <div key={k}><dt>{sensor(k)}</dt><dd class={v === 'Unknown' ? 'dim' : ''}>{v === 'Unknown' ? 'no sensor' : v.toLowerCase()}</dd></div>)}
      </dl>
    </li>
  );
}

function Events({ device }: { device: string }) {
  const { data, error, reload } = useLive<List<PeripheralEvent>>(`/v1/devices/${id(device)}/events?limit=50`, (c) => c.kind === 'event' && c.id === device);
  return (
    <Card title="Peripheral events">
      <Fault text={error} retry={reload} />
      {data?.items.length === 0 && <Empty>Nothing has happened yet.</Empty>}
      {data && data.items.length > 0 && (
        <Table label="Peripheral events" head={['When', 'Peripheral', 'Event', 'From', 'To']}>
          {data.items.map((e, i) => <tr key={i}><td><When at={e.at} /></td><td>{e.peripheral}</td><td>{words(e.code.replace(/^M_/, ''))}</td><td>{e.from}</td><td>{e.to}</td></tr>)}
        </Table>
      )}
    </Card>
  );
}
