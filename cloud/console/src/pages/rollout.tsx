import { useState } from 'preact/hooks';
import { type Device, type Execution, id, type List, post, type Rollout } from '../api';
import { bytes, words } from '../format';
import { useLive, useRows } from '../live';
import { Progress } from '../parts/progress';
import { Badge, Card, Empty, Fault, Loading, More, Operators, Page, Table, When } from '../parts/ui';

export function RolloutPage({ rollout }: { rollout: string }) {
  const own = (c: { kind: string; id: string }) => c.kind === 'rollout' && c.id === rollout;
  const r = useLive<Rollout>(`/v1/rollouts/${id(rollout)}`, own, 500);
  const rows = useRows<Execution>(`/v1/rollouts/${id(rollout)}/executions`, own, 200, 500);
  const devices = useLive<List<Device>>('/v1/devices?limit=1000', (c) => c.kind === 'device', 30_000);
  const names = new Map(devices.data?.items.map((d) => [d.id, d.label || d.serial]));
  if (!r.data) return <Page title="Rollout" up={['/rollouts', 'Rollouts']}>{r.error ? <Fault text={r.error} retry={r.reload} /> : <Loading />}</Page>;
  const d = r.data;
  return (
    <Page title={d.release} up={['/rollouts', 'Rollouts']} aside={<Badge state={d.state} />}
      lead={<>To {d.group ? `group ${d.group}` : 'every device'}, started <When at={d.created_at} /> by {d.created_by}{d.ended_at && <>, ended <When at={d.ended_at} /></>}.</>}>
      <Card title="Progress" note={`${d.total} ${d.total === 1 ? 'device' : 'devices'}. Pauses by itself when more than ${d.max_failed} end badly.`}>
        <Progress counts={d.counts} total={d.total} legend />
        {d.reason && <p class="finding Attention"><strong>{words(d.state)}:</strong> {d.reason}</p>}
        {(d.state === 'RUNNING' || d.state === 'PAUSED') && <Operators what="moving a rollout"><Moves r={d} moved={r.reload} /></Operators>}
        <Fault text={r.error} retry={r.reload} />
      </Card>
      <Card title="Devices">
        <Fault text={rows.error} retry={rows.reload} />
        {!rows.data && !rows.error && <Loading />}
        {rows.data && rows.items.length === 0 && <Empty title="No device is in this group yet.">A device that joins the group while the rollout runs is taken in.</Empty>}
        {rows.items.length > 0 && (
          <Table label="Devices" head={['Device', 'State', 'Version', 'Download', 'Detail', 'Changed']}>
            {rows.items.map((e) => <Row e={e} name={names.get(e.device)} key={e.id} />)}
          </Table>
        )}
        <More rows={rows} />
      </Card>
    </Page>
  );
}

function Row({ e, name }: { e: Execution; name: string | undefined }) {
  const loading = e.total > 0 && e.done < e.total;
  return (
    <tr data-testid="execution-row" data-state={e.state} data-device={e.device}>
      <td class="name"><a href={`/device/${e.device}`}>{name || e.device}</a>{name && <small>{e.device}</small>}</td>
      <td data-label="State"><Badge state={e.state} /></td>
      <td data-label="Version" class="ver">{e.from || '–'} → {e.to || '–'}</td>
      <td data-label="Download">{loading && <progress value={e.done} max={e.total} aria-label="downloaded" />}<small>{e.total > 0 ? (loading ? `${bytes(e.done)} of ${bytes(e.total)}` : bytes(e.total)) : '–'}</small></td>
      <td data-label="Detail" class="detail">{e.reason && <strong>{words(e.reason)}</strong>}<span>{e.text}</span></td>
      <td data-label="Changed"><When at={e.updated_at} /></td>
    </tr>
  );
}

function Moves({ r, moved }: { r: Rollout; moved: () => void }) {
  const [reason, setReason] = useState('');
  const [error, setError] = useState('');
  const move = async (verb: string) => {
    try {
      await post(`/v1/rollouts/${id(r.id)}/${verb}`, { reason });
      setError('');
      setReason('');
      moved();
    } catch (e) { setError((e as Error).message); }
  };
  return (
    <form class="row inset" onSubmit={(e) => e.preventDefault()}>
      <label class="wide">Reason <input value={reason} maxLength={512} placeholder="Kept in the audit trail; needed to abort" onInput={(e) => setReason(e.currentTarget.value)} /></label>
      {r.state === 'RUNNING' && <button type="button" onClick={() => void move('pause')}>Pause</button>}
      {r.state === 'PAUSED' && <button type="button" class="main" onClick={() => void move('resume')}>Resume</button>}
      <button type="button" class="danger" disabled={!reason.trim()} onClick={() => void move('abort')}>Abort</button>
      <Fault text={error} />
    </form>
  );
}
