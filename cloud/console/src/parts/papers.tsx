// What comes from the vendor or from another owner as a file, and what goes there.
import { useState } from 'preact/hooks';
import { type Batch, type Imported, type List, type Party, post, upload } from '../api';
import { useLive } from '../live';
import { Admins, Badge, Card, Fault, Loading, Outcome, save, useAct } from './ui';

const outcomes: Record<string, { text: string; state: string }> = {
  accepted: { text: 'yours now', state: 'OK' }, held: { text: 'yours already', state: 'OK' }, known: { text: 'nothing new in it', state: '' },
  releasing: { text: 'given up to its next owner', state: 'SENT' }, override: { text: 'the vendor moves it; object in time', state: 'warn' }, refused: { text: '', state: 'REJECTED' },
};

export function Papers({ changed }: { changed: () => void }) {
  return (
    <Card title="From the vendor, or another owner" note="Signed files. The service checks each signature; a file that was changed on its way is refused whole.">
      <Admins what="importing a file">
        <div class="papers">
          <Vouchers changed={changed} />
          <Manifest changed={changed} />
          <Order changed={changed} />
        </div>
      </Admins>
      <Ours />
    </Card>
  );
}

function Vouchers({ changed }: { changed: () => void }) {
  const [all, setAll] = useState<Imported[]>([]);
  const { busy, error, done, act } = useAct();
  const send = async (f: File) => {
    setAll([]);
    if (await act(async () => { setAll((await upload<List<Imported>>('/v1/orders', f, 'application/x-pem-file')).items); }, `${f.name} was read.`)) changed();
  };
  return (
    <section class="inset" aria-label="Order file or vouchers">
      <h3>Order file or vouchers</h3>
      <p class="dim">Vouchers of the devices that you bought: those offered to you are accepted, and the devices may join without a code.</p>
      <Choose label="File of vouchers" accept=".pem,application/x-pem-file" busy={busy} send={(f) => void send(f)} />
      <Outcome done={done} error={error} />
      {all.length > 0 && (
        <ul class="outcomes" aria-label="What became of each voucher" tabIndex={0}>
          {all.map((i) => (
            <li key={i.device + i.serial}>
              <Badge state={outcomes[i.outcome]?.state ?? ''} text={i.outcome} /> <strong>{i.serial || i.device}</strong>
              <small>{[outcomes[i.outcome]?.text, i.text].filter(Boolean).join('; ')}</small>
            </li>
          ))}
        </ul>
      )}
    </section>
  );
}

function Manifest({ changed }: { changed: () => void }) {
  const [b, setB] = useState<Batch>();
  const { busy, error, done, act } = useAct();
  const send = async (f: File) => {
    setB(undefined);
    if (await act(async () => { setB(await upload<Batch>('/v1/manifests', f, 'application/json')); }, `${f.name} was imported.`)) changed();
  };
  return (
    <section class="inset" aria-label="Vendor manifest">
      <h3>Vendor manifest</h3>
      <p class="dim">The list of a batch: needed for devices whose TPM has no certificate of its maker, and for claiming by code.</p>
      <Choose label="Manifest file" accept=".json,application/json" busy={busy} send={(f) => void send(f)} />
      <Outcome done={done} error={error} />
      {b && <p>Batch {b.batch} of {b.vendor}{b.order && `, order ${b.order}`}: {b.devices} {b.devices === 1 ? 'device' : 'devices'}, {b.added} of them new.</p>}
    </section>
  );
}

function Order({ changed }: { changed: () => void }) {
  const [v, setV] = useState({ vendor: '', order: '' });
  const [n, setN] = useState(0);
  const { busy, error, done, act } = useAct();
  const claim = async (e: Event) => {
    e.preventDefault();
    if (await act(async () => { setN((await post<{ devices: number }>('/v1/claims/order', v)).devices); }, `Order ${v.order} is claimed.`)) changed();
  };
  return (
    <section class="inset" aria-label="A whole order">
      <h3>A whole order</h3>
      <p class="dim">Claims every device that an imported manifest lists for your order.</p>
      <form class="row" onSubmit={(e) => void claim(e)}>
        <label>Vendor <input value={v.vendor} required maxLength={64} onInput={(e) => setV({ ...v, vendor: e.currentTarget.value })} /></label>
        <label>Order number <input value={v.order} required maxLength={64} onInput={(e) => setV({ ...v, order: e.currentTarget.value })} /></label>
        <button type="submit" disabled={busy || !v.vendor.trim() || !v.order.trim()}>Claim the order</button>
      </form>
      <Outcome done={done && `${done} ${n} ${n === 1 ? 'device is' : 'devices are'} yours and may join.`} error={error} />
    </section>
  );
}

/** A file and a button that sends it. */
function Choose({ label, accept, busy, send }: { label: string; accept: string; busy: boolean; send: (f: File) => void }) {
  const [file, setFile] = useState<File>();
  return (
    <form class="row" onSubmit={(e) => { e.preventDefault(); if (file) send(file); }}>
      <label class="wide">{label} <input type="file" accept={accept} required onChange={(e) => setFile(e.currentTarget.files?.[0])} /></label>
      <button type="submit" disabled={busy || !file}>{busy ? 'Importing…' : 'Import'}</button>
    </form>
  );
}

/** Whom vouchers name as this tenant: the file that a vendor, or an owner who sells, asks for. */
function Ours() {
  const { data: p, error, reload } = useLive<Party>('/v1/tenant', () => false);
  if (error) return <Fault text={error} retry={reload} />;
  if (!p) return <Loading />;
  const file = { public_key: p.key, name: p.name, ...(p.tenant && { tenant: p.tenant }) };
  return (
    <div class="head">
      <p class="dim">Who sells you devices needs your party file: {p.name}{p.tenant && `, tenant ${p.tenant}`}, key <code>{p.key.slice(0, 12)}…</code></p>
      <button type="button" onClick={() => save(`${p.tenant || 'party'}.party.json`, `${JSON.stringify(file, null, 2)}\n`)}>Save our party file</button>
    </div>
  );
}
