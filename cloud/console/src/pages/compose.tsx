import { useEffect, useRef, useState } from 'preact/hooks';
import { type Device, id, type List, post, type Preview, put, type Release, type Rollout, type Site } from '../api';
import { count, sentence } from '../format';
import { useLive } from '../live';
import { Devices, Known, Num, SpanField } from '../parts/fields';
import { Bar } from '../parts/progress';
import { Card, Empty, Fault, Loading, Operators, Page, useAct } from '../parts/ui';
import { type Fleet, Gate, Waves } from '../parts/waves';
import { fresh, type Plan, planOf, specOf, unnamed } from '../plan';
import { blockedBy } from '../rollout';
import { go } from '../router';

/** A rollout composed from nothing, from a release, from a draft that is changed, or like one that was. */
export function Compose({ release, draft, like }: { release?: string; draft?: string; like?: string }) {
  const from = draft ?? like;
  const [plan, setPlan] = useState<Plan | undefined>(from ? undefined : fresh(release ?? ''));
  const source = useLive<Rollout | undefined>(from ? `/v1/rollouts/${id(from)}` : '/v1/session', () => false);
  const r = from ? source.data : undefined;
  useEffect(() => { if (r) setPlan(planOf(draft ? r.release : '', r.spec)); }, [r]);
  return (
    <Page title={draft ? 'Change a draft' : 'New rollout'} up={draft ? [`/rollouts/${draft}`, 'Rollout'] : ['/rollouts', 'Rollouts']}
      lead="Everything on one page; what is not touched has a sensible value. The dry run says what it would do now, and changes nothing.">
      {from && <Fault text={source.error} retry={source.reload} />}
      <Operators what="composing a rollout">{plan ? <Form plan={plan} set={setPlan} draft={draft} seen={r?.version} /> : !source.error && <Loading />}</Operators>
    </Page>
  );
}

function Form({ plan, set, draft, seen }: { plan: Plan; set: (p: Plan) => void; draft: string | undefined; seen: number | undefined }) {
  const releases = useLive<List<Release>>('/v1/releases?limit=1000', (c) => c.kind === 'release');
  const devices = useLive<List<Device>>('/v1/devices?limit=1000', (c) => c.kind === 'device', 30_000);
  const sites = useLive<List<Site>>('/v1/sites', () => false);
  const of = (f: (d: Device) => string) => [...new Set(devices.data?.items.map(f))].filter(Boolean).sort();
  const fleet: Fleet = { groups: of((d) => d.group), models: of((d) => d.model), sites: (sites.data?.items ?? []).map((s) => s.name) };
  const usable = (releases.data?.items ?? []).filter((r) => !r.withdrawn);
  const release = plan.release || usable[0]?.id || '';
  const body = { release, spec: specOf(plan) };
  const nobody = unnamed(plan);
  const dry = usePreview(release && !nobody ? JSON.stringify(body) : '');
  const up = <K extends keyof Plan>(k: K) => (v: Plan[K]) => set({ ...plan, [k]: v });
  if (releases.error) return <Fault text={releases.error} retry={releases.reload} />;
  if (!releases.data) return <Loading />;
  if (usable.length === 0) return <Empty title="There is no release yet.">Sign one with <code>tillward-provision release add</code>, then upload it with <code>tillward release publish</code>.</Empty>;
  const chosen = usable.find((r) => r.id === release);
  return (
    <form class="compose" onSubmit={(e) => e.preventDefault()}>
      <div class="parts">
        <Card title="Release" note={chosen && <About r={chosen} />}>
          <label class="wide">Release <select value={release} data-testid="compose-release" onChange={(e) => up('release')(e.currentTarget.value)}>{usable.map((r) => <option key={r.id}>{r.id}</option>)}</select></label>
        </Card>
        <Card title="To whom" note="What is left empty picks everybody.">
          <div class="row">
            <Known label="Group" value={plan.group} set={up('group')} all={fleet.groups} empty="every group" />
            <Known label="Model" value={plan.model} set={up('model')} all={fleet.models} empty="every model" />
            <Known label="Site" value={plan.site} set={up('site')} all={fleet.sites} empty="every site" />
          </div>
          <details open={plan.devices.length > 0}><summary>Only some devices by name</summary><Devices label="Only these devices" value={plan.devices} set={up('devices')} /></details>
          <div class="checks">
            <label class="check"><input type="checkbox" checked={plan.joiners} onChange={(e) => up('joiners')(e.currentTarget.checked)} /> Also bring it to devices that come back or join after the end</label>
            <label class="check"><input type="checkbox" checked={plan.repair} onChange={(e) => up('repair')(e.currentTarget.checked)} /> Offer it to quarantined devices, too</label>
          </div>
        </Card>
        <Card title="Waves" note="One after the other. A share counts all that the rollout reaches, earlier waves included; the next wave begins when the gate is passed and the watch is over.">
          <Waves waves={plan.waves} set={up('waves')} fleet={fleet} preview={dry.data} />
        </Card>
        <Card title="Gates" note="When a wave may pass, and when it all stops by itself. Who cannot be reached counts in neither share; a model or a site that does badly alone is held, and the others go on.">
          <Gate g={plan.gate} set={up('gate')} />
        </Card>
        <Card title="Pace" note="How many at once, so that a store goes on selling and the line is not full.">
          <div class="row">
            <Num label="Lanes of a site at once" value={plan.perSite} set={up('perSite')} empty="no limit" />
            <Num label="Devices at once" value={plan.inFlight} set={up('inFlight')} empty="500" />
            <Num label="Offered a minute" value={plan.base} set={up('base')} empty="no limit" step="any" />
            {plan.base !== '' && <>
              <Num label="Times more" value={plan.factor} set={up('factor')} empty="1" min={1} step="any" />
              <Num label="each time as many ended well" value={plan.every} set={up('every')} empty="never" />
              <Num label="up to, a minute" value={plan.max} set={up('max')} empty="no limit" step="any" />
            </>}
            <Num label="Download of one device" value={plan.rateKiB} set={up('rateKiB')} unit="KiB/s" empty="default" />
          </div>
        </Card>
        <Card title="Hours" note="By the clock of each site. Empty: the site's own hours, or any time.">
          <div class="row">
            <label class="wide">May fetch <input value={plan.download} maxLength={512} placeholder="e.g. 20:00-06:00" onInput={(e) => up('download')(e.currentTarget.value)} /></label>
            <label class="wide">May touch the till <input value={plan.install} maxLength={512} placeholder="e.g. mon-fri 22:00-05:00, sun 00:00-24:00" onInput={(e) => up('install')(e.currentTarget.value)} /></label>
          </div>
          <details><summary>How long to try</summary>
            <div class="row">
              <SpanField label="One attempt may take" value={plan.deadline} set={up('deadline')} empty="7" />
              <Num label="Attempts of a device" value={plan.attempts} set={up('attempts')} empty="3" />
              <SpanField label="Silent, it is not waited for after" value={plan.unreachable} set={up('unreachable')} empty="24" />
            </div>
          </details>
        </Card>
      </div>
      <Side dry={dry} body={body} draft={draft} seen={seen} lacks={nobody ? `Wave ${nobody.name} names nobody yet. Say whom it takes, or let it take a share of all.` : ''} />
    </form>
  );
}

function About({ r }: { r: Release }) {
  const needs = Object.entries(r.requires);
  return <>For {r.models.length > 0 ? r.models.join(', ') : 'every model'}{needs.length > 0 && <>; takes {needs.map(([c, v]) => `${c} ${v}`).join(', ')} or newer</>}. Devices that run it already are left alone.</>;
}

interface Dry { data: Preview | undefined; error: string; busy: boolean }

/** What the service says it would do, asked when the typing pauses. */
function usePreview(body: string): Dry {
  const [s, set] = useState<Dry>({ data: undefined, error: '', busy: true });
  useEffect(() => {
    let gone = false;
    set((v) => ({ data: body ? v.data : undefined, error: '', busy: true }));
    if (!body) return;
    const timer = setTimeout(() => {
      post<Preview>('/v1/rollouts/preview', JSON.parse(body) as unknown).then(
        (data) => { if (!gone) set({ data, error: '', busy: false }); },
        (e: Error) => { if (!gone) set({ data: undefined, error: e.message, busy: false }); },
      );
    }, 400);
    return () => { gone = true; clearTimeout(timer); };
  }, [body]);
  return s;
}

/** The dry run, and what may be done with the plan. */
function Side({ dry, body, draft, seen, lacks }: { dry: Dry; body: { release: string; spec: unknown }; draft: string | undefined; seen: number | undefined; lacks: string }) {
  const version = useRef(seen);
  const { busy, error, act } = useAct();
  const off = busy || dry.busy || dry.error !== '' || lacks !== ''; // the dry run follows a moment later
  const open = async (f: () => Promise<Rollout>) => {
    let to = '';
    if (await act(async () => { to = (await f()).id; }, '')) go(`/rollouts/${to}`);
  };
  const move = (r: Rollout, verb: string) => post<Rollout>(`/v1/rollouts/${id(r.id)}/${verb}`, { version: r.version });
  const keep = async () => {
    const r = await (draft ? put<Rollout>(`/v1/rollouts/${id(draft)}`, { ...body, version: version.current }) : post<Rollout>('/v1/rollouts', { ...body, draft: true }));
    version.current = r.version;
    return r;
  };
  const submit = async () => move(await keep(), 'submit');
  // Where nobody else has to approve a draft it is ready as soon as it is handed in.
  const start = async () => {
    if (!draft) return post<Rollout>('/v1/rollouts', body);
    const r = await submit();
    return r.state === 'READY' ? move(r, 'start') : r;
  };
  return (
    <aside class="card side" aria-label="Dry run" data-testid="dry-run" data-busy={dry.busy}>
      <h2>Dry run</h2>
      <div aria-live="polite" aria-busy={dry.busy && !lacks}>
        {dry.error && <p class="finding Fault">{sentence(dry.error)}</p>}
        {lacks && <p class="finding Attention" data-testid="dry-lacks">{lacks}</p>}
        {!lacks && !dry.data && !dry.error && <p class="dim">Asking the service…</p>}
        {dry.data && <Said p={dry.data} />}
      </div>
      <div class="row acts">
        <button type="button" class="main" data-testid="compose-start" disabled={off} onClick={() => void open(start)}>Start rollout</button>
        <button type="button" data-testid="compose-submit" disabled={off} onClick={() => void open(submit)}>Submit</button>
        <button type="button" data-testid="compose-save" disabled={off} onClick={() => void open(keep)}>Save draft</button>
      </div>
      <p class="dim">Submitted, it waits until somebody starts it. Where the service asks for a second person, both wait until somebody else approves it.</p>
      <Fault text={error} />
    </aside>
  );
}

function Said({ p }: { p: Preview }) {
  const blocked = p.blocked.reduce((sum, b) => sum + b.devices, 0);
  const most = Math.max(...p.waves.map((w) => w.devices), 1);
  return (
    <>
      <p data-testid="dry-text"><strong>{sentence(p.text)}</strong></p>
      {p.reaches === 0 && <p class="finding Attention">Nobody is reached. Loosen what is picked above.</p>}
      <ul class="dry" aria-label="Devices of each wave">
        {p.waves.map((w) => <li key={w.name}><span>{w.name}</span><span class="bar"><Bar parts={[{ class: 'busy', n: w.devices }, { class: 'none', n: most - w.devices }]} label={`${w.devices} devices`} /></span><strong>{count(w.devices)}</strong></li>)}
      </ul>
      {blocked > 0 && (
        <ul class="blocked" aria-label="Who waits, and for what">
          {p.blocked.map((b) => <li key={b.reason}><strong>{count(b.devices)}</strong> {blockedBy(b.reason)}<small>{b.text}</small></li>)}
        </ul>
      )}
    </>
  );
}
