import { useState } from 'preact/hooks';
import { type AuditEvent, type Chain, get, type List } from '../api';
import { useLive } from '../live';
import { Badge, Card, Empty, Fault, Loading, Table, When } from './ui';

/** An audit trail, newest first, and the proof that it is whole. */
export function Trail({ title, path, concerns }: { title: string; path: string; concerns: (c: { kind: string; id: string }) => boolean }) {
  const { data, error, reload } = useLive<List<AuditEvent>>(`${path}?limit=50`, concerns);
  const [chain, setChain] = useState<Chain>();
  const [fault, setFault] = useState('');
  const verify = async () => {
    try { setChain(await get<Chain>(`${path}/verify`)); setFault(''); } catch (e) { setFault((e as Error).message); }
  };
  return (
    <Card title={title} aside={<button type="button" data-testid="audit-verify" onClick={() => void verify()}>Verify chain</button>}>
      <div aria-live="polite">
        {chain && <p data-testid="audit-verify-result" data-ok={chain.ok} class={chain.ok ? 'ok' : 'fault'}>
          {chain.ok ? `The chain is whole: ${chain.entries} entries, each holds the hash of the one before.` : `The chain is broken at entry ${chain.broken_at}: ${chain.text}`}
        </p>}
      </div>
      <Fault text={error || fault} retry={reload} />
      {!data && !error && <Loading />}
      {data?.items.length === 0 && <Empty>No entries yet.</Empty>}
      {data && data.items.length > 0 && (
        <Table label={title} head={['No.', 'When', 'What', 'Subject', 'By', 'Detail']}>
          {data.items.map((e) => (
            <tr key={e.seq} data-testid="audit-row">
              <td>{e.seq}</td><td><When at={e.at} /></td>
              <td>{e.severity !== 'info' && <Badge state={e.severity} />} {e.kind}</td>
              <td>{e.subject}</td><td>{e.actor}</td>
              <td>{Object.entries(e.detail ?? {}).filter(([, v]) => v).map(([k, v]) => `${k}: ${v}`).join(', ')}</td>
            </tr>
          ))}
        </Table>
      )}
    </Card>
  );
}
