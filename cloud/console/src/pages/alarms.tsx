import { useEffect, useState } from 'preact/hooks';
import { type AuditEvent, type Device, id, type List } from '../api';
import { alarms, concern, look, seen } from '../alarms';
import { sentence } from '../format';
import { useLive, useRows } from '../live';
import { Badge, Empty, Listed, Page, Table, When } from '../parts/ui';
import { type Group, grouped, why } from '../trust';

export function Alarms() {
  const rows = useRows<AuditEvent>(alarms, concern, 100, 10_000);
  const devices = useLive<List<Device>>('/v1/devices?limit=1000', (c) => c.kind === 'device', 30_000);
  const [before] = useState(() => seen.peek()); // what is new stays marked while one reads
  const newest = rows.items[0]?.seq ?? 0;
  useEffect(() => { if (newest) look(newest); }, [newest]);
  const known = new Map(devices.data?.items.map((d) => [d.id, d]));
  return (
    <Page title="Alarms" lead="What somebody should look at, newest first, by whom it is about. All of it stands in the audit trail, too.">
      <Listed rows={rows} empty={<Empty title="No alarm was raised.">A copied identity, a revoked device that goes on trying, a weaker identity than enrolled, a broken trail: they show here, and the number stands in the navigation.</Empty>}>
        <ul class="cases">{grouped(rows.items).map((g) => <About g={g} d={known.get(g.subject)} before={before} key={g.subject} />)}</ul>
      </Listed>
    </Page>
  );
}

function About({ g, d, before }: { g: Group; d: Device | undefined; before: number }) {
  const fresh = g.events.filter((e) => e.seq > before).length;
  const device = d !== undefined || /^[a-z2-7]{24}$/.test(g.subject);
  return (
    <li class="card" data-testid="alarm-group" data-subject={g.subject}>
      <div class="head">
        <div>
          <h2>{device ? <a href={`/device/${id(g.subject)}`}>{d?.label || d?.serial || g.subject}</a> : g.subject.startsWith('ro_') ? <a href={`/rollouts/${id(g.subject)}`}>Rollout {g.subject}</a> : g.subject || 'The service'}</h2>
          <p class="dim">{g.events.length} {g.events.length === 1 ? 'alarm' : 'alarms'}{fresh > 0 && `, ${fresh} new`}; last <When at={g.events[0]?.at ?? null} /></p>
        </div>
        {d && <span class="badges"><span class="dim">now</span><Badge state={d.trust} /></span>}
      </div>
      <ul class="alarms">
        {g.kinds.map((k) => (
          <li key={k.alarm.title + k.last.seq}>
            <p><Badge state="alarm" text={k.alarm.title} />{k.n > 1 && ` ${k.n} times`} <span class="dim"><When at={k.last.at} /></span></p>
            {why(k.last) && <p>{sentence(why(k.last))}</p>}
            <p class="todo">{k.alarm.todo}</p>
          </li>
        ))}
      </ul>
      <details><summary>Entries of the trail</summary>
        <Table label="Entries" head={['No.', 'When', 'What', 'By', 'Detail']}>
          {g.events.map((e) => (
            <tr key={e.seq}>
              <td data-label="No." class="num">{e.seq}</td><td data-label="When"><When at={e.at} /></td><td data-label="What">{e.kind}</td><td data-label="By">{e.actor}</td>
              <td data-label="Detail" class="detail">{Object.entries(e.detail ?? {}).filter(([, v]) => v).map(([k, v]) => <span key={k}><span class="dim">{k}</span> {v}</span>)}</td>
            </tr>
          ))}
        </Table>
      </details>
    </li>
  );
}
