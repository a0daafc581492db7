import { id, type Paper, type Peripheral, type Reads } from '../api';
import { reading, reason, sensor, span, words } from '../format';
import { now } from '../live';
import { paperText, readsText } from '../peripheral';
import { Health } from './ui';

export const categories: Record<string, string> = {
  POSPrinter: 'Receipt printer', SmartCardRW: 'Card reader', Scanner: 'Scanner', CashDrawer: 'Cash drawer', LineDisplay: 'Customer display', M_Host: 'The box itself',
  M_TamperSwitch: 'Tamper switch', M_DoorSwitch: 'Door switch', M_Environment: 'Climate and supply', M_Other: 'Something else', Scale: 'Scale', PINPad: 'PIN pad',
};
export const category = (c: string) => categories[c] ?? words(c);

/** How a reason is told: what it is, for how long, and what to do. */
export function Finding({ p }: { p: Peripheral }) {
  if (!p.reason || p.health === 'OK') return null;
  return (
    <div class={`finding ${p.health}`}>
      <strong>{reason(p.reason)}</strong>{p.since && <span> for {span(now.value - Date.parse(p.since))}</span>}
      {p.advice && <p>{p.advice}</p>}
    </div>
  );
}

/** What is left of a roll, and until when. */
export function PaperGauge({ paper, roll }: { paper: Paper; roll: number }) {
  const t = paperText(paper, now.value);
  const left = roll > 0 ? Math.max(0, Math.min(1, paper.lines_left / roll)) : undefined;
  return (
    <div class={`gauge ${t.tone}`} data-testid="paper">
      {left !== undefined && <progress max={1} value={left} aria-label="Paper left">{Math.round(left * 100)} %</progress>}
      <p><strong>{t.text}</strong>{t.note && <small>{t.note}</small>}</p>
    </div>
  );
}

export function ReadRate({ reads }: { reads: Reads }) {
  const t = readsText(reads);
  return <p class={`gauge ${t.tone}`} data-testid="reads"><strong>{t.text}</strong><small>{t.note}</small></p>;
}

/** A printer, reader, ... : how it is, for how long, and what to do about it. */
export function PeripheralCard({ p, online, device }: { p: Peripheral; online: boolean; device: string }) {
  const model = [p.maker, p.model].filter(Boolean).join(' ');
  const sensors = Object.entries(p.sensors ?? {}).sort(([a], [b]) => a.localeCompare(b));
  return (
    <li data-testid="peripheral" data-id={p.id} data-health={p.health} class="peripheral">
      <div class="head">
        <div><h3><a href={`/device/${id(device)}/${id(p.id)}`}>{p.id}</a></h3><p class="dim">{category(p.category)}{model && ` · ${model}`}</p></div>
        <span class="badges">{p.simulated && <span class="badge outline" title="No hardware behind it">simulated</span>}<Health health={p.health} online={online} /></span>
      </div>
      <Finding p={p} />
      {p.paper && <PaperGauge paper={p.paper} roll={p.roll_lines} />}
      {p.reads && <ReadRate reads={p.reads} />}
      {sensors.length > 0 && (
        <dl class="sensors">
          {sensors.map(([k, v]) => { const r = reading(k, v); return <div key={k}><dt>{sensor(k)}</dt><dd class={r.tone}>{r.text}</dd></div>; })}
        </dl>
      )}
      <p class="foot">Power {words(p.power.replace(/^PS_/, '')) || 'unknown'} · {p.driver === 'none' ? 'no driver' : `driver ${p.driver}`}{p.interface && ` · ${p.interface}`}{p.claim && ` · ${p.claim}`}{p.firmware && ` · firmware ${p.firmware}`}{p.serial && ` · serial ${p.serial}`}
        {online && p.health === 'OK' && p.since && ` · well for ${span(now.value - Date.parse(p.since))}`}</p>
    </li>
  );
}
