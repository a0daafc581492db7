import { useState } from 'preact/hooks';
import { type AuditEvent, type Device, type Execution, id, type List, post, type Rollout, type Spec } from '../api';
import { clock, many, sentence, span, words } from '../format';
import { type Change, useLive, useRows } from '../live';
import { Board, HealthCard, Holds, Whole } from '../parts/board';
import { Detail, Fetched, State } from '../parts/execution';
import { Before, Moves } from '../parts/moves';
import { Badge, Card, Empty, Fault, Listed, Loading, Page, Table, useAct, When } from '../parts/ui';
import { takes, whom } from '../plan';
import { ended, executionStates, timeline } from '../rollout';
import { operator } from '../session';

const before = ['DRAFT', 'AWAITING_APPROVAL', 'READY'];

export function RolloutPage({ rollout }: { rollout: string }) {
  const own = (c: Change) => c.kind === 'rollout' && c.id === rollout;
  const at = `/v1/rollouts/${id(rollout)}`;
  const r = useLive<Rollout>(at, own, 1000);
  const waiting = useRows<Execution>(`${at}/executions?state=WAITING`, own, 1000, 5000);
  const trail = useLive<List<AuditEvent>>('/v1/audit?limit=300', own, 15_000);
  const moved = () => { r.reload(); trail.reload(); };
  if (!r.data) return <Page title="Rollout" up={['/rollouts', 'Rollouts']}>{r.error ? <Fault text={r.error} retry={r.reload} /> : <Loading />}</Page>;
  const d = r.data;
  const begun = d.started_at !== null;
  const moves = ['RUNNING', 'PAUSED'].includes(d.state);
  return (
    <Page title={d.release} up={['/rollouts', 'Rollouts']}
      aside={<span class="badges"><Badge state={d.state} testid={moves ? undefined : 'rollout-state'} />{operator.value && (ended(d.state) || d.state === 'ABORTING') && <a class="button" href={`/rollouts/${d.id}/again`}>Compose one like it</a>}</span>}
      lead={<>To {whom(d.spec.filter)}, composed <When at={d.created_at} /> by {d.created_by}{d.approved_by && <>, approved by {d.approved_by}</>}{d.ended_at && <>, ended <When at={d.ended_at} /></>}.</>}>
      <Fault text={r.error} retry={r.reload} />
      {moves && <Moves r={d} moved={moved} />}
      {d.reason && <p class="finding Attention" data-testid="rollout-reason"><strong>{sentence(words(d.state)).replace(/\.$/, '')}{d.auto && ' by itself'}:</strong> {d.reason}</p>}
      {before.includes(d.state) && <Before r={d} moved={moved} />}
      {begun && <Whole r={d} />}
      <Holds r={d} moved={moved} />
      <Card title="Waves" note={waiting.more ? 'Reasons are those of the first thousand that wait.' : undefined}><Board r={d} waiting={waiting.items} /></Card>
      {begun && <HealthCard r={d} />}
      {begun && <Executions r={d} own={own} moved={moved} />}
      <div class="pair">
        <Card title="Plan"><Plan s={d.spec} /></Card>
        <Card title="Timeline">
          <Fault text={trail.error} retry={trail.reload} />
          <ol class="timeline">{timeline(d, trail.data?.items ?? []).map((m) => <li key={`${m.at}${m.text}`} class={m.tone}><span>{m.text}</span><small><When at={m.at} />, {clock(m.at)}</small></li>)}</ol>
        </Card>
      </div>
    </Page>
  );
}

/** How it goes, in words. */
function Plan({ s }: { s: Spec }) {
  const waves = s.waves ?? [];
  const share = (n: number | undefined, usual: number, unit = ' %') => (!n ? `${usual}${unit}` : n < 0 ? 'not judged' : `${n}${unit}`);
  const facts: [string, string][] = [
    ['To', whom(s.filter)],
    ['Waves', waves.map((w, i) => `${w.name}: ${takes(w, i === waves.length - 1)}${w.soak_s ? `, watched ${span(w.soak_s * 1000)}` : ''}`).join('; ') || 'one of all'],
    ['Must end well', share(s.gate?.success, 95)], ['May end badly', `${share(s.gate?.bad, 5)}${s.gate?.bad_cap ? `, ${s.gate.bad_cap} at most` : ''}`],
    ['Judged from', many(s.gate?.min_sample || 20, 'end')], ['A site is held at', share(s.gate?.site_bad, 2, ' bad ends')], ['Faults at most', share(s.gate?.health, 3, ' times the others\'')],
    ['Lanes of a site at once', s.per_site ? String(s.per_site) : 'no limit'], ['Devices at once', String(s.in_flight || 500)],
    ['Offered', s.rate?.base ? `${s.rate.base} a minute${s.rate.factor && s.rate.every ? `, ${s.rate.factor} times more each ${s.rate.every} that end well` : ''}${s.rate.max ? `, up to ${s.rate.max}` : ''}` : 'without a limit'],
    ['May fetch', s.download || 'in the hours of each site'], ['May touch the till', s.install || 'in the hours of each site'],
    ['One attempt may take', span((s.deadline_s || 7 * 86400) * 1000)], ['Attempts', String(s.attempts || 3)], ['Not waited for after silence of', span((s.unreachable_s || 86400) * 1000)],
    ['After the end', s.joiners ? 'devices that come late get it, too' : 'nobody gets it any more'], ...(s.repair ? [['Quarantined devices', 'are offered it, too'] as [string, string]] : []),
  ];
  return <dl class="facts">{facts.map(([k, v]) => <div key={k}><dt>{k}</dt><dd>{v}</dd></div>)}</dl>;
}

const all = { state: '', wave: '', model: '', site: '' };

function Executions({ r, own, moved }: { r: Rollout; own: (c: Change) => boolean; moved: () => void }) {
  const [filter, setFilter] = useState(all);
  const set = (part: Partial<typeof all>) => setFilter({ ...filter, ...part });
  const query = new URLSearchParams(Object.entries(filter).filter(([, v]) => v));
  const rows = useRows<Execution>(`/v1/rollouts/${id(r.id)}/executions?${query}`, own, 100, 1000);
  const devices = useLive<List<Device>>('/v1/devices?limit=1000', (c) => c.kind === 'device', 30_000);
  const names = new Map(devices.data?.items.map((d) => [d.id, d.label || d.serial]));
  const of = (f: (e: Execution) => string, value: string) => [...new Set([value, ...rows.items.map(f)])].filter(Boolean).sort();
  const pick = (name: string, key: keyof typeof all, from: [string, string][]) => (
    <label>{name} <select value={filter[key]} onChange={(e) => set({ [key]: e.currentTarget.value })}><option value="">any</option>{from.map(([v, text]) => <option value={v} key={v}>{text}</option>)}</select></label>
  );
  return (
    <Card title="Devices">
      <div class="row filters" role="search">
        {pick('State', 'state', executionStates.map((s) => [s, `${words(s)}${r.counts[s] ? ` (${r.counts[s]})` : ''}`]))}
        {pick('Wave', 'wave', [...r.waves.map((w, i): [string, string] => [String(i), w.name]), ['-1', 'none yet']])}
        {pick('Model', 'model', of((e) => e.model, filter.model).map((m) => [m, m]))}
        {pick('Site', 'site', of((e) => e.site, filter.site).map((s) => [s, s]))}
        {query.size > 0 && <button type="button" class="quiet" onClick={() => setFilter(all)}>Clear</button>}
      </div>
      <Listed rows={rows} empty={query.size > 0
        ? <Empty title="No device matches."><button type="button" onClick={() => setFilter(all)}>Show all devices</button></Empty>
        : <Empty title="It reaches no device yet.">A device that fits while it runs is taken in.</Empty>}>
        <Table label="Devices" head={['Device', 'Wave', 'State', 'Version', 'Fetched', 'Detail', 'Changed']}>
          {rows.items.map((e) => <Row e={e} r={r} name={names.get(e.device)} moved={() => { rows.reload(); moved(); }} key={e.id} />)}
        </Table>
      </Listed>
    </Card>
  );
}

function Row({ e, r, name, moved }: { e: Execution; r: Rollout; name: string | undefined; moved: () => void }) {
  const { busy, error, act } = useAct();
  const again = operator.value && (e.state === 'FAILED' || e.state === 'TIMED_OUT') && (r.state === 'RUNNING' || r.state === 'PAUSED');
  const retry = async () => { if (await act(() => post(`/v1/rollouts/${id(r.id)}/retry`, { device: e.device, reason: '' }), '')) moved(); };
  return (
    <tr data-testid="execution-row" data-state={e.state} data-device={e.device}>
      <td class="name"><a href={`/device/${id(e.device)}`}>{name || e.device}</a><small class="text">{[e.model, e.site].filter(Boolean).join(', ') || e.device}</small></td>
      <td data-label="Wave">{r.waves[e.wave]?.name ?? '–'}</td>
      <td data-label="State"><State e={e} /></td>
      <td data-label="Version" class="ver">{e.from || '–'} → {e.to || '–'}</td>
      <td data-label="Fetched"><Fetched e={e} /></td>
      <td data-label="Detail" class="detail"><Detail e={e} />{again && <div><button type="button" disabled={busy} onClick={() => void retry()}>Retry</button></div>}{error && <span class="ink bad">{error}</span>}</td>
      <td data-label="Changed"><When at={e.updated_at} /></td>
    </tr>
  );
}
