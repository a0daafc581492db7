import { useState } from 'preact/hooks';
import { type Issuing, type List, post } from '../api';
import { clock, day, expiry } from '../format';
import { now, useLive } from '../live';
import { Reasoned } from '../parts/standing';
import { Admins, Badge, Card, Empty, Fault, Loading, Outcome, Page, Table, useAct } from '../parts/ui';

export function Settings() {
  return (
    <Page title="Settings" lead="What the whole service rests on.">
      <Authority />
    </Page>
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
