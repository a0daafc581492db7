// Whose the device is, and how it comes to its next owner.
import { useState } from 'preact/hooks';
import { type Device, id, type Party, post, type Title } from '../api';
import { clock, day } from '../format';
import { now, useLive } from '../live';
import { party, steps } from '../trust';
import { Reasoned } from './standing';
import { Admins, Badge, Card, Empty, Fault, Loading, Opened, Outcome, save, useAct } from './ui';

export function Ownership({ d }: { d: Device }) {
  if (!d.ownership) {
    return (
      <Card title="Ownership">
        <Empty title="This device has no ownership voucher.">It joined by a list or by its TPM's certificate alone. A voucher comes from the vendor, in an order file: import it on the <a href="/waiting">Waiting</a> page. Without one the device cannot be passed on to another owner.</Empty>
      </Card>
    );
  }
  return <Voucher d={d} />;
}

function Voucher({ d }: { d: Device }) {
  const { data: t, error, reload } = useLive<Title>(`/v1/devices/${id(d.id)}/voucher`, (c) => c.id === d.id);
  return (
    <Card title="Ownership" note="Each owner signs for the next; the device itself checks the chain."
      aside={t && <button type="button" onClick={() => save(`${t.serial || t.device}.voucher.pem`, t.voucher)}>Save the voucher</button>}>
      <Fault text={error} retry={reload} />
      {!t && !error && <Loading />}
      {t && <Chain t={t} moved={reload} />}
    </Card>
  );
}

function Chain({ t, moved }: { t: Title; moved: () => void }) {
  const { busy, error, done, act } = useAct();
  const [open, setOpen] = useState<'' | 'offer' | 'object'>('');
  const run = async (f: () => Promise<unknown>, text: string) => { if (await act(f, text)) { setOpen(''); moved(); } };
  const at = `/v1/devices/${id(t.device)}/transfer`;
  const offered = t.next !== null;
  return (
    <>
      <ol class="steps" data-testid="ownership-steps" data-state={t.state}>
        {steps(t, now.value).map((s) => (
          <li key={s.who + s.name} class={s.tone} aria-current={s.tone === 'good' ? 'step' : undefined}>
            <span class="dim">{s.who}</span><strong>{s.name}</strong><small>{s.text}</small>
          </li>
        ))}
      </ol>
      <p class="dim">{t.entries} {t.entries === 1 ? 'statement' : 'statements'} in the voucher{t.order && `, order ${t.order}`}. {t.may_transfer ? 'The owner may pass the device on.' : 'The owner may only give it back to whom he has it from.'}</p>
      {t.override && t.deadline && Date.parse(t.deadline) > now.value && (
        <p class="finding Attention" role="note"><strong>The vendor moves this device to {t.next?.name}</strong> because its owner was reported lost. Object until <span title={clock(t.deadline)}>{day(t.deadline)}</span> if you are still here.</p>
      )}
      <Admins what="passing a device on">
        <div class="row acts">
          {t.state === 'owned' && !offered && <button type="button" aria-expanded={open === 'offer'} onClick={() => setOpen(open === 'offer' ? '' : 'offer')}>Offer to a next owner…</button>}
          {offered && <button type="button" class="danger" aria-expanded={open === 'object'} onClick={() => setOpen(open === 'object' ? '' : 'object')}>{t.override ? 'Object…' : 'Take the offer back…'}</button>}
          {t.state === 'releasing' && <p class="dim">It stores its audit trail here, then it wipes what it holds of this tenant and restarts. Nothing is left to do.</p>}
          {t.state === 'released' && <Badge state="" text="nothing of this tenant is left on it" />}
        </div>
        {open === 'offer' && <Offer t={t} busy={busy} close={() => setOpen('')} send={(b) => void run(() => post(at, b), 'Offered. Save the voucher and send it to the next owner; what he signs comes back on the Waiting page.')} />}
        {open === 'object' && (
          <Reasoned verb={t.override ? 'Object' : 'Take back'} grave busy={busy} close={() => setOpen('')} send={(reason) => void run(() => post(`${at}/object`, { reason }), 'Objected: the offer is void and the device stays with its owner.')}>
            Voids the open {t.override ? 'override of the vendor' : 'offer'}, in the voucher, for good. {t.next?.name} can no longer accept it.
          </Reasoned>
        )}
      </Admins>
      <Outcome done={done} error={error} />
    </>
  );
}

function Offer({ t, busy, send, close }: { t: Title; busy: boolean; send: (b: object) => void; close: () => void }) {
  const [to, setTo] = useState<Party>({ name: '', tenant: '', key: '' });
  const [date, setDate] = useState('');
  const [may, setMay] = useState(t.may_transfer);
  const [fault, setFault] = useState('');
  const open = async (file: File | undefined) => {
    if (!file) return;
    try { setTo(party(await file.text())); setFault(''); } catch (e) { setFault((e as Error).message); }
  };
  const whole = to.name.trim() !== '' && /^[A-Za-z0-9+/]{43}=$/.test(to.key.trim());
  return (
    <Opened class="inset" send={() => send({ to: { ...to, name: to.name.trim(), key: to.key.trim() }, may_transfer: may, ...(date && { not_before: new Date(`${date}T00:00:00`).toISOString() }) })}>
      <div class="row">
        <label class="wide">Party file of the next owner <input type="file" accept=".json,application/json" onChange={(e) => void open(e.currentTarget.files?.[0])} /></label>
        <label>Name <input value={to.name} required maxLength={64} onInput={(e) => setTo({ ...to, name: e.currentTarget.value })} /></label>
        <label>Tenant <input value={to.tenant ?? ''} maxLength={32} onInput={(e) => setTo({ ...to, tenant: e.currentTarget.value })} /></label>
        <label class="wide">Public key <input value={to.key} required spellcheck={false} placeholder="Ed25519, 44 characters" onInput={(e) => setTo({ ...to, key: e.currentTarget.value })} /></label>
        <label>Not before (optional) <input type="date" value={date} onInput={(e) => setDate(e.currentTarget.value)} /></label>
        {t.may_transfer && <label class="check"><input type="checkbox" checked={may} onChange={(e) => setMay(e.currentTarget.checked)} /> may pass it on</label>}
        <button type="submit" class="main" disabled={busy || !whole}>Offer</button><button type="button" onClick={close}>Cancel</button>
      </div>
      <p class="dim">Nothing changes before the next owner accepts. Then the device stores its audit trail here, forgets this tenant, and its certificate is cut off.</p>
      <Fault text={fault} />
    </Opened>
  );
}
