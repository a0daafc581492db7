import type { List, Release } from '../api';
import { bytes } from '../format';
import { useLive } from '../live';
import { Empty, Fault, Loading, Page, Table, When } from '../parts/ui';

export function Releases() {
  const { data, error, reload } = useLive<List<Release>>('/v1/releases', (c) => c.kind === 'release');
  return (
    <Page title="Releases">
      <p class="dim">Releases are signed offline; the service verifies them and cannot change them. Devices check them again by themselves.</p>
      <Fault text={error} retry={reload} />
      {!data && !error && <Loading />}
      {data?.items.length === 0 && <Empty>Nothing is published. <code>tillward-provision release add</code> signs an agent, <code>tillward release publish</code> uploads it.</Empty>}
      {data && data.items.length > 0 && (
        <Table label="Releases" head={['Release', 'Targets', 'Published', 'By']}>
          {data.items.map((r) => (
            <tr key={r.id}>
              <td>{r.id}</td>
              <td>{r.targets.map((t) => <div key={t.path}>{t.path.split('/').pop()} <span class="dim">{bytes(t.length)}, sha256 {t.sha256.slice(0, 12)}…</span></div>)}</td>
              <td><When at={r.published_at} /></td><td>{r.published_by}</td>
            </tr>
          ))}
        </Table>
      )}
    </Page>
  );
}
