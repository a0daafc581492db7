import { useState } from 'preact/hooks';
import { type Device, type FirmwareEvent, id, type List, post, type Reference } from '../api';
import { useLive, useRows } from '../live';
import { Badge, Card, Empty, Fault, Listed, Loading, Outcome, Page, Table, useAct, When } from '../parts/ui';
import { admin } from '../session';
import { decisions, register } from '../trust';

const states = ['open', 'approved', 'rejected'];

export function Firmware() {
  const [model, setModel] = useState('');
  const [state, setState] = useState('open');
  const devices = useLive<List<Device>>('/v1/devices?limit=1000', (c) => c.kind === 'device', 30_000);
  const seen = useLive<List<FirmwareEvent>>('/v1/firmware?limit=1000', (c) => c.kind === 'device', 30_000);
  const models = [...new Set([...(devices.data?.items ?? []), ...(seen.data?.items ?? [])].map((x) => x.model))].filter(Boolean).sort();
  const loading = (!devices.data && !devices.error) || (!seen.data && !seen.error);
  return (
    <Page title="Firmware" lead="What a device starts is measured. An event that no release knows is decided here, once for all devices of the model.">
      <div class="row filters" role="search">
        <label>Model <select value={model} onChange={(e) => setModel(e.currentTarget.value)}><option value="">every model</option>{models.map((m) => <option key={m}>{m}</option>)}</select></label>
        <label>Events <select value={state} data-testid="firmware-state" onChange={(e) => setState(e.currentTarget.value)}>
          {states.map((s) => <option value={s} key={s}>{decisions[s]!.text}</option>)}<option value="">all</option>
        </select></label>
      </div>
      <Fault text={devices.error || seen.error} retry={() => { devices.reload(); seen.reload(); }} />
      {loading && <Loading />}
      {!loading && models.length === 0 && !devices.error && <Empty title="There is no model yet.">When the first device joins, its model shows here with its reference values and what its firmware did that no release knows.</Empty>}
      {models.filter((m) => !model || m === model).map((m) => <Model model={m} state={state} key={m} />)}
    </Page>
  );
}

function Model({ model, state }: { model: string; state: string }) {
  const query = new URLSearchParams({ model, ...(state && { state }) });
  const rows = useRows<FirmwareEvent>(`/v1/firmware?${query}`, (c) => c.kind === 'device' || c.kind === 'audit', 20, 3000);
  const { busy, error, done, act } = useAct(); // an event that was decided leaves the list; what came of it stays
  const decide = (e: FirmwareEvent, decision: 'approved' | 'rejected', reason: string) => act(
    () => post('/v1/firmware/decision', { model, pcr: e.pcr, digest: e.digest, decision, reason }).then(rows.reload),
    decision === 'approved' ? `Approved for every ${model}; its devices are asked for proof again.` : 'Rejected; devices that show it stay in quarantine.',
  );
  return (
    <Card title={model}>
      <Outcome done={done} error={error} />
      <Listed rows={rows} empty={
        state === 'open'
          ? <Empty title="Nothing waits for a decision.">What a device of this model starts and its releases do not know shows here.</Empty>
          : <Empty title={state ? `No event of this model was ${state}.` : 'No device of this model showed anything unknown.'} />}>
        <ul class="cases">{rows.items.map((e) => <Case e={e} busy={busy} decide={(d, why) => void decide(e, d, why)} key={`${e.pcr}${e.digest}`} />)}</ul>
      </Listed>
      <References model={model} />
    </Card>
  );
}

/** One event, and what is decided about it. */
function Case({ e, busy, decide }: { e: FirmwareEvent; busy: boolean; decide: (d: 'approved' | 'rejected', reason: string) => void }) {
  const [reason, setReason] = useState('');
  const off = busy || !reason.trim();
  const say = (d: 'approved' | 'rejected') => decide(d, reason.trim());
  const state = decisions[e.state];
  return (
    <li class="inset" data-testid="firmware-event" data-state={e.state}>
      <div class="head"><h3>{e.what || 'event without a name'}</h3><Badge state={e.state} as={state?.tone} text={state?.text} /></div>
      <dl class="facts">
        <div><dt>Where</dt><dd>{register(e.pcr)}</dd></div>
        <div><dt>Shown by</dt><dd>{e.devices} {e.devices === 1 ? 'device' : 'devices'}{e.first && <>, first by <a href={`/device/${id(e.first)}`}>{e.first}</a></>}</dd></div>
        <div><dt>Since</dt><dd><When at={e.first_at} /></dd></div>
        {e.by && <div><dt>Decided</dt><dd>by {e.by}, <When at={e.at} /></dd></div>}
      </dl>
      <small>SHA-256 <code>{e.digest}</code></small>
      {admin.value ? (
        <form class="row" onSubmit={(ev) => ev.preventDefault()}>
          <label class="wide">Reason <input value={reason} maxLength={512} placeholder="Which update, who says so; kept in the audit trail" onInput={(ev) => setReason(ev.currentTarget.value)} /></label>
          {e.state !== 'approved' && <button type="button" class="main" disabled={off} onClick={() => say('approved')}>Approve for {e.model}</button>}
          {e.state !== 'rejected' && <button type="button" class="danger" disabled={off} onClick={() => say('rejected')}>Reject</button>}
        </form>
      ) : <p class="dim">Deciding takes a token with the role admin.</p>}
    </li>
  );
}

function References({ model }: { model: string }) {
  const { data, error, reload } = useLive<List<Reference>>(`/v1/references?model=${id(model)}`, (c) => c.kind === 'release');
  const list = (n: number[] | null | undefined) => n?.join(', ') || 'none';
  return (
    <>
      <h3>Reference values</h3>
      <Fault text={error} retry={reload} />
      {!data && !error && <Loading />}
      {data?.items.length === 0 && (
        <Empty title="No release says how this model starts.">
          Record a good boot with <code>tillward-provision boot</code>, sign it with the release and publish it. Until then the service's configuration says what an unjudged boot counts for.
        </Empty>
      )}
      {data && data.items.length > 0 && (
        <Table label={`Reference values of ${model}`} head={['Release', 'Ways to start', 'Registers', 'Degrade only', 'Published']}>
          {data.items.map((r) => (
            <tr key={r.release} data-testid="reference-row">
              <td class="name"><strong>{r.release}</strong>{r.body && r.body.floor > 0 && <small>raises the rollback floor to {r.body.floor}</small>}</td>
              <td data-label="Ways to start">{r.body?.chains?.map((c) => `${c.name} (${Object.values(c.registers ?? {}).reduce((n, k) => n + k.length, 0)} events)`).join(', ') || '–'}</td>
              <td data-label="Registers">{list(r.body?.policy)}</td>
              <td data-label="Degrade only">{list(r.body?.soft)}</td>
              <td data-label="Published"><When at={r.published_at} /></td>
            </tr>
          ))}
        </Table>
      )}
    </>
  );
}
