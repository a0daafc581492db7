// The board of a rollout: its waves side by side, and what they are held to.
import { useState } from 'preact/hooks';
import { type Execution, type Hold, id, post, type Rollout, type Wave } from '../api';
import { bytes, count, many, percent, sentence, span } from '../format';
import { now } from '../live';
import { compared, gate, limits, partNames, pieces, reasons, soaking, sources, told, wait } from '../rollout';
import { operator } from '../session';
import { Bar, Progress } from './progress';
import { Reasoned } from './standing';
import { Badge, Card, Empty, Outcome, Table, useAct, When } from './ui';

export function Board({ r, waiting }: { r: Rollout; waiting: Execution[] }) {
  const why = reasons(waiting);
  return <ol class="board" aria-label="Waves">{r.waves.map((w, i) => <Column r={r} w={w} i={i} why={why.get(i) ?? []} key={w.name} />)}</ol>;
}

function Column({ r, w, i, why }: { r: Rollout; w: Wave; i: number; why: { reason: string; n: number }[] }) {
  const left = soaking(w, now.value);
  const { pieces: all, total } = pieces(w.counts, w.neutral);
  const own = gate(r.spec.waves?.[i]?.gate, r.spec.gate);
  return (
    <li class={`inset ${w.state}`} data-testid="wave" data-state={w.state}>
      <div class="head"><h3>{w.name}</h3><Badge state={w.state} /></div>
      <p class="dim">{total > 0 ? many(total, 'device') : 'Nobody yet'}{w.started_at && <>, {w.ended_at ? <>ended <When at={w.ended_at} /></> : <>since <When at={w.started_at} /></>}</>}</p>
      {total > 0 && <figure class="bar"><Bar parts={all.map((p) => ({ class: p.part, n: p.n }))} label={told(all)} /></figure>}
      {total > 0 && (
        <dl class="tally">
          {all.map((p) => (
            <div key={p.part} class={p.part}>
              <dt><i class={p.part} aria-hidden="true" />{partNames[p.part]}{p.part === 'wait' && why.length > 0 && <small>{why.map((x) => `${count(x.n)} for ${wait(x.reason)}`).join(', ')}</small>}{['busy', 'void', 'bad'].includes(p.part) && <small>{p.text}</small>}</dt>
              <dd>{count(p.n)}</dd>
            </div>
          ))}
          {w.unreachable > 0 && <div><dt>Unreachable<small>silent for long; no wave waits for them</small></dt><dd>{count(w.unreachable)}</dd></div>}
        </dl>
      )}
      {left !== undefined && (
        <div class="soak" data-testid="soak">
          <p><strong>{left > 0 ? `Watched for ${span(left)} more` : 'The watch is over'}</strong></p>
          <progress value={w.soak_s * 1000 - left} max={w.soak_s * 1000} aria-label={`Watch of wave ${w.name}`} />
        </div>
      )}
      {left === undefined && w.soak_s > 0 && w.state !== 'PASSED' && <p class="dim">Then watched for {span(w.soak_s * 1000)}.</p>}
      <ul class="limits" aria-label={`Gate of wave ${w.name}`}>
        {limits(own, w.good, w.bad).map((l) => <li key={l.text} class={`ink ${l.tone}`}>{l.text}</li>)}
      </ul>
    </li>
  );
}

/** The whole in numbers, with where its bytes came from. */
export function Whole({ r }: { r: Rollout }) {
  const { total } = pieces(r.counts);
  const b = r.bytes && sources(r.bytes);
  const g = gate(undefined, r.spec.gate);
  const stops = [
    g.bad >= 0 && `more than ${g.bad} % of the ended, ${g.min_sample} at least, ended badly`, g.bad_cap > 0 && `more than ${g.bad_cap} ended badly`,
    g.health >= 0 && `updated devices have ${g.health} times the faults of the others`,
  ].filter(Boolean);
  return (
    <Card title="Progress" note={<>{many(total, 'device')}{r.unreachable > 0 && `, ${count(r.unreachable)} of them unreachable`}. {stops.length > 0 ? `Stops by itself when ${stops.join(', or ')}.` : 'Nothing stops it by itself.'}</>}
      aside={r.eta && <p class="eta dim">About <strong title={new Date(r.eta).toLocaleString()}>{span(Date.parse(r.eta) - now.value)}</strong> left</p>}>
      <Progress counts={r.counts} neutral={r.neutral} legend />
      {b && b.total > 0 && (
        <figure class="bar" data-testid="bytes">
          <figcaption><strong>{percent(b.saved, b.total)} of the bytes saved</strong>: {bytes(b.saved)} of {bytes(b.total)} did not come from the service.</figcaption>
          <Bar parts={b.all.map((s) => ({ class: s.tone, n: s.n }))} label={b.all.map((s) => `${bytes(s.n)} ${s.name}`).join(', ')} />
          <figcaption class="legend">{b.all.map((s) => <span key={s.name}><i class={s.tone} /><strong>{bytes(s.n)}</strong> {s.name}</span>)}</figcaption>
        </figure>
      )}
    </Card>
  );
}

/** What is kept out while the others go on. */
export function Holds({ r, moved }: { r: Rollout; moved: () => void }) {
  const [open, setOpen] = useState<Hold>();
  const { busy, error, done, act } = useAct();
  const held = r.holds.filter((h) => !h.released_at);
  if (held.length === 0 && !done) return null;
  const name = (h: Hold) => (h.model ? `model ${h.model}` : `site ${h.site}`);
  const release = async (h: Hold, reason: string) => {
    if (await act(() => post(`/v1/rollouts/${id(r.id)}/holds/release`, { ...(h.model ? { model: h.model } : { site: h.site }), reason }), `Let in again: ${name(h)}.`)) { setOpen(undefined); moved(); }
  };
  return (
    <Card title="Held" note="Kept out because it does badly alone; the others go on.">
      {held.map((h) => (
        <div class="finding Fault" key={name(h)} data-testid="hold">
          <div class="head">
            <p><strong>{sentence(name(h)).replace(/\.$/, '')}</strong>: {h.reason}, held <When at={h.since} /></p>
            {operator.value && <button type="button" aria-expanded={open === h} onClick={() => setOpen(open === h ? undefined : h)}>Release…</button>}
          </div>
        </div>
      ))}
      {open && (
        <Reasoned verb="Release the hold" busy={busy} close={() => setOpen(undefined)} send={(reason) => void release(open, reason)}>
          Lets {name(open)} in again. What ended before is not judged again; do it when you know why it went wrong.
        </Reasoned>
      )}
      <Outcome done={done} error={error} />
    </Card>
  );
}

const kinds = ['Peripherals', 'Connection', 'Crashes'];

/** How updated devices are, against those that are not yet. */
export function HealthCard({ r }: { r: Rollout }) {
  const h = r.health;
  if (!h) return null;
  const g = gate(undefined, r.spec.gate);
  const models = Object.entries(h.models ?? {}).filter(([, m]) => m.updated.devices > 0);
  const hours = (f: { devices: number; hours: number }) => `${many(f.devices, 'device')}, ${count(Math.round(f.hours))} h`;
  return (
    <Card title="Health" note={`Since it began, by count and in a thousand device-hours.${g.health >= 0 ? ` Stops at ${g.health} times the others' faults.` : ''}`}>
      {h.updated.devices === 0
        ? <Empty title="No device runs it yet.">Printers, readers, drawers, connections and crashes of updated devices are held here against those that are not yet.</Empty>
        : (
          <Table label="Health" head={['Fault', `Updated (${hours(h.updated)})`, `Not yet (${hours(h.control)})`, 'Against the others']}>
            {compared(h, g).map((c) => (
              <tr key={c.what}><td class="name"><strong>{c.what}</strong></td><td data-label="Updated">{c.updated}</td><td data-label="Not yet">{c.control}</td><td data-label="Against"><Badge state="" as={c.tone} text={c.note} /></td></tr>
            ))}
          </Table>
        )}
      {models.length > 1 && (
        <details><summary>By model</summary>
          <Table label="Health by model" head={['Model', ...kinds]}>
            {models.map(([name, m]) => <tr key={name}><td class="name"><strong>{name}</strong><small class="text">{hours(m.updated)}</small></td>{compared(m, g).map((c, i) => <td data-label={kinds[i]} key={c.what}><Badge state="" as={c.tone} text={`${c.updated}, others ${c.control}`} /></td>)}</tr>)}
          </Table>
        </details>
      )}
    </Card>
  );
}
