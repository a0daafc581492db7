import type { Peripheral } from '../api';
import { reading, reason, sensor, span, words } from '../format';
import { now } from '../live';
import { Health } from './ui';

const categories: Record<string, string> = {
  POSPrinter: 'Receipt printer', SmartCardRW: 'Card reader', Scanner: 'Scanner', CashDrawer: 'Cash drawer', LineDisplay: 'Customer display', Scale: 'Scale', PINPad: 'PIN pad',
};

/** A printer, reader, ... : how it is, for how long, and what to do about it. */
export function PeripheralCard({ p, online }: { p: Peripheral; online: boolean }) {
  const model = [p.maker, p.model].filter(Boolean).join(' ');
  const sensors = Object.entries(p.sensors ?? {}).sort(([a], [b]) => a.localeCompare(b));
  return (
    <li data-testid="peripheral" data-id={p.id} data-health={p.health} class="peripheral">
      <div class="head">
        <div><h3>{p.id}</h3><p class="dim">{categories[p.category] ?? p.category}{model && ` · ${model}`}</p></div>
        <span class="badges">{p.simulated && <span class="badge outline" title="No hardware behind it">simulated</span>}<Health health={p.health} online={online} /></span>
      </div>
      {p.reason && p.health !== 'OK' && (
        <div class={`finding ${p.health}`}>
          <strong>{reason(p.reason)}</strong>{p.since && <span> for {span(now.value - Date.parse(p.since))}</span>}
          {p.advice && <p>{p.advice}</p>}
        </div>
      )}
      {sensors.length > 0 && (
        <dl class="sensors">
          {sensors.map(([k, v]) => { const r = reading(k, v); return <div key={k}><dt>{sensor(k)}</dt><dd class={r.tone}>{r.text}</dd></div>; })}
        </dl>
      )}
      <p class="foot">Power {words(p.power.replace(/^PS_/, '')) || 'unknown'} · driver {p.driver}{p.firmware && ` · firmware ${p.firmware}`}{p.serial && ` · serial ${p.serial}`}
        {online && p.health === 'OK' && p.since && ` · well for ${span(now.value - Date.parse(p.since))}`}</p>
    </li>
  );
}
