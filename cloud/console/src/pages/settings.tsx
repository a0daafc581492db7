import { useState } from 'preact/hooks';
import { type Export, id, type Issuing, type List, post } from '../api';
import { clock, count, day, expiry } from '../format';
import { now, useLive } from '../live';
import { Reasoned } from '../parts/standing';
import { Admins, Badge, Card, Empty, Fault, Loading, Outcome, Page, Table, useAct, When } from '../parts/ui';

export function Settings() {
  return (
    <Page title="Settings" lead="What the whole service rests on.">
      <Authority />
      <Exports />
    </Page>
  );
}

/** Whom the audit trails are sent to, and whether they have arrived. */
function Exports() {
  const { data, error, reload } = useLive<List<Export>>('/v1/exports', (c) => c.kind === 'audit', 5000);
  const { busy, error: fault, done, act } = useAct();
  const test = async (name: string) => {
    if (await act(() => post(`/v1/exports/${id(name)}/test`, {}), `A test event has arrived at ${name}.`)) reload();
  };
  return (
    <Card title="Export to the SIEM" note="Every entry of every trail, in order, until its receiver has it. One that stands still holds nobody up.">
      <Fault text={error} retry={reload} />
      {!data && !error && <Loading />}
      {data?.items.length === 0 && <Empty title="The trails are sent nowhere.">One <code>[[export]]</code> in the service's file for each receiver: syslog over TLS, a webhook or a file. <code>tillward export list</code> shows the same.</Empty>}
      {data && data.items.length > 0 && (
        <Table label="Exports" head={['Name', 'To', 'State', 'Waiting', 'Sent', 'Test']}>
          {data.items.map((e) => (
            <tr key={e.name} data-testid="export-row" data-state={e.state}>
              <td class="name"><strong>{e.name}</strong><small>{e.kind}, {e.format}</small></td>
              <td data-label="To">{e.to}</td>
              <td data-label="State"><Badge state={e.stalled ? 'stands still' : e.state} as={e.stalled || e.state === 'failing' ? 'bad' : e.state === 'sending' ? 'busy' : 'good'} />{e.failing_since && <small>since <When at={e.failing_since} /></small>}{e.state === 'failing' && e.last_error && <small>{e.last_error}</small>}</td>
              <td data-label="Waiting" class="num">{count(e.lag)}{e.lost > 0 && <small>{count(e.lost)} lost before they were sent</small>}</td>
              <td data-label="Sent" class="num">{count(e.sent)}{e.skipped > 0 && <small>{count(e.skipped)} kept back by its filter</small>}<small><When at={e.moved_at} /></small></td>
              <td><Admins what="a test event"><button type="button" data-testid="export-test" disabled={busy} onClick={() => void test(e.name)}>Send a test event<span class="hidden"> to {e.name}</span></button></Admins></td>
            </tr>
          ))}
        </Table>
      )}
      <Outcome done={done} error={fault} />
    </Card>
  );
}

/** Who signs device certificates. */
function Authority() {
  const { data, error, reload } = useLive<List<Issuing>>('/v1/authority', (c) => c.kind === 'audit', 5000);
  const [open, setOpen] = useState(''); // 'rotate', or the serial number to retire
  const { busy, error: fault, done, act } = useAct();
  const rotate = async (reason: string) => {
    if (await act(() => post('/v1/authority/rotate', { reason }), 'New certificates are signed with the new one from now on.')) { setOpen(''); reload(); }
  };
  const retire = async (serial: string, reason: string) => {
    if (await act(() => post('/v1/authority/retire', { serial, reason }), 'What it signed counts no more.')) { setOpen(''); reload(); }
  };
  return (
    <Card title="Certificate authority" note="Issuing certificates sign for devices, the root signs only them. An old one stays believed until the last certificate that it signed has ended.">
      <Fault text={error} retry={reload} />
      {!data && !error && <Loading />}
      {data?.items.length === 0 && <Empty title="There is no issuing certificate.">The service makes one at its first start, or is given one with <code>tillward-provision ca sign</code>. Its log says why there is none.</Empty>}
      {data && data.items.length > 0 && (
        <Table label="Issuing certificates" head={['Serial', 'Use', 'Valid since', 'Ends']}>
          {data.items.map((c) => {
            const end = expiry(c.not_after, now.value);
            return (
              <tr key={c.serial} data-testid="issuing-row" data-current={c.current}>
                <td class="name"><code>{c.serial}</code></td>
                <td data-label="Use"><Badge state="" as={c.current ? 'good' : 'dim'} text={c.current ? 'signs new certificates' : 'believed only'} /></td>
                <td data-label="Valid since">{day(c.not_before)}</td>
                <td data-label="Ends"><span title={clock(c.not_after)}>{day(c.not_after)}</span> <span class={`ink ${end.tone}`}>({end.text})</span></td>
              </tr>
            );
          })}
        </Table>
      )}
      <Admins what="rotating the authority">
        <div class="row acts">
          <button type="button" aria-expanded={open === 'rotate'} data-testid="rotate-open" onClick={() => setOpen(open === 'rotate' ? '' : 'rotate')}>Rotate…</button>
          {data?.items.filter((c) => !c.current).map((c) => (
            <button type="button" key={c.serial} aria-expanded={open === c.serial} data-testid="retire-open" onClick={() => setOpen(open === c.serial ? '' : c.serial)}>Retire {c.serial.slice(0, 8)}…</button>
          ))}
        </div>
        {open !== '' && open !== 'rotate' && (
          <Reasoned verb="Retire" busy={busy} close={() => setOpen('')} send={(reason) => void retire(open, reason)}>
            For a stolen key. Nothing that {open.slice(0, 8)}… signed counts from then on: devices that have not renewed since the rotation are cut off and enrol again, proven by their TPM.
          </Reasoned>
        )}
        {open === 'rotate' && (
          <Reasoned verb="Rotate" busy={busy} close={() => setOpen('')} send={(reason) => void rotate(reason)}>
            Makes a new issuing certificate under the same root. No device loses its connection: each renews its own certificate in its own time, and the old issuer is believed meanwhile.
          </Reasoned>
        )}
      </Admins>
      <Outcome done={done} error={fault} />
    </Card>
  );
}
