import { useState } from 'preact/hooks';
import { type AuditEvent, type AuditProof, type Chain, get, id } from '../api';
import { clock } from '../format';
import { type Change, now, useRows } from '../live';
import { admin } from '../session';
import { proven } from '../trail';
import { Badge, Card, Empty, Fault, Loading, More, Table, When } from './ui';

/** An audit trail, newest first, and the proof that it is whole. Of a device's own trail, the device is not named in every row. */
export function Trail({ title, path, own, proof, concerns }: { title: string; path: string; own?: string; proof?: AuditProof | undefined; concerns: (c: Change) => boolean }) {
  const rows = useRows<AuditEvent>(path, concerns);
  const [chain, setChain] = useState<Chain & { at: string }>();
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState('');
  const verify = async () => {
    setBusy(true);
    try { setChain({ ...await get<Chain>(`${path}/verify`), at: new Date(now.peek()).toISOString() }); setFault(''); } catch (e) { setFault((e as Error).message); }
    setBusy(false);
  };
  return (
    <Card title={title} note="Each entry holds the hash of the one before." aside={<span class="badges">
      {admin.value && own && <a href={`${path}/export`} download={`${own}.trail`} title="A sealed file; prove a copy of it anywhere with tillward audit verify">Export</a>}
      <button type="button" data-testid="audit-verify" disabled={busy} onClick={() => void verify()}>{busy ? 'Verifying…' : 'Verify chain'}</button>
    </span>}>
      {proof && <dl class="facts" data-testid="audit-proof">
        {proven(proof).map((f) => <div key={f.name}><dt>{f.name}</dt><dd class={f.bad ? 'fault' : ''}>{f.text}{f.at && <>, <When at={f.at} /></>}</dd></div>)}
      </dl>}
      <div aria-live="polite">
        {chain && <p data-testid="audit-verify-result" data-ok={chain.ok} class={chain.ok ? 'ok' : 'fault'}>
          {chain.ok
            ? <>The chain is whole: {chain.entries} entries, {chain.first} to {chain.last}. Checked <When at={chain.at} />.</>
            : <><strong>The chain is broken at entry {chain.broken_at}.</strong> {chain.text.replace(/\.?$/, '.')} {own ? 'Take the device out of use and keep its disk as it is.' : 'Keep the data folder as it is and compare it with a backup.'}</>}
        </p>}
      </div>
      <Fault text={rows.error || fault} retry={rows.reload} />
      {!rows.data && !rows.error && <Loading />}
      {rows.data && rows.items.length === 0 && <Empty title="No entries yet.">Enrolments, connections, commands and updates are written here.</Empty>}
      {rows.items.length > 0 && (
        <Table label={title} head={own ? ['No.', 'When', 'What', 'Detail'] : ['No.', 'When', 'What', 'Subject', 'By', 'Detail']}>
          {rows.items.map((e) => <Row e={e} own={own} key={e.seq} />)}
        </Table>
      )}
      <More rows={rows} />
    </Card>
  );
}

function Row({ e, own }: { e: AuditEvent; own: string | undefined }) {
  const detail = Object.entries(e.detail ?? {}).filter(([, v]) => v);
  const about = own ? [['subject', e.subject], ['by', e.actor]].filter(([, v]) => v && v !== own && v !== 'agent') : [];
  return (
    <tr data-testid="audit-row" data-seq={e.seq}>
      <td data-label="No." class="num">{e.seq}</td>
      <td data-label="When"><When at={e.at} /></td>
      <td data-label="What">{e.kind}{e.severity !== 'info' && <> <Badge state={e.severity} /></>}</td>
      {!own && <><td data-label="Subject"><Subject e={e} /></td><td data-label="By">{e.actor}</td></>}
      <td data-label="Detail" class="detail">
        {[...about, ...detail].map(([k, v]) => <span key={k}><span class="dim">{k}</span> {v}</span>)}
        <details><summary>Hash</summary><small><code>{e.hash}</code> follows <code>{e.prev}</code>{e.stored_at && `; stored ${clock(e.stored_at)}`}</small></details>
      </td>
    </tr>
  );
}

/** Whom an entry is about; devices and rollouts have pages of their own. */
function Subject({ e }: { e: AuditEvent }) {
  if (e.subject.startsWith('ro_')) return <a href={`/rollouts/${id(e.subject)}`}>{e.subject}</a>;
  if (/^(command|enrol|attest|device|broker|claim|ownership|identity|update)\./.test(e.kind) && /^[a-z2-7]{24}$/.test(e.subject)) return <a href={`/device/${id(e.subject)}`}>{e.subject}</a>;
  return <>{e.subject}</>;
}
