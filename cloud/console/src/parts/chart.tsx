// One series over time, drawn by uPlot.
import { useEffect, useRef, useState } from 'preact/hooks';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import { get, id, type List, Problem, type Series } from '../api';
import { short } from '../format';
import { useLive } from '../live';
import { Empty, Fault } from './ui';

const spans = { '1 h': 3600e3, '24 h': 24 * 3600e3, '7 days': 7 * 24 * 3600e3 };

export function Charts({ device }: { device: string }) {
  const list = useLive<List<Series>>(`/v1/devices/${id(device)}/series`, (c) => c.kind === 'device' && c.id === device, 10_000);
  const [pick, setPick] = useState('');
  const [range, setRange] = useState<keyof typeof spans>('1 h');
  const items = list.data?.items ?? [];
  const key = (s: Series) => `${s.peripheral}\u0000${s.name}`;
  const chosen = items.find((s) => key(s) === pick) ?? items.find((s) => s.name === 'ReceiptLinePrintedCount' || s.name === 'memory_free_bytes') ?? items[0];
  if (list.error) return <Fault text={list.error} retry={list.reload} />;
  if (!chosen) return <Empty>No measurements yet. They arrive within a minute of the first connection.</Empty>;
  return (
    <>
      <div class="row">
        <label>Series <select value={key(chosen)} onChange={(e) => setPick(e.currentTarget.value)}>
          {items.map((s) => <option key={key(s)} value={key(s)}>{s.peripheral ? `${s.peripheral}: ${s.name}` : s.name}</option>)}
        </select></label>
        <label>Span <select value={range} onChange={(e) => setRange(e.currentTarget.value as keyof typeof spans)}>
          {Object.keys(spans).map((k) => <option key={k}>{k}</option>)}
        </select></label>
      </div>
      <Plot device={device} series={chosen} span={spans[range]} />
    </>
  );
}

function Plot({ device, series, span }: { device: string; series: Series; span: number }) {
  const box = useRef<HTMLDivElement>(null);
  const [error, setError] = useState('');
  useEffect(() => {
    let gone = false;
    let plot: uPlot | undefined;
    const ink = getComputedStyle(document.documentElement);
    const draw = async () => {
      const to = new Date();
      const from = new Date(to.getTime() - span);
      const q = new URLSearchParams({ peripheral: series.peripheral, name: series.name, from: from.toISOString(), to: to.toISOString(), limit: '500' });
      try {
        const { points } = await get<{ points: [number, number][] }>(`/v1/devices/${id(device)}/points?${q}`);
        if (gone || !box.current) return;
        const data: uPlot.AlignedData = [points.map((p) => p[0] / 1000), points.map((p) => p[1])];
        if (plot) { plot.setData(data); return; }
        const axis = { stroke: ink.getPropertyValue('--dim'), grid: { stroke: ink.getPropertyValue('--line') } };
        plot = new uPlot({
          width: box.current.clientWidth, height: 220, cursor: { points: { size: 6 } }, legend: { live: true },
          series: [{}, { label: series.name, stroke: ink.getPropertyValue('--brand'), width: 2 }],
          axes: [axis, { ...axis, size: 64, values: (_, ticks) => ticks.map(short) }],
        }, data, box.current);
        setError('');
      } catch (e) {
        if (!gone) setError(e instanceof Problem ? e.message : String(e));
      }
    };
    void draw();
    const again = setInterval(() => void draw(), 10_000);
    const fit = new ResizeObserver(() => { if (box.current) plot?.setSize({ width: box.current.clientWidth, height: 220 }); });
    if (box.current) fit.observe(box.current);
    return () => { gone = true; clearInterval(again); fit.disconnect(); plot?.destroy(); };
  }, [device, series.peripheral, series.name, span]);
  return <><Fault text={error} /><div ref={box} class="plot" data-testid="chart" role="img" aria-label={`${series.name} over time; last value ${series.last}`} /></>;
}
