import { type DeviceUpdate, id } from '../api';
import { count, sentence } from '../format';
import { useLive } from '../live';
import { Detail, Fetched, State } from './execution';
import { Badge, Card, Empty, Fault, Loading, Table, When } from './ui';

/** What a device runs, and why it waits for what it does not. */
export function Update({ device }: { device: string }) {
  const { data: u, error, reload } = useLive<DeviceUpdate>(`/v1/devices/${id(device)}/update`, (c) => c.kind === 'rollout' || c.kind === 'release' || c.id === device, 3000);
  const facts = u ? [u.supply === 'battery' ? 'on battery' : u.supply === 'mains' ? 'on mains' : '', u.free_mib > 0 ? `${count(u.free_mib)} MiB free` : ''].filter(Boolean).join(', ') : '';
  return (
    <Card title="Updates" note={facts || undefined}>
      <Fault text={error} retry={reload} />
      {!u && !error && <Loading />}
      {u && (u.waiting.length > 0
        ? (
          <section class="findings" aria-label="Why this device is waiting" data-testid="device-waits">
            <h3>Why this device is waiting</h3>
            {u.waiting.map((w) => (
              <div class="finding Attention" key={`${w.rollout}${w.reason}`} data-reason={w.reason}>
                <p>{sentence(w.text)}</p>
                <small>{w.rollout && <a href={`/rollouts/${id(w.rollout)}`}>rollout {w.rollout}</a>}{w.since && <>{w.rollout && ', '}since <When at={w.since} /></>}</small>
              </div>
            ))}
          </section>
        )
        : <p class="ok" data-testid="device-waits">It waits for nothing: no rollout has anything for it that it does not run.</p>)}
      {u && u.installed.length > 0 && (
        <Table label="Installed" head={['Component', 'Version', 'Slot', 'Content']}>
          {u.installed.map((i) => (
            <tr key={`${i.component}${i.slot}`} data-testid="installed-row">
              <td class="name"><strong>{i.component}</strong></td>
              <td data-label="Version">{i.version}{i.trial && <> <Badge state="" as="warn" text="on trial" /></>}</td>
              <td data-label="Slot">{i.slot || '–'}</td>
              <td data-label="Content">{i.hash ? <code title={i.hash}>{i.hash.slice(0, 16)}…</code> : '–'}</td>
            </tr>
          ))}
        </Table>
      )}
      {u && u.executions.length === 0 && <Empty title="No rollout has reached it yet." />}
      {u && u.executions.length > 0 && (
        <Table label="Updates of this device" head={['Rollout', 'State', 'Version', 'Fetched', 'Detail', 'Changed']}>
          {u.executions.map((e) => (
            <tr key={e.id} data-testid="update-row" data-state={e.state}>
              <td class="name"><a href={`/rollouts/${id(e.rollout)}`}>{e.rollout}</a></td>
              <td data-label="State"><State e={e} /></td>
              <td data-label="Version" class="ver">{e.from || '–'} → {e.to || '–'}</td>
              <td data-label="Fetched"><Fetched e={e} /></td>
              <td data-label="Detail" class="detail"><Detail e={e} /></td>
              <td data-label="Changed"><When at={e.updated_at} /></td>
            </tr>
          ))}
        </Table>
      )}
    </Card>
  );
}
