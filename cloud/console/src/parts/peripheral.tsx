import { id, type Peripheral } from '../api';
import { reading, reason, sensor, span, words } from '../format';
import { now } from '../live';
import { more } from '../peripheral';
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
      {p.last && <p>Before: {words(p.last.health)}{p.last.health !== 'OK' && p.last.reason && ` (${reason(p.last.reason)})`}</p>}
    </div>
  );
}

/** What is left of a roll, and until when. */
function PaperGauge({ p }: { p: Peripheral }) {
  const t = more(p, now.value);
  if (!p.paper || !t) return null;
  const left = p.roll_lines > 0 ? Math.max(0, Math.min(1, p.paper.lines_left / p.roll_lines)) : undefined;
  return (
    <div class={`gauge ${t.tone}`} data-testid="paper">
      {left !== undefined && <progress max={1} value={left} aria-label="Paper left">{Math.round(left * 100)} %</progress>}
      <p><strong>{t.text}</strong>{t.note && <small>{t.note}</small>}</p>
    </div>
  );
}

function ReadRate({ p }: { p: Peripheral }) {
  const t = more(p, now.value);
  return t && <p class={`gauge ${t.tone}`} data-testid="reads"><strong>{t.text}</strong><small>{t.note}</small></p>;
}

/** What its sensors said, what is left of its paper, how well it reads. */
export function Readings({ p, wide }: { p: Peripheral; wide?: boolean }) {
  const sensors = Object.entries(p.sensors ?? {}).sort(([a], [b]) => a.localeCompare(b));
  return (
    <>
      {p.paper ? <PaperGauge p={p} /> : p.reads && <ReadRate p={p} />}
      {sensors.length > 0 && (
        <dl class={wide ? 'sensors wide' : 'sensors'}>
          {sensors.map(([k, v]) => { const r = reading(k, v, p.last !== null); return <div key={k}><dt>{sensor(k)}</dt><dd class={r.tone}>{r.text}</dd></div>; })}
        </dl>
      )}
    </>
  );
}

/** A printer, reader, ... : how it is, for how long, and what to do about it. */
export function PeripheralCard({ p, online, device }: { p: Peripheral; online: boolean; device: string }) {
  const model = [p.maker, p.model].filter(Boolean).join(' ');
  return (
    <li data-testid="peripheral" data-id={p.id} data-health={p.health} class="peripheral">
      <div class="head">
        <div><h3><a href={`/device/${id(device)}/${id(p.id)}`}>{p.id}</a></h3><p class="dim">{category(p.category)}{model && ` · ${model}`}</p></div>
        <span class="badges">{p.simulated && <span class="badge outline" title="No hardware behind it">simulated</span>}<Health health={p.health} online={online} /></span>
      </div>
      <Finding p={p} />
      <Readings p={p} />
      <p class="foot">Power {p.last ? 'was ' : ''}{words(p.power.replace(/^PS_/, '')) || 'unknown'} · {p.driver === 'none' ? 'no driver' : `driver ${p.driver}`}{p.interface && ` · ${p.interface}`}{p.claim && ` · ${p.claim}`}{p.firmware && ` · firmware ${p.firmware}`}{p.serial && ` · serial ${p.serial}`}
        {online && p.health === 'OK' && p.since && ` · well for ${span(now.value - Date.parse(p.since))}`}</p>
    </li>
  );
}
