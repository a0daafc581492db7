import { useState } from 'preact/hooks';
import { type Device, type List, post, type Release, type Rollout } from '../api';
import { useLive, useRows } from '../live';
import { Progress } from '../parts/progress';
import { Badge, Card, Empty, Fault, Loading, More, Operators, Page, Table, When } from '../parts/ui';
import { go } from '../router';

export function Rollouts() {
  const rows = useRows<Rollout>('/v1/rollouts', (c) => c.kind === 'rollout');
  return (
    <Page title="Rollouts" lead="A rollout brings a signed release to a group, device by device, and pauses by itself when too many end badly.">
      <Card title="Start a rollout"><Operators what="starting a rollout"><Start /></Operators></Card>
      <Fault text={rows.error} retry={rows.reload} />
      {!rows.data && !rows.error && <Loading />}
      {rows.data && rows.items.length === 0 && <Empty title="No rollout has been started.">Begin with a small group. A device that fails its own check goes back to the version before by itself.</Empty>}
      {rows.items.length > 0 && (
        <Table label="Rollouts" head={['Release', 'State', 'Progress', 'Group', 'Started', 'By']}>
          {rows.items.map((r) => (
            <tr key={r.id} data-testid="rollout-row" data-state={r.state} class="link" onClick={(e) => { if (!(e.target as Element).closest('a')) go(`/rollouts/${r.id}`); }}>
              <td class="name"><a href={`/rollouts/${r.id}`}>{r.release}</a><small>{r.id}</small></td>
              <td data-label="State"><Badge state={r.state} />{r.reason && <small>{r.reason}</small>}</td>
              <td data-label="Progress"><Progress counts={r.counts} total={r.total} /></td><td data-label="Group">{r.group || 'every device'}</td>
              <td data-label="Started"><When at={r.created_at} /></td><td data-label="By">{r.created_by}</td>
            </tr>
          ))}
        </Table>
      )}
      <More rows={rows} />
    </Page>
  );
}

function Start() {
  const releases = useLive<List<Release>>('/v1/releases', (c) => c.kind === 'release');
  const devices = useLive<List<Device>>('/v1/devices?limit=1000', (c) => c.kind === 'device', 30_000);
  const [release, setRelease] = useState('');
  const [group, setGroup] = useState('');
  const [failed, setFailed] = useState('1');
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState('');
  const chosen = release || releases.data?.items[0]?.id || '';
  const groups = [...new Set(devices.data?.items.map((d) => d.group))].filter(Boolean).sort();
  const reach = devices.data?.items.filter((d) => !group || d.group === group).length ?? 0;
  const start = async (e: Event) => {
    e.preventDefault();
    setBusy(true);
    try {
      go(`/rollouts/${(await post<Rollout>('/v1/rollouts', { release: chosen, group, max_failed: Number(failed) })).id}`);
    } catch (err) { setError((err as Error).message); setBusy(false); }
  };
  if (releases.error) return <Fault text={releases.error} retry={releases.reload} />;
  if (!releases.data) return <Loading />;
  if (releases.data.items.length === 0) return <Empty title="There is no release yet.">Sign one with <code>tillward-provision release add</code>, then upload it with <code>tillward release publish</code>.</Empty>;
  return (
    <form onSubmit={(e) => void start(e)} class="inset">
      <div class="row">
        <label>Release <select value={chosen} onChange={(e) => setRelease(e.currentTarget.value)}>{releases.data.items.map((r) => <option key={r.id}>{r.id}</option>)}</select></label>
        <label>Group <select value={group} onChange={(e) => setGroup(e.currentTarget.value)}><option value="">every device</option>{groups.map((g) => <option key={g}>{g}</option>)}</select></label>
        <label>Pause after failures <input type="number" min="1" max="1000" required value={failed} onInput={(e) => setFailed(e.currentTarget.value)} /></label>
        <button type="submit" class="main" disabled={busy || !chosen}>Start rollout</button>
      </div>
      <p class="dim">Goes to {group ? `group ${group}` : 'every device'}: {reach} {reach === 1 ? 'device' : 'devices'} now. Devices that run it already are left alone.</p>
      <Fault text={error} />
    </form>
  );
}
