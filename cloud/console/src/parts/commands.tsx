import { useState } from 'preact/hooks';
import { type Command, id, type List, post } from '../api';
import { span, words } from '../format';
import { useRows } from '../live';
import { Badge, Card, Empty, Fault, Loading, More, Operators, save, Table, When } from './ui';

const verbs: Record<string, string> = {
  identify: 'The till makes itself known: it prints a slip and says who it is.',
  'check-health': 'Has a printer, reader or drawer test itself. Internal: nothing moves; external: a test page, the drawer; interactive: somebody at the till takes part.',
  'print-test': 'Prints a short test page and says whether it came out.',
  'collect-logs': 'Fetches the last lines of the agent\'s log.',
  'set-config': 'Changes one setting of the agent; the device checks it first.',
  diagnose: 'Says how its TPM, its boot, its slots and its disk are.',
  reboot: 'Restarts the box. Selling stops until it is back, a minute or two.',
  'factory-reset': 'Gives up everything that lies on the box, the applications and their data too, and restarts it as it came from the factory. It enrols again by its TPM. Only an admin may.',
};
/** What reaches a device in quarantine, too. */
const repairs = ['diagnose', 'collect-logs', 'reboot'];
const settings: Record<string, string> = {
  label: 'up to 64 characters', poll_s: 'seconds, 5 to 3600', telemetry_s: 'seconds, 1 to 3600', log_level: 'debug, info, warn or error',
};

export function Commands({ device, online, trust, peripherals }: { device: string; online: boolean; trust: string; peripherals: string[] }) {
  const rows = useRows<Command>(`/v1/commands?device=${id(device)}`, (c) => c.kind === 'command', 20, 500);
  return (
    <Card title="Commands" note="Signed, run at most once, and written to the audit trail.">
      <Operators what="sending a command"><Send device={device} online={online} trust={trust} peripherals={peripherals} sent={rows.reload} /></Operators>
      <Fault text={rows.error} retry={rows.reload} />
      {!rows.data && !rows.error && <Loading />}
      {rows.data && rows.items.length === 0 && <Empty title="No command has been sent to this device.">Try <em>identify</em>: it is harmless and shows that the way there and back works.</Empty>}
      {rows.items.length > 0 && (
        <Table label="Commands" head={['Command', 'State', 'Issued', 'By', 'Result']}>{rows.items.map((c) => <Row c={c} key={c.id} />)}</Table>
      )}
      <More rows={rows} />
    </Card>
  );
}

function Row({ c }: { c: Command }) {
  const ms = c.issued_at && c.ended_at ? Date.parse(c.ended_at) - Date.parse(c.issued_at) : 0;
  const took = ms < 1000 ? 'less than 1 s' : span(ms);
  return (
    <tr data-testid="command-row" data-id={c.id} data-state={c.state} data-verb={c.verb}>
      <td class="name"><strong>{c.verb}</strong><small>{Object.entries(c.args ?? {}).map(([k, v]) => `${k} = ${v}`).join(', ')}</small></td>
      <td data-label="State"><Badge state={c.state} />{c.state === 'SUCCEEDED' && <small>in {took}</small>}</td>
      <td data-label="Issued"><When at={c.issued_at} /></td>
      <td data-label="By">{c.by}{c.reason && <small>{c.reason}</small>}</td>
      <td data-label="Result" class="detail">
        {c.code && c.code !== 'OK' && <strong>{words(c.code)}</strong>}{c.text && <span>{c.text}</span>}
        {c.state === 'QUEUED' && <span class="dim">waits for the device</span>}
        {c.output && <Output c={c} />}
      </td>
    </tr>
  );
}

/** What a command brought back: shown when it is text, and always there to keep. */
function Output({ c }: { c: Command }) {
  const text = c.output_encoding !== 'base64';
  const keep = () => save(`${c.verb}-${c.id}${text ? '.txt' : '.bin'}`, text ? c.output : Uint8Array.from(atob(c.output), (x) => x.charCodeAt(0)));
  return (
    <details>
      <summary>Output</summary>
      {text ? <pre tabIndex={0} aria-label={`Output of ${c.verb}`}>{c.output}</pre> : <p class="dim">Not text.</p>}
      <button type="button" onClick={keep}>Save to a file</button>
    </details>
  );
}

/** Whether the command gets there now. */
function reach(verb: string, online: boolean, trust: string): string {
  if (trust === 'revoked') return 'The device is revoked: no command reaches it.';
  if (trust === 'quarantined' && !repairs.includes(verb)) return `The device is quarantined: only ${repairs.join(', ')} reach it; this one waits until it is let in, for an hour.`;
  return online ? '' : 'The device is offline: it gets the command when it returns, within an hour.';
}

function Send({ device, online, trust, peripherals, sent }: { device: string; online: boolean; trust: string; peripherals: string[]; sent: () => void }) {
  const [verb, setVerb] = useState('identify');
  const [reason, setReason] = useState('');
  const [key, setKey] = useState('label');
  const [value, setValue] = useState('');
  const [chosen, setChosen] = useState('');
  const [level, setLevel] = useState('internal');
  const [sure, setSure] = useState(false);
  const [typed, setTyped] = useState('');
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState('');
  const [done, setDone] = useState('');
  const reset = verb === 'factory-reset';
  const grave = verb === 'reboot' || reset;
  const peripheral = peripherals.includes(chosen) ? chosen : peripherals[0];
  const args = (): Record<string, string> => {
    if (verb === 'set-config') return { [key]: value };
    if (reset) return { device: typed.trim() };
    return verb === 'check-health' && peripheral ? { peripheral, level } : {};
  };
  const send = async (e: Event) => {
    e.preventDefault();
    setBusy(true);
    try {
      await post<List<Command>>('/v1/commands', { device, verb, reason, args: args() });
      setError('');
      setSure(false);
      setTyped('');
      setReason('');
      setDone(`${verb} is signed and queued. Its result shows below.`);
      sent();
    } catch (err) { setError((err as Error).message); setDone(''); }
    setBusy(false);
  };
  return (
    <form class={`inset ${grave ? 'grave' : ''}`} onSubmit={(e) => void send(e)}>
      <div class="row">
        <label>Command <select value={verb} data-testid="command-verb" onChange={(e) => { setVerb(e.currentTarget.value); setSure(false); setTyped(''); setDone(''); }}>
          {Object.keys(verbs).map((v) => <option key={v}>{v}</option>)}
        </select></label>
        {verb === 'set-config' && <>
          <label>Setting <select value={key} onChange={(e) => setKey(e.currentTarget.value)}>{Object.keys(settings).map((k) => <option key={k}>{k}</option>)}</select></label>
          <label>Value <input value={value} required placeholder={settings[key]} onInput={(e) => setValue(e.currentTarget.value)} /></label>
        </>}
        {verb === 'check-health' && <>
          <label>Peripheral <select required value={peripheral} data-testid="command-peripheral" onChange={(e) => setChosen(e.currentTarget.value)}>{peripherals.map((p) => <option key={p}>{p}</option>)}</select></label>
          <label>Level <select value={level} data-testid="command-level" onChange={(e) => setLevel(e.currentTarget.value)}>{['internal', 'external', 'interactive'].map((l) => <option key={l}>{l}</option>)}</select></label>
        </>}
        <label class="wide">{grave ? 'Reason' : 'Reason (optional)'} <input value={reason} required={grave} maxLength={512} placeholder="Kept in the audit trail" onInput={(e) => setReason(e.currentTarget.value)} /></label>
        {verb === 'reboot' && <label class="check"><input type="checkbox" checked={sure} onChange={(e) => setSure(e.currentTarget.checked)} /> Yes, restart it now</label>}
        {reset && <label>Type “{device}” to confirm <input value={typed} autocomplete="off" autocapitalize="off" spellcheck={false} data-testid="command-confirm" onInput={(e) => setTyped(e.currentTarget.value)} /></label>}
        <button type="submit" class={grave ? 'danger' : 'main'} data-testid="command-send" disabled={busy || (grave && (!reason.trim() || !(reset ? typed.trim() === device : sure)))}>Send</button>
      </div>
      <p class="dim">{verbs[verb]} {reach(verb, online, trust)}</p>
      <div aria-live="polite">{done && <p class="ink good">{done}</p>}</div>
      <Fault text={error} />
    </form>
  );
}
