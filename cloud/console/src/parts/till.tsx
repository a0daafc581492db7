import { useState } from 'preact/hooks';
import { type Device, id, patch } from '../api';
import { operator } from '../session';
import { Badge, Card, Fault, Opened, When } from './ui';

/** Where the device stands and what runs on it. */
export function Till({ d, changed }: { d: Device; changed: () => void }) {
  const [edit, setEdit] = useState(false);
  return (
    <Card title="Till" aside={operator.value && !d.former_of && !edit && <button type="button" onClick={() => setEdit(true)}>Edit label, site, group</button>}>
      {edit && <Edit d={d} done={(saved) => { setEdit(false); if (saved) changed(); }} />}
      <dl class="facts">
        <div><dt>Site and group</dt><dd>{d.site || 'no site'}, {d.group || 'no group'}</dd></div>
        <div><dt>Model and serial</dt><dd>{d.model || 'unknown model'}, {d.serial || 'no serial'}</dd></div>
        <div><dt>Agent</dt><dd>{d.agent_version ? <>{d.agent_version} from slot {d.slot || '–'}{d.state.started_at && <>, started <When at={d.state.started_at} /></>}</> : 'not reported yet'}</dd></div>
        <div><dt>Audit trail</dt><dd>{d.audit_ok ? <>{d.audit_head} entries, whole as received</> : <Badge state="alarm" text="gap or break: verify it below" />}</dd></div>
        <div><dt>Waiting on the device</dt><dd>{d.state.spool_depth === 0 ? 'nothing' : `${d.state.spool_depth} ${d.state.spool_depth === 1 ? 'message' : 'messages'}`}{d.state.spool_shed > 0 && <span class="ink bad">, {d.state.spool_shed} given up for lack of space</span>}</dd></div>
        <div><dt>Joined</dt><dd>{d.enrolled_at ? <When at={d.enrolled_at} /> : 'not yet'}</dd></div>
        <div><dt>Device id</dt><dd><code>{d.id}</code></dd></div>
      </dl>
    </Card>
  );
}

function Edit({ d, done }: { d: Device; done: (saved: boolean) => void }) {
  const [v, setV] = useState({ label: d.label, site: d.site, group: d.group });
  const [error, setError] = useState('');
  const save = async () => {
    try { await patch<Device>(`/v1/devices/${id(d.id)}`, v); done(true); } catch (err) { setError((err as Error).message); }
  };
  return (
    <Opened class="row inset" send={() => void save()}>
      {(['label', 'site', 'group'] as const).map((k) => (
        <label key={k}>{k[0]!.toUpperCase() + k.slice(1)} <input value={v[k]} maxLength={64} onInput={(e) => setV({ ...v, [k]: e.currentTarget.value })} /></label>
      ))}
      <button type="submit" class="main">Save</button><button type="button" onClick={() => done(false)}>Cancel</button>
      <Fault text={error} />
    </Opened>
  );
}
