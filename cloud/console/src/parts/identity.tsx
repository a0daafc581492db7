import { useState } from 'preact/hooks';
import { type Device, id, patch } from '../api';
import { clock, day, expiry } from '../format';
import { now } from '../live';
import { operator } from '../session';
import { Badge, Card, Fault, When } from './ui';

const tiers: Record<string, string> = {
  A: 'TPM with its maker\'s certificate', B: 'TPM on the vendor\'s signed list', C: 'virtual TPM', D: 'software key',
};
const meanings: Record<string, string> = {
  attested: 'It has proven that it is the device that was enrolled.', pending: 'It has not proven itself yet.', degraded: 'It proved less than it should.',
  quarantined: 'It is kept from the fleet.', stale: 'Its last proof is too old.',
};

/** Who the device is, and what it has proven. */
export function Identity({ d, changed }: { d: Device; changed: () => void }) {
  const [edit, setEdit] = useState(false);
  const cert = expiry(d.cert_not_after, now.value);
  return (
    <Card title="Identity and trust" aside={operator.value && !edit && <button type="button" onClick={() => setEdit(true)}>Edit label, site, group</button>}>
      {edit && <Edit d={d} done={(saved) => { setEdit(false); if (saved) changed(); }} />}
      <div class={`verdict ${d.trust}`}>
        <Badge state={d.trust} testid="device-trust" />
        <div>
          <p>{meanings[d.trust] ?? ''}{d.attested_at && <> Last proof <When at={d.attested_at} />.</>}</p>
          {d.trust_reasons.length > 0 && <ul>{d.trust_reasons.map((r) => <li key={r}>{r}</li>)}</ul>}
        </div>
      </div>
      <dl class="facts">
        <div><dt>Tier {d.tier}</dt><dd>{tiers[d.tier] ?? 'unknown kind of identity'}</dd></div>
        <div><dt>Certificate</dt><dd title={clock(d.cert_not_after)}>{d.cert_not_after ? <>until {day(d.cert_not_after)} <span class={`ink ${cert.tone}`}>({cert.text})</span></> : 'none yet'}</dd></div>
        <div><dt>Audit trail</dt><dd>{d.audit_ok ? <>{d.audit_head} entries, whole as received</> : <Badge state="alarm" text="gap or break: verify it below" />}</dd></div>
        <div><dt>Agent</dt><dd>{d.agent_version ? <>{d.agent_version} from slot {d.slot || '–'}{d.state.started_at && <>, started <When at={d.state.started_at} /></>}</> : 'not reported yet'}</dd></div>
        <div><dt>Site and group</dt><dd>{d.site || 'no site'}, {d.group || 'no group'}</dd></div>
        <div><dt>Model and serial</dt><dd>{d.model || 'unknown model'}, {d.serial || 'no serial'}</dd></div>
        <div><dt>Waiting on the device</dt><dd>{d.state.spool_depth === 0 ? 'nothing' : `${d.state.spool_depth} ${d.state.spool_depth === 1 ? 'message' : 'messages'}`}{d.state.spool_shed > 0 && <span class="ink bad">, {d.state.spool_shed} given up for lack of space</span>}</dd></div>
        <div><dt>Joined</dt><dd>{d.enrolled_at ? <When at={d.enrolled_at} /> : 'not yet'}</dd></div>
        <div><dt>Device id</dt><dd><code>{d.id}</code></dd></div>
      </dl>
      <details><summary>Keys</summary>
        <dl class="facts keys">
          <div><dt>Endorsement key, SHA-256</dt><dd><code>{d.ek_sha256 || '–'}</code></dd></div>
          <div><dt>Certificate serial</dt><dd><code>{d.cert_serial || '–'}</code></dd></div>
        </dl>
      </details>
    </Card>
  );
}

function Edit({ d, done }: { d: Device; done: (saved: boolean) => void }) {
  const [v, setV] = useState({ label: d.label, site: d.site, group: d.group });
  const [error, setError] = useState('');
  const save = async (e: Event) => {
    e.preventDefault();
    try { await patch<Device>(`/v1/devices/${id(d.id)}`, v); done(true); } catch (err) { setError((err as Error).message); }
  };
  return (
    <form class="row inset" onSubmit={(e) => void save(e)}>
      {(['label', 'site', 'group'] as const).map((k, i) => (
        <label key={k}>{k[0]!.toUpperCase() + k.slice(1)} <input value={v[k]} maxLength={64} autofocus={i === 0} onInput={(e) => setV({ ...v, [k]: e.currentTarget.value })} /></label>
      ))}
      <button type="submit" class="main">Save</button><button type="button" onClick={() => done(false)}>Cancel</button>
      <Fault text={error} />
    </form>
  );
}
