// The editor of the waves of a rollout.
import type { Preview } from '../api';
import { many } from '../format';
import { type GateText, ids, moved, type Pick, type PlanWave, wave, ways, whom } from '../plan';
import { Devices, Known, Num, SpanField } from './fields';

const picks: Record<Exclude<Pick, 'several'>, string> = { any: 'of all', devices: 'these devices', group: 'a group', model: 'a model', site: 'a site' };

/** What is known of the fleet, to choose from. */
export interface Fleet { groups: string[]; models: string[]; sites: string[] }

export function Waves({ waves, set, fleet, preview }: { waves: PlanWave[]; set: (w: PlanWave[]) => void; fleet: Fleet; preview: Preview | undefined }) {
  const change = (key: number, p: Partial<PlanWave>) => set(waves.map((w) => (w.key === key ? { ...w, ...p } : w)));
  const add = () => {
    const names = new Set(waves.map((w) => w.name));
    let n = waves.length;
    while (names.has(`wave ${n}`)) n++;
    set([...waves.slice(0, -1), wave(`wave ${n}`, '50', { n: '12', unit: 'h' }), ...waves.slice(-1)]);
  };
  return (
    <>
      <div class="row acts"><span class="dim">Begin with</span>{Object.entries(ways).map(([k, v]) => <button type="button" key={k} title={v.note} data-testid={`way-${k}`} onClick={() => set(v.waves())}>{v.text}</button>)}</div>
      <ol class="cases waves">
        {waves.map((w, i) => (
          <li class="inset" key={w.key} data-testid="wave-edit">
            <div class="head">
              <h3>Wave {i + 1}{preview?.waves.length === waves.length && <span class="dim"> takes {many(preview.waves[i]!.devices, 'device')} now</span>}</h3>
              <span class="row acts">
                <button type="button" class="quiet" disabled={i === 0} aria-label={`Move wave ${w.name} up`} onClick={() => set(moved(waves, i, -1))}>↑</button>
                <button type="button" class="quiet" disabled={i === waves.length - 1} aria-label={`Move wave ${w.name} down`} onClick={() => set(moved(waves, i, 1))}>↓</button>
                <button type="button" class="quiet" disabled={waves.length === 1} aria-label={`Remove wave ${w.name}`} onClick={() => set(waves.filter((x) => x.key !== w.key))}>Remove</button>
              </span>
            </div>
            <One w={w} last={i === waves.length - 1} fleet={fleet} set={(p) => change(w.key, p)} />
          </li>
        ))}
      </ol>
      <div><button type="button" onClick={add}>Add a wave</button></div>
    </>
  );
}

function One({ w, last, fleet, set }: { w: PlanWave; last: boolean; fleet: Fleet; set: (p: Partial<PlanWave>) => void }) {
  const own = Object.values(w.gate).some((v) => v !== '');
  return (
    <>
      <div class="row">
        <label>Name <input value={w.name} required maxLength={64} onInput={(e) => set({ name: e.currentTarget.value })} /></label>
        {last
          ? <p class="fixed">Takes whoever is left.</p>
          : <>
            <Num label="Share" value={w.percent} set={(percent) => set({ percent })} unit="%" empty="all" max={100} step="any" />
            {w.pick === 'several'
              ? <p class="fixed">of {whom(w.several)} <button type="button" class="quiet" onClick={() => set({ pick: 'any', several: {} })}>choose anew</button></p>
              : <label>Of whom <select value={w.pick} onChange={(e) => set({ pick: e.currentTarget.value as Pick, value: '', ...(e.currentTarget.value !== 'any' && { percent: '' }) })}>{Object.entries(picks).map(([k, v]) => <option value={k} key={k}>{v}</option>)}</select></label>}
            {w.pick === 'group' && <Known label="Group" value={w.value} set={(value) => set({ value })} all={fleet.groups} empty="which" />}
            {w.pick === 'model' && <Known label="Model" value={w.value} set={(value) => set({ value })} all={fleet.models} empty="which" />}
            {w.pick === 'site' && <Known label="Site" value={w.value} set={(value) => set({ value })} all={fleet.sites} empty="which" />}
          </>}
        <SpanField label="Then watch it for" value={w.soak} set={(soak) => set({ soak })} empty="none" />
      </div>
      {w.pick === 'devices' && !last && <Devices label="Which devices" value={ids(w.value)} set={(v) => set({ value: v.join(' ') })} />}
      <details open={own}>
        <summary>A gate of its own</summary>
        <Gate g={w.gate} set={(gate) => set({ gate })} own />
        <p class="dim">Empty: as for the whole rollout. −1: not judged.</p>
      </details>
    </>
  );
}

/** When it stops by itself. */
export function Gate({ g, set, own }: { g: GateText; set: (g: GateText) => void; own?: boolean }) {
  const empty = own ? 'same' : 'not judged';
  const f = (k: keyof GateText) => ({ value: g[k], set: (v: string) => set({ ...g, [k]: v }), min: own ? -1 : 0, step: 'any' as const, empty });
  return (
    <div class="row gate">
      <Num label="Must end well" {...f('success')} unit="%" max={100} />
      <Num label="May end badly" {...f('bad')} unit="%" max={100} />
      <Num label="Judged from" {...f('sample')} min={0} step={1} unit="ends on" empty={own ? 'same' : '20'} />
      <Num label="Bad ends at most" {...f('cap')} min={0} step={1} empty={own ? 'same' : 'no limit'} />
      <Num label="Hold a site at" {...f('site')} step={1} unit="bad ends" />
      <Num label="Faults at most" {...f('health')} unit="times the others'" />
    </div>
  );
}
