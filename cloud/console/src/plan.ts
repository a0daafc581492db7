// How a rollout is composed: the form as it is typed, and the plan that the
// service takes. A field left empty means what the form says beside it.
import type { Filter, Gate, Spec, WaveSpec } from './api';

export type Unit = 's' | 'min' | 'h' | 'd';
export const units: Record<Unit, number> = { s: 1, min: 60, h: 3600, d: 86400 };
export interface Span { n: string; unit: Unit }

/** Seconds as a number and the largest unit that leaves no rest. */
export function spanOf(s: number | undefined): Span {
  if (!s) return { n: '', unit: 'h' };
  const unit = (['d', 'h', 'min', 's'] as const).find((u) => s % units[u] === 0)!;
  return { n: String(s / units[unit]), unit };
}
export const secondsOf = (v: Span): number => Math.round(num(v.n) * units[v.unit]);

/** What a wave takes of those that are left. */
export type Pick = 'any' | 'devices' | 'group' | 'model' | 'site' | 'several';
export interface GateText { success: string; bad: string; sample: string; cap: string; site: string; health: string }
export interface PlanWave { key: number; name: string; pick: Pick; value: string; several: Filter; percent: string; soak: Span; gate: GateText }
export interface Plan {
  release: string; group: string; model: string; site: string; devices: string[]; waves: PlanWave[]; gate: GateText;
  base: string; factor: string; every: string; max: string; perSite: string; inFlight: string; rateKiB: string; attempts: string;
  deadline: Span; unreachable: Span; download: string; install: string; joiners: boolean; repair: boolean; steps: Record<string, number> | undefined;
}

const num = (s: string): number => { const n = Number(s.trim()); return Number.isFinite(n) ? n : 0; };
const text = (n: number | undefined): string => (n ? String(n) : '');
/** Device ids as they are typed or pasted, each once. */
export const ids = (s: string): string[] => [...new Set(s.split(/[\s,;]+/).filter(Boolean))];

/** The usual gate, as the form shows it. */
export const usualGate: GateText = { success: '95', bad: '5', sample: '20', cap: '', site: '2', health: '3' };
const noGate: GateText = { success: '', bad: '', sample: '', cap: '', site: '', health: '' };

/** The gate of a rollout: an empty share is not judged. */
function gateOf(g: GateText): Gate {
  const judged = (s: string) => (s.trim() === '' ? -1 : num(s));
  return prune({ success: judged(g.success), bad: judged(g.bad), min_sample: num(g.sample), bad_cap: num(g.cap), site_bad: judged(g.site), health: judged(g.health) });
}
function gateText(g: Gate | undefined): GateText {
  const shown = (n: number | undefined, usual: string) => (!n ? usual : n < 0 ? '' : String(n));
  return {
    success: shown(g?.success, usualGate.success), bad: shown(g?.bad, usualGate.bad), sample: text(g?.min_sample) || usualGate.sample, cap: text(g?.bad_cap),
    site: shown(g?.site_bad, usualGate.site), health: shown(g?.health, usualGate.health),
  };
}
/** The gate of a wave: what is empty is the rollout's. */
const ownGate = (g: GateText): Gate => prune({ success: num(g.success), bad: num(g.bad), min_sample: num(g.sample), bad_cap: num(g.cap), site_bad: num(g.site), health: num(g.health) });
const ownGateText = (g: Gate | undefined): GateText => ({ success: text(g?.success), bad: text(g?.bad), sample: text(g?.min_sample), cap: text(g?.bad_cap), site: text(g?.site_bad), health: text(g?.health) });

/** Leaves away what says nothing. */
function prune<T extends object>(o: T): T {
  return Object.fromEntries(Object.entries(o).filter(([, v]) => v !== 0 && v !== '' && v !== false && v !== undefined && !(typeof v === 'object' && Object.keys(v as object).length === 0))) as T;
}

let keys = 0;
export function wave(name: string, percent = '', soak: Span = { n: '', unit: 'h' }): PlanWave {
  return { key: ++keys, name, pick: 'any', value: '', several: {}, percent, soak, gate: noGate };
}

/** Ready-made ways, the careful one first. */
export const ways: Record<string, { text: string; note: string; waves: () => PlanWave[] }> = {
  careful: { text: 'Careful', note: 'A few canaries for half a day, a fifth for a day, then the rest.', waves: () => [wave('canary', '1', { n: '12', unit: 'h' }), wave('early', '20', { n: '1', unit: 'd' }), wave('rest')] },
  quick: { text: 'Quick', note: 'A tenth for an hour, then the rest.', waves: () => [wave('canary', '10', { n: '1', unit: 'h' }), wave('rest')] },
  once: { text: 'All at once', note: 'One wave of everybody. For a fix that cannot wait.', waves: () => [wave('all')] },
};

export function fresh(release: string): Plan {
  return {
    release, group: '', model: '', site: '', devices: [], waves: ways.careful!.waves(), gate: usualGate, base: '', factor: '', every: '', max: '', perSite: '1', inFlight: '', rateKiB: '', attempts: '',
    deadline: { n: '', unit: 'd' }, unreachable: { n: '', unit: 'h' }, download: '', install: '', joiners: true, repair: false, steps: undefined,
  };
}

function pickOf(f: Filter | undefined): Pick {
  const set = (['devices', 'group', 'model', 'site'] as const).filter((k) => (k === 'devices' ? f?.devices?.length : f?.[k]));
  return set.length === 0 ? 'any' : set.length > 1 ? 'several' : set[0]!;
}

/** A wave as the service takes it; the last takes whoever is left, whatever it picked before it came to be last. */
function waveOf(w: PlanWave, last: boolean): WaveSpec {
  const value = w.value.trim();
  if (last) return prune({ name: w.name.trim(), soak_s: secondsOf(w.soak), gate: ownGate(w.gate) });
  const filter: Filter = w.pick === 'several' ? w.several : w.pick === 'any' || !value ? {} : w.pick === 'devices' ? { devices: ids(value) } : { [w.pick]: value };
  return prune({ name: w.name.trim(), filter, percent: num(w.percent), soak_s: secondsOf(w.soak), gate: ownGate(w.gate) });
}

/** The wave that says whom it takes and names nobody: it would take everybody. */
export const unnamed = (p: Plan): PlanWave | undefined => p.waves.find((w, i) => i < p.waves.length - 1 && w.pick !== 'any' && w.pick !== 'several' && ids(w.value).length === 0);

/** The form as the service takes it. */
export function specOf(p: Plan): Spec {
  return prune<Spec>({
    filter: prune<Filter>({ group: p.group.trim(), model: p.model.trim(), site: p.site.trim(), devices: p.devices }),
    waves: p.waves.map((w, i) => waveOf(w, i === p.waves.length - 1)), gate: gateOf(p.gate), rate: prune({ base: num(p.base), factor: num(p.factor), every: num(p.every), max: num(p.max) }),
    per_site: num(p.perSite), in_flight: num(p.inFlight), rate_kib: num(p.rateKiB), attempts: num(p.attempts), download: p.download.trim(), install: p.install.trim(),
    deadline_s: secondsOf(p.deadline), unreachable_s: secondsOf(p.unreachable), joiners: p.joiners, repair: p.repair, steps_s: p.steps,
  });
}

/** A plan that the service holds, as the form shows it. */
export function planOf(release: string, s: Spec): Plan {
  const f = s.filter ?? {};
  return {
    release, group: f.group ?? '', model: f.model ?? '', site: f.site ?? '', devices: f.devices ?? [],
    waves: (s.waves?.length ? s.waves : [{ name: 'all' } as WaveSpec]).map((w) => {
      const pick = pickOf(w.filter);
      const value = pick === 'any' || pick === 'several' ? '' : pick === 'devices' ? w.filter!.devices!.join(' ') : w.filter![pick]!;
      return { key: ++keys, name: w.name, pick, value, several: pick === 'several' ? w.filter! : {}, percent: text(w.percent), soak: spanOf(w.soak_s), gate: ownGateText(w.gate) };
    }),
    gate: gateText(s.gate), base: text(s.rate?.base), factor: text(s.rate?.factor), every: text(s.rate?.every), max: text(s.rate?.max), perSite: text(s.per_site), inFlight: text(s.in_flight),
    rateKiB: text(s.rate_kib), attempts: text(s.attempts), deadline: spanOf(s.deadline_s), unreachable: spanOf(s.unreachable_s), download: s.download ?? '', install: s.install ?? '',
    joiners: s.joiners ?? false, repair: s.repair ?? false, steps: s.steps_s,
  };
}

/** Moves the wave at i by one up (-1) or down (1). */
export function moved<T>(all: T[], i: number, by: -1 | 1): T[] {
  const out = [...all];
  const [w] = out.splice(i, 1);
  out.splice(i + by, 0, w!);
  return out;
}

/** Whom a wave takes, in words. */
export function takes(w: WaveSpec, last: boolean): string {
  if (last) return 'the rest';
  const picked = whom(w.filter);
  return w.percent ? `${w.percent} %${w.filter ? ` of ${picked}` : ''}` : picked;
}

/** Whom a filter picks, in words. */
export function whom(f: Filter | undefined): string {
  const said = [f?.group && `group ${f.group}`, f?.model && `model ${f.model}`, f?.site && `site ${f.site}`, f?.devices?.length && (f.devices.length === 1 ? 'one device' : `${f.devices.length} devices by name`)].filter(Boolean);
  return said.length === 0 ? 'every device' : said.join(', ');
}
