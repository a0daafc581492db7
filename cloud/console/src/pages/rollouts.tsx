import { useState } from 'preact/hooks';
import { type Execution, id, type List, post, type Release, type Rollout } from '../api';
import { bytes, tone, words } from '../format';
import { useLive } from '../live';
import { Badge, Card, Empty, Fault, Loading, Page, Table, When } from '../parts/ui';
import { go } from '../router';

export function Rollouts() {
  const list = useLive<List<Rollout>>('/v1/rollouts', (c) => c.kind === 'rollout');
  const releases = useLive<List<Release>>('/v1/releases', (c) => c.kind === 'release');
  const [release, setRelease] = useState('');
  const [group, setGroup] = useState('');
  const [error, setError] = useState('');
  const chosen = release || releases.data?.items[0]?.id || '';
  const start = async (e: Event) => {
    e.preventDefault();
    try { go(`/rollouts/${(await post<Rollout>('/v1/rollouts', { release: chosen, group })).id}`); } catch (err) { setError((err as Error).message); }
  };
  return (
    <Page title="Rollouts">
      <Card title="Start a rollout">
        {releases.data?.items.length === 0
          ? <Empty>There is no release yet. Sign one with <code>tillward-provision release add</code>, then <code>tillward release publish</code>.</Empty>
          : <form class="row" onSubmit={(e) => void start(e)}>
            <label>Release <select value={chosen} onChange={(e) => setRelease(e.currentTarget.value)}>{releases.data?.items.map((r) => <option key={r.id}>{r.id}</option>)}</select></label>
            <label>Group <input value={group} placeholder="every device" onInput={(e) => setGroup(e.currentTarget.value)} /></label>
            <button type="submit" class="main" disabled={!chosen}>Start</button>
          </form>}
        <Fault text={error} />
      </Card>
      <Fault text={list.error} retry={list.reload} />
      {!list.data && !list.error && <Loading />}
      {list.data?.items.length === 0 && <Empty>No rollout has been started.</Empty>}
      {list.data && list.data.items.length > 0 && (
        <Table label="Rollouts" head={['Release', 'State', 'Devices', 'Group', 'Started', 'By']}>
          {list.data.items.map((r) => (
            <tr key={r.id} data-testid="rollout-row" data-state={r.state}>
              <td><a href={`/rollouts/${r.id}`}>{r.release}</a><small>{r.id}</small></td>
              <td><Badge state={r.state} /></td><td><Bar counts={r.counts} total={r.total} /></td><td>{r.group || 'every device'}</td>
              <td><When at={r.created_at} /></td><td>{r.created_by}</td>
            </tr>
          ))}
        </Table>
      )}
    </Page>
  );
}

/** How far it is, a segment for each state, and the same in words. */
function Bar({ counts, total }: { counts: Record<string, number>; total: number }) {
  const parts = Object.entries(counts).sort();
  const text = parts.map(([k, n]) => `${n} ${words(k)}`).join(', ');
  let x = 0;
  return (
    <figure class="bar">
      <svg viewBox="0 0 100 4" preserveAspectRatio="none" role="img" aria-label={text || 'no devices yet'}>
        {parts.map(([k, n]) => { const w = (n * 100) / Math.max(total, 1); const r = <rect key={k} x={x} y="0" width={w} height="4" class={tone(k)} />; x += w; return r; })}
      </svg>
      <figcaption>{text || 'no devices yet'}</figcaption>
    </figure>
  );
}

export function RolloutPage({ rollout }: { rollout: string }) {
  const r = useLive<Rollout>(`/v1/rollouts/${id(rollout)}`, (c) => c.kind === 'rollout' && c.id === rollout, 500);
  const ex = useLive<List<Execution>>(`/v1/rollouts/${id(rollout)}/executions?limit=200`, (c) => c.kind === 'rollout' && c.id === rollout, 500);
  const [reason, setReason] = useState('');
  const [error, setError] = useState('');
  const move = async (verb: string) => {
    try { await post(`/v1/rollouts/${id(rollout)}/${verb}`, { reason }); setError(''); setReason(''); r.reload(); } catch (e) { setError((e as Error).message); }
  };
  if (!r.data) return <Page title="Rollout">{r.error ? <Fault text={r.error} retry={r.reload} /> : <Loading />}</Page>;
  const d = r.data;
  return (
    <Page title={`Rollout of ${d.release}`} aside={<Badge state={d.state} />}>
      <Card title="Progress">
        <Bar counts={d.counts} total={d.total} />
        {d.reason && <p><strong>{d.reason}</strong></p>}
        <p class="dim">To {d.group ? `group ${d.group}` : 'every device'}, started <When at={d.created_at} /> by {d.created_by}. Pauses by itself when more than {d.max_failed} end badly.</p>
        {(d.state === 'RUNNING' || d.state === 'PAUSED') && (
          <form class="row" onSubmit={(e) => e.preventDefault()}>
            <label>Reason <input value={reason} placeholder="kept in the audit trail" onInput={(e) => setReason(e.currentTarget.value)} /></label>
            {d.state === 'RUNNING' && <button type="button" onClick={() => void move('pause')}>Pause</button>}
            {d.state === 'PAUSED' && <button type="button" class="main" onClick={() => void move('resume')}>Resume</button>}
            <button type="button" class="danger" disabled={!reason} onClick={() => void move('abort')}>Abort</button>
          </form>
        )}
        <Fault text={error || ex.error} />
      </Card>
      <Card title="Devices">
        {ex.data?.items.length === 0 && <Empty>No device is in this group yet. Devices that join it are taken in.</Empty>}
        {ex.data && ex.data.items.length > 0 && (
          <Table label="Devices" head={['Device', 'State', 'From', 'To', 'Progress', 'Detail', 'Changed']}>
            {ex.data.items.map((e) => (
              <tr key={e.id} data-testid="execution-row" data-state={e.state}>
                <td><a href={`/device/${e.device}`}>{e.device}</a></td><td><Badge state={e.state} /></td><td>{e.from || '–'}</td><td>{e.to || '–'}</td>
                <td>{e.total > 0 ? `${bytes(e.done)} of ${bytes(e.total)}` : '–'}</td><td>{e.reason && words(e.reason)} {e.text}</td><td><When at={e.updated_at} /></td>
              </tr>
            ))}
          </Table>
        )}
      </Card>
    </Page>
  );
}
