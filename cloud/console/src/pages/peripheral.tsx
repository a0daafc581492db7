import { useState } from 'preact/hooks';
import { id, type PeripheralDetail, post, type Span } from '../api';
import { clock, many, percent, reason, sensor, span, words } from '../format';
import { now, useLive } from '../live';
import { category, Finding, Readings } from '../parts/peripheral';
import { Badge, Card, Empty, Fault, Health, Loading, Operators, Outcome, Page, Table, useAct, When } from '../parts/ui';
import { parts, stepsText } from '../peripheral';

const windows = { '24h': 'a day', '7d': 'a week', '30d': '30 days' } as const;

export function PeripheralPage({ device, peripheral }: { device: string; peripheral: string }) {
  const [window, setWindow] = useState<keyof typeof windows>('24h');
  const path = `/v1/devices/${id(device)}/peripherals/${id(peripheral)}`;
  const { data: p, error, reload } = useLive<PeripheralDetail>(`${path}?window=${window}`, (c) => c.id === device);
  if (!p) return <Page title={peripheral} up={[`/device/${id(device)}`, 'Till']}>{error ? <Fault text={error} retry={reload} /> : <Loading />}</Page>;
  const model = [p.maker, p.model].filter(Boolean).join(' ');
  return (
    <Page title={p.id} up={[`/device/${id(device)}`, p.device_label || device]} lead={[category(p.category), model, p.site].filter(Boolean).join(' · ')}
      aside={<span class="badges">{p.simulated && <span class="badge outline" title="No hardware behind it">simulated</span>}<Health health={p.health} /></span>}>
      <Fault text={error} retry={reload} />
      <Card title="Now" note={p.health === 'OK' && p.since ? `Well for ${span(now.value - Date.parse(p.since))}.` : undefined}>
        <Finding p={p} />
        <Readings p={p} wide />
        {Object.keys(p.sensors ?? {}).length === 0 && <p class="dim">It has no sensors that anybody could ask.</p>}
      </Card>
      <Card title="How long it was how" aside={<label>Of the last <select data-testid="window" value={window} onChange={(e) => setWindow(e.currentTarget.value as keyof typeof windows)}>{Object.entries(windows).map(([k, v]) => <option key={k} value={k}>{v}</option>)}</select></label>}>
        <Durations p={p} />
      </Card>
      <div class="pair">
        <Card title="One after the other" note="The newest first."><Spans spans={p.spans} /></Card>
        <Card title="Health checks" note="Asked for, or daily by the till itself."><Checks p={p} path={path} device={device} reload={reload} /></Card>
      </div>
      <Card title="What it is" aside={<a href={`${path}/statistics.xml`} download={`${p.id}-UPOSStat.xml`} data-testid="xml">UnifiedPOS statistics (XML)</a>}><Equipment p={p} /></Card>
    </Page>
  );
}

function Durations({ p }: { p: PeripheralDetail }) {
  const all = parts(p.durations);
  if (all.length === 0) return <Empty title="Nothing is known of that time.">A light is noted from the first report on.</Empty>;
  return (
    <>
      <div class="lasting" role="img" aria-label={all.map((a) => `${words(a.health)} ${percent(a.share, 1)}`).join(', ')} data-testid="durations">
        {all.map((a) => <i class={a.health} style={{ flexGrow: a.share }} title={`${words(a.health)} ${percent(a.share, 1)}`} key={a.health} />)}
      </div>
      <Table label="Durations" head={['Light', 'Share', 'Altogether', 'Times', 'Because of']}>
        {all.map((a) => (
          <tr key={a.health}>
            <td><Health health={a.health} /></td><td data-label="Share" class="num">{percent(a.share, 1)}</td><td data-label="Altogether" class="num">{span(a.seconds * 1000)}</td><td data-label="Times" class="num">{a.times}</td>
            <td data-label="Because of">{a.reasons.slice(0, 4).map((r) => `${reason(r.reason)}, ${span(r.seconds * 1000)} in ${many(r.times, 'time')}`).join('; ') || '–'}</td>
          </tr>
        ))}
      </Table>
    </>
  );
}

function Spans({ spans }: { spans: Span[] }) {
  if (spans.length === 0) return <Empty title="Nothing has changed yet." />;
  return (
    <Table label="Spans" head={['Light', 'From', 'For']}>
      {spans.slice(0, 20).map((s) => (
        <tr key={`${s.from}${s.health}${s.reason}`} data-testid="span">
          <td><Health health={s.health} />{s.reason && s.health !== 'OK' && <small>{reason(s.reason)}</small>}</td>
          <td data-label="From"><time dateTime={s.from ?? ''}>{clock(s.from)}</time></td>
          <td data-label="For" class="num">{s.from ? span((s.to ? Date.parse(s.to) : now.value) - Date.parse(s.from)) : '–'}{!s.to && <small>so far</small>}</td>
        </tr>
      ))}
    </Table>
  );
}

/** Asks the till to look, and shows what came of it before. */
function Checks({ p, path, device, reload }: { p: PeripheralDetail; path: string; device: string; reload: () => void }) {
  const act = useAct();
  const ask = (level: string, done: string) => void act.act(async () => {
    await post('/v1/commands', { device, verb: 'check-health', args: { peripheral: p.id, level }, reason: `health check of ${p.id} from the console` });
    reload();
  }, done);
  const can = p.driver !== 'none' && !p.gone_at;
  return (
    <>
      {can && (
        <Operators what="a health check">
          <div class="row acts">
            <button type="button" data-testid="check-now" disabled={act.busy} onClick={() => ask('internal', 'Asked. The answer shows here in a moment; nothing moves at the till.')}>Check now</button>
            {p.category === 'POSPrinter' && p.claim === 'own' && <button type="button" disabled={act.busy} onClick={() => ask('external', 'Asked for a test page.')}>Print a test page</button>}
          </div>
        </Operators>
      )}
      <Outcome done={act.done} error={act.error} />
      {p.checks.length === 0 ? <Empty title="Not checked yet." /> : (
        <Table label={`Health checks of ${path}`} head={['When', 'Level', 'Outcome']}>
          {p.checks.slice(0, 10).map((c) => (
            <tr key={`${c.at}${c.level}`} data-testid="check-row" data-ok={c.ok}>
              <td data-label="When"><When at={c.at} /></td><td data-label="Level">{c.level}</td>
              <td data-label="Outcome"><Badge state={c.ok ? 'OK' : 'Fault'} text={c.ok ? 'well' : 'not well'} />
                <small>{stepsText(c)}</small></td>
            </tr>
          ))}
        </Table>
      )}
    </>
  );
}

/** CapRecNearEndSensor -> paper near end. */
const ability = (cap: string) => (cap === 'CapRecPapercut' ? 'paper cut' : sensor(cap.replace(/^(M_)?Cap/, '')).toLowerCase());

const claims: Record<string, string> = {
  observe: 'watched from outside; the till owns it', share: 'shared with the till', own: 'held by the agent, which prints for the till',
};

function Equipment({ p }: { p: PeripheralDetail }) {
  const rows: [string, string][] = [
    ['Maker', p.maker], ['Model', p.model], ['Serial number', p.serial], ['Firmware', p.firmware], ['Driver', p.driver === 'none' ? 'none: it is there, and nobody watches it' : p.driver],
    ['Interface', p.interface], ['Where', p.key], ['How it is held', claims[p.claim] ?? p.claim], ['Can tell', (p.caps ?? []).map(ability).join(', ')],
  ];
  return <dl class="equipment">{rows.filter(([, v]) => v).map(([k, v]) => <div key={k}><dt>{k}</dt><dd>{v}</dd></div>)}</dl>;
}
