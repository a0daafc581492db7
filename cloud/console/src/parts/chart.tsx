// One series over time, drawn by uPlot.
import { useEffect, useRef, useState } from 'preact/hooks';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import { get, id, type List, type Series } from '../api';
import { gaps, marks, measure, seriesName } from '../format';
import { useLive } from '../live';
import { Empty, Fault, Loading, When } from './ui';

const spans = { '1 h': 3600e3, '24 h': 24 * 3600e3, '7 d': 7 * 24 * 3600e3 };
type Span = keyof typeof spans;

export function Charts({ device }: { device: string }) {
  const list = useLive<List<Series>>(`/v1/devices/${id(device)}/series`, (c) => c.kind === 'device' && c.id === device, 10_000);
  const [pick, setPick] = useState('');
  const [range, setRange] = useState<Span>('1 h');
  const items = list.data?.items ?? [];
  const key = (s: Series) => `${s.peripheral}/${s.name}`;
  const chosen = items.find((s) => key(s) === pick) ?? items.find((s) => s.name === 'memory_free_bytes') ?? items[0];
  if (list.error) return <Fault text={list.error} retry={list.reload} />;
  if (!list.data) return <Loading />;
  if (!chosen) return <Empty title="No measurements yet.">They arrive within a minute of the first connection, and catch up after time offline.</Empty>;
  const owners = [...new Set(items.map((s) => s.peripheral))].sort();
  return (
    <>
      <div class="row">
        <label class="wide">Series <select value={key(chosen)} onChange={(e) => setPick(e.currentTarget.value)}>
          {owners.map((o) => (
            <optgroup label={o || 'The box itself'} key={o}>
              {items.filter((s) => s.peripheral === o).map((s) => <option key={key(s)} value={key(s)}>{seriesName(s.name)}</option>)}
            </optgroup>
          ))}
        </select></label>
        <fieldset class="choice"><legend>Time</legend>
          {(Object.keys(spans) as Span[]).map((k) => <label key={k}><input type="radio" name="span" value={k} checked={range === k} onChange={() => setRange(k)} /><span>{k}</span></label>)}
        </fieldset>
        <p class="last"><span class="dim">Last value</span> <strong>{measure(chosen.name, chosen.last)}</strong> <span class="dim"><When at={chosen.at} /></span></p>
      </div>
      <Plot device={device} series={chosen} range={range} />
    </>
  );
}

function Plot({ device, series, range }: { device: string; series: Series; range: Span }) {
  const box = useRef<HTMLDivElement>(null);
  const [error, setError] = useState('');
  const [count, setCount] = useState<number>();
  const [scheme, setScheme] = useState(0);
  const span = spans[range];
  useEffect(() => {
    const dark = matchMedia('(prefers-color-scheme: dark)');
    const turn = () => setScheme((n) => n + 1);
    dark.addEventListener('change', turn);
    return () => dark.removeEventListener('change', turn);
  }, []);
  useEffect(() => {
    let gone = false;
    let plot: uPlot | undefined;
    const ink = getComputedStyle(document.documentElement);
    const colour = (name: string) => ink.getPropertyValue(name).trim();
    const window_ = { from: 0, to: 0 };
    const draw = async () => {
      const to = new Date();
      const from = new Date(to.getTime() - span);
      const q = new URLSearchParams({ peripheral: series.peripheral, name: series.name, from: from.toISOString(), to: to.toISOString(), limit: '500' });
      try {
        const { points } = await get<{ points: [number, number][] }>(`/v1/devices/${id(device)}/points?${q}`);
        if (gone || !box.current) return;
        // A series younger than the time asked for starts where it starts.
        const first = points[0]?.[0] ?? from.getTime();
        const start = first - from.getTime() > span / 10 ? Math.min(first, to.getTime() - 60e3) : from.getTime();
        Object.assign(window_, { from: start / 1000, to: to.getTime() / 1000 });
        setCount(points.length);
        setError('');
        const data = gaps(points, span / 100) as uPlot.AlignedData;
        if (plot) { plot.setData(data); return; }
        const axis = { stroke: colour('--dim'), grid: { stroke: colour('--line'), width: 1 }, ticks: { show: false }, font: '12px system-ui, sans-serif' };
        plot = new uPlot({
          width: box.current.clientWidth, height: 240, padding: [12, 24, 0, 0],
          cursor: { points: { size: 7 }, drag: { x: false, y: false } }, legend: { live: true },
          scales: { x: { range: () => [window_.from, window_.to] } },
          series: [
            { label: 'Time', value: (_, v) => (v === null ? '–' : new Date(v * 1000).toLocaleString()) },
            { label: seriesName(series.name), stroke: colour('--brand'), fill: colour('--wash'), width: 2, points: { size: 5 }, value: (_, v) => (v === null ? '–' : `${measure(series.name, v)} (${v.toLocaleString()})`) },
          ],
          axes: [{ ...axis, space: 70, values: times }, { ...axis, size: 80, values: (_, ticks) => marks(series.name, ticks) }],
        }, data, box.current);
      } catch (e) {
        if (!gone) setError((e as Error).message);
      }
    };
    void draw();
    const again = setInterval(() => void draw(), span > 3600e3 ? 60_000 : 10_000);
    const fit = new ResizeObserver(() => { if (box.current) plot?.setSize({ width: box.current.clientWidth, height: 240 }); });
    if (box.current) fit.observe(box.current);
    return () => { gone = true; clearInterval(again); fit.disconnect(); plot?.destroy(); };
  }, [device, series.peripheral, series.name, span, scheme]);
  return (
    <>
      <Fault text={error} />
      {count === 0 && <p class="dim">Nothing was measured in this time. Choose a longer one.</p>}
      <div ref={box} class="plot" data-testid="chart" role="img" aria-label={`${seriesName(series.name)} over ${range}, ${count ?? 0} values, the last is ${measure(series.name, series.last)}`} />
    </>
  );
}

/** The words at the time axis: with seconds, the clock alone, or the date; the same word stands once. */
export function times(u: uPlot, ticks: number[]): string[] {
  const shown = (u.scales.x?.max ?? 0) - (u.scales.x?.min ?? 0);
  const style: Intl.DateTimeFormatOptions = shown > 2 * 86400
    ? { month: 'short', day: 'numeric' }
    : { hour: '2-digit', minute: '2-digit', hourCycle: 'h23', ...(shown < 600 && { second: '2-digit' }) };
  const said = ticks.map((t) => new Date(t * 1000).toLocaleString(undefined, style));
  return said.map((s, i) => (s === said[i - 1] ? '' : s));
}
