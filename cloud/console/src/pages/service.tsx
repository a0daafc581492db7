// The service itself: how its parts are, what they answer, and how fast.
import { useMemo, useState } from 'preact/hooks';
import { type Figure, type Figures, get, type PartFigures, type PartHealth } from '../api';
import { answers, columns, faulty, healthName, ofAll, partName, perSecond, rate, share, slowest, tick, timed, took } from '../figures';
import { bytes, count, many, sentence } from '../format';
import { useEvery } from '../live';
import { type Line, Lines } from '../parts/lines';
import { Badge, Card, Empty, Fault, Loading, Page, Table, When } from '../parts/ui';

const minute = 60e3;
const ranges = { '15 min': 15 * minute, '1 h': 60 * minute, '6 h': 360 * minute, '24 h': 1440 * minute, '7 d': 7 * 1440 * minute, '30 d': 30 * 1440 * minute, '13 mo': 396 * 1440 * minute };
type Range = keyof typeof ranges;

export function Service() {
  return (
    <Page title="Service" lead="How the fleet service itself is: what its parts answer, and how fast.">
      <Health />
      <Charts />
    </Page>
  );
}

const rank: Record<string, number> = { failing: 0, degraded: 1, ok: 2 };

/** Every part, what needs a look first. */
function Health() {
  const { data, error, reload } = useEvery<{ state: string; parts: PartHealth[] }>('health', () => get('/v1/health'), 5000);
  const parts = (data?.parts ?? []).map((p, i) => ({ p, i })).sort((a, b) => rank[a.p.state]! - rank[b.p.state]! || a.i - b.i).map(({ p }) => p);
  const sick = parts.filter((p) => p.state !== 'ok').length;
  return (
    <Card title="Health" note={data && (sick === 0 ? 'Every part is well.' : `${many(sick, 'part')} of ${parts.length} need${sick === 1 ? 's' : ''} a look.`)}>
      <Fault text={error} retry={reload} />
      {!data && !error && <Loading />}
      <ul class="health" aria-label="Parts of the service">
        {parts.map((p) => (
          <li key={p.part} data-testid="health" data-part={p.part} data-state={p.state}>
            <div class="head"><h3>{healthName(p.part)}</h3><Badge state={p.state} as={p.state === 'failing' ? 'bad' : p.state === 'degraded' ? 'warn' : 'good'} text={p.state === 'ok' ? 'well' : p.state} /></div>
            <p>{sentence(p.what)}</p>
            {p.todo && <p class="todo">{sentence(p.todo)}</p>}
            {p.state !== 'ok' && <small>since <When at={p.since} /></small>}
          </li>
        ))}
      </ul>
    </Card>
  );
}

function Charts() {
  const [range, setRange] = useState<Range>('1 h');
  const [pick, setPick] = useState('api');
  const { data, error, reload } = useEvery<Figures>(range, () => get(`/v1/figures?from=${encodeURIComponent(new Date(Date.now() - ranges[range]).toISOString())}`), ranges[range] > 60 * minute ? 60_000 : 5000);
  const part = data?.parts.find((p) => p.part === pick) ?? data?.parts[0];
  const ops = (data?.ops ?? []).filter((o) => o.part === part?.part);
  return (
    <>
      <Card title="Answers and response times" note="Counted at the door of each part. Failed is what was the service's own fault; refused is what was asked wrongly." aside={
        <fieldset class="choice many"><legend class="hidden">Time</legend>
          {(Object.keys(ranges) as Range[]).map((k) => <label key={k}><input type="radio" name="range" value={k} checked={range === k} onChange={() => setRange(k)} data-testid={`range-${k.replace(' ', '')}`} /><span>{k}</span></label>)}
        </fieldset>
      }>
        <Fault text={error} retry={reload} />
        {!data && !error && <Loading />}
        {data && !part && <Empty title="Nothing was answered in this time.">Choose a longer one.</Empty>}
        {data && part && (
          <>
            <div class="row">
              <label class="wide">Part <select value={part.part} data-testid="part" onChange={(e) => setPick(e.currentTarget.value)}>
                {data.parts.map((p) => <option key={p.part} value={p.part}>{partName(p.part)}</option>)}
              </select></label>
              <p class="last"><strong>{count(answers(part.total))}</strong> <span class="dim">in all, {rate(answers(part.total) / part.total.span_s)} a second</span></p>
            </div>
            <Curves key={`${part.part} ${range}`} part={part} data={data} />
          </>
        )}
      </Card>
      {data && data.parts.length > 0 && (
        <div class="service">
          <Card title="Parts">
            <Table label="Parts" head={['Part', 'Answers', 'A second', 'Failed', 'Half within', '95 % within', '99 % within', 'Bytes']}>
              {data.parts.map((p) => (
                <tr key={p.part} data-testid="part-row" data-part={p.part} aria-current={p === part ? 'true' : undefined}>
                  <td class="name"><button type="button" onClick={() => setPick(p.part)}>{partName(p.part)}</button></td>
                  <Cells f={p.total} />
                </tr>
              ))}
            </Table>
          </Card>
        </div>
      )}
      {data && part && (
        <Card title="Slowest" note={`What ${partName(part.part)} took longest for: by what 95 of a hundred took at most.`}>
          {slowest(ops).length === 0 ? <Empty title="Nothing here has a time of its own." /> : (
            <Table label="Slowest" head={['What', 'Answers', 'A second', 'Failed', 'Half within', '95 % within', '99 % within', 'Bytes']}>
              {slowest(ops).map((o) => <tr key={o.op} data-testid="slow-row"><td class="name"><code>{o.op}</code></td><Cells f={o.total} /></tr>)}
            </Table>
          )}
        </Card>
      )}
    </>
  );
}

function Cells({ f }: { f: Figure }) {
  return (
    <>
      <td data-label="Answers" class="num">{count(answers(f))}</td>
      <td data-label="A second" class="num">{rate(answers(f) / f.span_s)}</td>
      <td data-label="Failed" class="num"><span class={f.failed > 0 ? 'ink bad' : undefined}>{share(faulty(f))}</span>{f.refused > 0 && <small>{count(f.refused)} refused</small>}</td>
      <td data-label="Half within" class="num">{took(f.p50_ms)}</td>
      <td data-label="95 % within" class="num">{took(f.p95_ms)}</td>
      <td data-label="99 % within" class="num">{took(f.p99_ms)}</td>
      <td data-label="Bytes" class="num">{f.bytes > 0 ? bytes(f.bytes) : '–'}</td>
    </>
  );
}

const rates: Line[] = [{ name: 'all', ink: '--brand' }, { name: 'refused', ink: '--warn', dash: [6, 4] }, { name: 'failed', ink: '--bad', dash: [2, 3] }];
const shares: Line[] = [{ name: 'failed', ink: '--bad' }, { name: 'refused', ink: '--warn', dash: [6, 4] }];
const spans: Line[] = [{ name: 'half', ink: '--brand' }, { name: '95 %', ink: '--busy', dash: [6, 4] }, { name: '99 %', ink: '--warn', dash: [2, 3] }];

/** Rates and response times of one part. */
function Curves({ part, data }: { part: PartFigures; data: Figures }) {
  const points = part.points ?? [];
  const [rated, faults, timing] = useMemo(() => [
    columns(points, perSecond(answers), perSecond((f) => f.refused), perSecond((f) => f.failed)),
    columns(points, ofAll((f) => f.failed), ofAll((f) => f.refused)),
    columns(points, timed((f) => f.p50_ms), timed((f) => f.p95_ms), timed((f) => f.p99_ms)),
  ], [points]);
  const to = Date.parse(data.to) / 1000;
  // A service younger than the time asked for starts where it starts.
  const first = Math.min(Date.parse(points[0]?.at ?? data.to) / 1000, to - 60);
  const asked = Date.parse(data.from) / 1000;
  const from = first - asked > (to - asked) / 10 ? first : asked;
  const name = partName(part.part);
  return (
    <div class="pair">
      <div><h3>Answers a second</h3><Lines testid="rate-chart" label={`${name}, answers a second`} lines={rates} data={rated} from={from} to={to} say={rate} /></div>
      <div><h3>Error rate</h3><Lines testid="fault-chart" label={`${name}, error rate`} lines={shares} data={faults} from={from} to={to} say={share} /></div>
      {part.total.p50_ms > 0 && <div><h3>Response time</h3><Lines testid="time-chart" label={`${name}, response time`} lines={spans} data={timing} from={from} to={to} say={took} tick={tick} /></div>}
    </div>
  );
}
