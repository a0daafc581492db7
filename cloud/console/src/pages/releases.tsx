import { id, type Release } from '../api';
import { bytes } from '../format';
import { useRows } from '../live';
import { Badge, Empty, Fault, Loading, More, Page, Table, When } from '../parts/ui';
import { operator } from '../session';

const kinds: Record<string, string> = { agent: 'the agent', os: 'system image', app: 'application', config: 'settings', script: 'for a handler of its vendor' };

export function Releases() {
  const rows = useRows<Release>('/v1/releases', (c) => c.kind === 'release');
  return (
    <Page title="Releases" lead="Signed offline. The service verifies a release and cannot change it; each device checks it once more by itself.">
      <Fault text={rows.error} retry={rows.reload} />
      {!rows.data && !rows.error && <Loading />}
      {rows.data && rows.items.length === 0 && (
        <Empty title="Nothing is published yet.">Sign an agent with <code>tillward-provision release add</code>, then upload it with <code>tillward release publish</code>.</Empty>
      )}
      {rows.items.length > 0 && (
        <Table label="Releases" head={['Release', 'For', 'Files', 'Published', 'Rollout']}>
          {rows.items.map((r) => (
            <tr key={r.id} data-testid="release-row">
              <td class="name"><strong>{r.component} {r.version}</strong><small class="text">{kinds[r.class] ?? r.class}</small></td>
              <td data-label="For">{r.models.length > 0 ? r.models.join(', ') : 'every model'}{Object.entries(r.requires).map(([c, v]) => <small key={c}>takes {c} {v} or newer</small>)}</td>
              <td data-label="Files">{r.targets.map((t) => <div key={t.path}>{t.path.split('/').pop()} <small class="here" title={t.sha256}>{bytes(t.length)}, SHA-256 <code>{t.sha256.slice(0, 16)}…</code></small></div>)}</td>
              <td data-label="Published"><When at={r.published_at} /><small>by {r.published_by}</small></td>
              <td data-label="Rollout">{r.withdrawn ? <Badge state="" as="bad" text="withdrawn" /> : operator.value && <a href={`/rollouts/new/${id(r.id)}`}>Roll out<span class="hidden"> {r.id}</span></a>}</td>
            </tr>
          ))}
        </Table>
      )}
      <More rows={rows} />
    </Page>
  );
}
