// Some lines over one time axis, drawn by uPlot.
import { useEffect, useRef, useState } from 'preact/hooks';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import { times } from './chart';

/** A line: its name, the colour variable of the style it is drawn in, and its dashes, by which it is told apart without colour. */
export interface Line { name: string; ink: string; dash?: number[] }

export function Lines({ label, lines, data, from, to, say, tick, testid }: {
  label: string; lines: Line[]; data: (number | null)[][]; from: number; to: number; say: (n: number) => string; tick?: (n: number) => string; testid?: string;
}) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>();
  const range = useRef({ from, to });
  const shown = useRef(data);
  const [scheme, setScheme] = useState(0);
  range.current = { from, to };
  shown.current = data;
  useEffect(() => {
    const dark = matchMedia('(prefers-color-scheme: dark)');
    const turn = () => setScheme((n) => n + 1);
    dark.addEventListener('change', turn);
    return () => dark.removeEventListener('change', turn);
  }, []);
  const names = lines.map((l) => l.name).join();
  useEffect(() => {
    if (!box.current) return undefined;
    const ink = getComputedStyle(document.documentElement);
    const colour = (name: string) => ink.getPropertyValue(name).trim();
    const axis = { stroke: colour('--dim'), grid: { stroke: colour('--line'), width: 1 }, ticks: { show: false }, font: '12px system-ui, sans-serif' };
    const made = new uPlot({
      width: box.current.clientWidth, height: 200, padding: [12, 24, 0, 0],
      cursor: { points: { size: 7 }, drag: { x: false, y: false } }, legend: { live: true },
      scales: { x: { range: () => [range.current.from, range.current.to] }, y: { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] } },
      series: [
        { label: 'Time', value: (_, v) => (v === null ? '–' : new Date(v * 1000).toLocaleString()) },
        ...lines.map((l): uPlot.Series => ({ label: l.name, stroke: colour(l.ink), width: 2, dash: l.dash, points: { size: 4 }, value: (_, v) => (v === null ? '–' : say(v)) })),
      ],
      axes: [{ ...axis, space: 70, values: times }, { ...axis, size: 70, values: (_, ticks) => ticks.map(tick ?? say) }],
    }, shown.current as uPlot.AlignedData, box.current);
    plot.current = made;
    const fit = new ResizeObserver(() => { if (box.current) made.setSize({ width: box.current.clientWidth, height: 200 }); });
    fit.observe(box.current);
    return () => { fit.disconnect(); made.destroy(); plot.current = undefined; };
  }, [names, scheme]);
  useEffect(() => { plot.current?.setData(data as uPlot.AlignedData); }, [data]);
  const last = lines.map((l, i) => {
    const v = (data[i + 1] ?? []).filter((n) => n !== null).at(-1);
    return v === undefined || v === null ? '' : `${l.name} ${say(v)}`;
  }).filter((s) => s !== '').join(', ');
  return <div ref={box} class="plot low" data-testid={testid} role="img" aria-label={`${label}, the last: ${last || 'nothing yet'}`} />;
}
