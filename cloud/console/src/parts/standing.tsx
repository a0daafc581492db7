// What a person may do about a device's standing: ask for proof, look into it,
// let it in for a while, or shut it out.
import type { ComponentChildren } from 'preact';
import { useState } from 'preact/hooks';
import { call, type Device, id, post, put, type Waiver } from '../api';
import { clock, day, span } from '../format';
import { now } from '../live';
import { admin } from '../session';
import { dateField, until, waivable } from '../trust';
import { Opened, Operators, Outcome, useAct } from './ui';

const longest = 30; // days of a waiver

/** That a quarantined device is let in, on whose word and until when. */
export function Waived({ d, w, changed }: { d: Device; w: Waiver; changed: () => void }) {
  const { busy, error, done, act } = useAct();
  const end = async () => { if (await act(() => call('DELETE', `/v1/devices/${id(d.id)}/waiver`), 'The waiver has ended.')) changed(); };
  return (
    <div class="finding Attention" role="note" data-testid="device-waiver">
      <div class="head">
        <p><strong title={clock(w.until)}>Let in until {day(w.until)}</strong> ({span(Date.parse(w.until) - now.value)} left) on the word of {w.by}: {w.reason}</p>
        {admin.value && <button type="button" disabled={busy} onClick={() => void end()}>End the waiver</button>}
      </div>
      <Outcome done={done} error={error} />
    </div>
  );
}

type Open = '' | 'waive' | 'revoke' | 'readmit';

/** The acts, by role: each that is grave opens a form first. */
export function Standing({ d, changed }: { d: Device; changed: () => void }) {
  const [open, setOpen] = useState<Open>('');
  const { busy, error, done, act } = useAct();
  const at = `/v1/devices/${id(d.id)}`;
  const run = async (f: () => Promise<unknown>, text: string) => { if (await act(f, text)) { setOpen(''); changed(); } };
  const wait = d.online ? '' : ' The device is offline, so it waits for its return.';
  const toggle = (o: Open) => setOpen(open === o ? '' : o);
  const opens = (o: Open) => ({ type: 'button' as const, 'aria-expanded': open === o, onClick: () => toggle(o) });
  return (
    <Operators what="asking for proof">
      <div class="row acts">
        {!d.revoked_at && <button type="button" class="main" data-testid="attest-now" disabled={busy || !d.online} title={d.online ? undefined : 'it proves itself when it connects'}
          onClick={() => void run(() => post(`${at}/attest`, {}), 'Asked for proof; the verdict shows above within seconds.')}>Attest now</button>}
        {!d.revoked_at && <button type="button" disabled={busy} onClick={() => void run(() => post('/v1/commands', { device: d.id, verb: 'diagnose', reason: '', args: {} }), `Diagnose is signed and queued; its answer shows below, among the commands.${wait}`)}>Diagnose</button>}
        {admin.value && d.trust === 'quarantined' && !d.revoked_at && <button {...opens('waive')}>Waive…</button>}
        {admin.value && (d.revoked_at ? <button {...opens('readmit')}>Readmit…</button> : <button class="danger" data-testid="revoke-open" {...opens('revoke')}>Revoke…</button>)}
        {!admin.value && <p class="dim">Waivers, revoking and readmitting take a token with the role admin.</p>}
      </div>
      {open === 'waive' && <Waive d={d} busy={busy} close={() => setOpen('')} send={(body) => void run(() => put(`${at}/waiver`, body), 'The device is let in; its findings stay.')} />}
      {open === 'revoke' && (
        <Reasoned grave verb="Revoke" word="revoke" busy={busy} close={() => setOpen('')} send={(reason) => void run(() => post(`${at}/revoke`, { reason }), 'Revoked. Its connection was cut.')}>
          Cuts the connection at once and believes nothing that the device shows from then on, until it is readmitted. Selling goes on at the till, but what it stores waits there.
        </Reasoned>
      )}
      {open === 'readmit' && (
        <Reasoned verb="Readmit" busy={busy} close={() => setOpen('')} send={(reason) => void run(() => post(`${at}/readmit`, { reason }), 'Readmitted. It has to prove itself before a door opens.')}>
          Lifts the revocation. The device has to enrol and to prove itself before anything it sends is taken.
        </Reasoned>
      )}
      <Outcome done={done} error={error} />
    </Operators>
  );
}

function Waive({ d, busy, send, close }: { d: Device; busy: boolean; send: (body: { until: string; reason: string }) => void; close: () => void }) {
  const [date, setDate] = useState(dateField(now.peek() + 7 * 86400e3));
  const [reason, setReason] = useState('');
  if (!waivable(d.findings)) {
    return <p class="inset">This cannot be waived: the proof itself failed, so nobody knows which device speaks. Attest again, or look at the till.</p>;
  }
  return (
    <Opened class="inset" send={() => send({ until: until(date, now.peek(), longest), reason: reason.trim() })}>
      <div class="row">
        <label>Until the end of <input type="date" required value={date} min={dateField(now.peek())} max={dateField(now.peek() + longest * 86400e3)} onInput={(e) => setDate(e.currentTarget.value)} /></label>
        <Why value={reason} set={setReason} />
        <button type="submit" class="main" disabled={busy || !reason.trim() || !date}>Let it in</button><button type="button" onClick={close}>Cancel</button>
      </div>
      <p class="dim">It counts as degraded until then, at most {longest} days, and is quarantined again after. The findings stay and everybody sees this.</p>
    </Opened>
  );
}

/** A form for an act that takes a reason and, when grave, a word that confirms it. */
export function Reasoned({ verb, word, grave, busy, send, close, children }: {
  verb: string; word?: string; grave?: boolean; busy: boolean; send: (reason: string) => void; close: () => void; children: ComponentChildren;
}) {
  const [reason, setReason] = useState('');
  const [typed, setTyped] = useState('');
  const sure = !word || typed.trim().toLowerCase() === word;
  return (
    <Opened class={`inset ${grave ? 'grave' : ''}`} send={() => send(reason.trim())}>
      <p>{children}</p>
      <div class="row">
        <Why value={reason} set={setReason} />
        {word && <label>Type “{word}” to confirm <input value={typed} autocomplete="off" autocapitalize="off" spellcheck={false} onInput={(e) => setTyped(e.currentTarget.value)} /></label>}
        <button type="submit" class={grave ? 'danger' : 'main'} disabled={busy || !reason.trim() || !sure}>{verb}</button><button type="button" onClick={close}>Cancel</button>
      </div>
    </Opened>
  );
}

function Why({ value, set }: { value: string; set: (v: string) => void }) {
  return <label class="wide">Reason <input value={value} required maxLength={256} placeholder="Kept in the audit trail" onInput={(e) => set(e.currentTarget.value)} /></label>;
}
