import { useEffect, useState } from 'preact/hooks';
import { type Attestation, type Device, id, type PeripheralEvent } from '../api';
import { reason } from '../format';
import { useLive, useRows } from '../live';
import { Appraisals } from '../parts/appraisals';
import { Commands } from '../parts/commands';
import { Identity } from '../parts/identity';
import { Ownership } from '../parts/ownership';
import { PeripheralCard } from '../parts/peripheral';
import { Till } from '../parts/till';
import { Trail } from '../parts/trail';
import { Badge, Card, Empty, Fault, Health, Loading, More, Page, Table, When } from '../parts/ui';
import { Update } from '../parts/update';

export function DevicePage({ device }: { device: string }) {
  const { data: d, error, reload } = useLive<Device>(`/v1/devices/${id(device)}`, (c) => c.id === device);
  const appraisals = useRows<Attestation>(`/v1/devices/${id(device)}/attestations`, (c) => c.kind === 'device' && c.id === device, 20);
  if (!d) return <Page title="Device" up={['/', 'Fleet']}>{error ? <Fault text={error} retry={reload} /> : <Loading />}</Page>;
  const online = d.former_of ? <Badge state="" text="moved on" /> : d.online ? <Badge state="online" /> : <Badge state="Offline" text="offline" />;
  return (
    <Page title={d.label || d.serial || d.id} up={['/', 'Fleet']} aside={<span class="badges">{!d.former_of && d.trust !== 'attested' && <Badge state={d.trust} />}<Health health={d.health} online={d.online} />{online}</span>}
      lead={d.former_of ? <>It went to another owner <When at={d.left_at} />; what it left here is kept. The device itself was <code>{d.former_of}</code>.</> : d.online ? [d.site, d.group].filter(Boolean).join(' · ') : <>Last seen <When at={d.last_seen} />. Commands wait for its return.</>}>
      <Fault text={error} retry={reload} />
      <Identity d={d} last={appraisals.items[0]} changed={reload} />
      <Till d={d} changed={reload} />
      {!d.former_of && <Update device={device} />}
      <Card title="Peripherals" note={d.online ? undefined : 'As last reported; the device is offline.'}>
        {d.peripherals.length === 0
          ? <Empty title="None reported yet.">They are listed in the agent's file, one <code>[[device]]</code> each, and show here within a minute of its start.</Empty>
          : <ul class="peripherals">{d.peripherals.map((p) => <PeripheralCard p={p} online={d.online} device={device} key={p.id} />)}</ul>}
      </Card>
      <Card title="Telemetry"><Telemetry device={device} /></Card>
      {!d.former_of && <Commands device={device} online={d.online} trust={d.revoked_at ? 'revoked' : d.trust} peripherals={d.peripherals.filter((p) => p.driver !== 'none').map((p) => p.id)} />}
      <Appraisals rows={appraisals} />
      {!d.former_of && <Ownership d={d} />}
      <div class="pair">
        <Trail title="Audit trail" path={`/v1/devices/${id(device)}/audit`} own={d.id} proof={d.audit} concerns={(c) => c.kind === 'audit' && c.id === device} />
        <Events device={device} />
      </div>
    </Page>
  );
}

/** The charts, whose code is fetched when they are first looked at: it is a third of all there is. */
function Telemetry({ device }: { device: string }) {
  const [Charts, setCharts] = useState<typeof import('../parts/chart').Charts>();
  const [error, setError] = useState('');
  useEffect(() => {
    import('../parts/chart').then((m) => setCharts(() => m.Charts), () => setError('The charts cannot be fetched: the service was updated or cannot be reached. Load the page again.'));
  }, []);
  if (error) return <Fault text={error} retry={() => location.reload()} />;
  return Charts ? <Charts device={device} /> : <Loading />;
}

function Events({ device }: { device: string }) {
  const rows = useRows<PeripheralEvent>(`/v1/devices/${id(device)}/events`, (c) => c.kind === 'event' && c.id === device);
  return (
    <Card title="Peripheral events" note="What changed at printers, drawers and readers.">
      <Fault text={rows.error} retry={rows.reload} />
      {!rows.data && !rows.error && <Loading />}
      {rows.data && rows.items.length === 0 && <Empty title="Nothing has happened yet.">A cover that opens or a card that is put in shows here.</Empty>}
      {rows.items.length > 0 && (
        <Table label="Peripheral events" head={['When', 'Peripheral', 'Event']}>
          {rows.items.map((e, i) => (
            <tr key={`${e.at}${e.code}${i}`}>
              <td data-label="When"><When at={e.at} /></td><td data-label="Peripheral">{e.peripheral}</td>
              <td data-label="Event">{reason(e.code)}{(e.from || e.to) && <small>{reason(e.from) || '–'} → {reason(e.to) || '–'}</small>}</td>
            </tr>
          ))}
        </Table>
      )}
      <More rows={rows} />
    </Card>
  );
}
