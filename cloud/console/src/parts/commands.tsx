import { useState } from 'preact/hooks';
import { type Command, id, type List, post } from '../api';
import { words } from '../format';
import { useLive } from '../live';
import { Badge, Card, Empty, Fault, Table, When } from './ui';

const verbs: Record<string, string> = {
  identify: 'Makes itself known: prints a slip and says who it is.',
  'print-test': 'Prints a short test page and says whether it came out.',
  'collect-logs': 'Sends the last lines of the agent\'s log.',
  'set-config': 'Changes the label, the pace of measuring or the log level.',
  reboot: 'Restarts the box. Selling stops until it is back.',
};

export function Commands({ device }: { device: string }) {
  const list = useLive<List<Command>>(`/v1/commands?device=${id(device)}&limit=20`, (c) => c.kind === 'command', 500);
  const [verb, setVerb] = useState('identify');
  const [reason, setReason] = useState('');
  const [key, setKey] = useState('label');
  const [value, setValue] = useState('');
  const [sure, setSure] = useState(false);
  const [error, setError] = useState('');
  const send = async (e: Event) => {
    e.preventDefault();
    try {
      await post('/v1/commands', { device, verb, reason, args: verb === 'set-config' ? { [key]: value } : {} });
      setError('');
      setSure(false);
      list.reload();
    } catch (err) { setError((err as Error).message); }
  };
  return (
    <Card title="Commands">
      <form class="row" onSubmit={(e) => void send(e)}>
        <label>Command <select value={verb} data-testid="command-verb" onChange={(e) => setVerb(e.currentTarget.value)}>
          {Object.keys(verbs).map((v) => <option key={v}>{v}</option>)}
        </select></label>
        {verb === 'set-config' && <>
          <label>Setting <select value={key} onChange={(e) => setKey(e.currentTarget.value)}>{['label', 'poll_s', 'telemetry_s', 'log_level'].map((k) => <option key={k}>{k}</option>)}</select></label>
          <label>Value <input value={value} required onInput={(e) => setValue(e.currentTarget.value)} /></label>
        </>}
        <label>Reason <input value={reason} required={verb === 'reboot'} placeholder="kept in the audit trail" onInput={(e) => setReason(e.currentTarget.value)} /></label>
        {verb === 'reboot' && <label class="check"><input type="checkbox" checked={sure} onChange={(e) => setSure(e.currentTarget.checked)} /> Restart it now</label>}
        <button type="submit" class="main" data-testid="command-send" disabled={verb === 'reboot' && !sure}>Send</button>
      </form>
      <p class="dim">{verbs[verb]} A device that is offline gets it when it returns, within an hour.</p>
      <Fault text={error || list.error} />
      {list.data?.items.length === 0 && <Empty>No command has been sent to this device.</Empty>}
      {list.data && list.data.items.length > 0 && (
        <Table label="Commands" head={['Command', 'State', 'Issued', 'By', 'Reason', 'Result']}>
          {list.data.items.map((c) => (
            <tr key={c.id} data-testid="command-row" data-state={c.state} data-verb={c.verb}>
              <td>{c.verb}<small>{Object.entries(c.args ?? {}).map(([k, v]) => `${k}=${v}`).join(' ')}</small></td>
              <td><Badge state={c.state} /></td><td><When at={c.issued_at} /></td><td>{c.by}</td><td>{c.reason}</td>
              <td>{c.code && <span>{words(c.code)} </span>}{c.text}{c.output && <details><summary>Output</summary><pre tabIndex={0}>{c.output}</pre></details>}</td>
            </tr>
          ))}
        </Table>
      )}
    </Card>
  );
}
