// What a person may do about a rollout as it stands. The bar stays in view, so
// that Pause is one press away wherever the page is scrolled to.
import { useState } from 'preact/hooks';
import { id, post, type Rollout } from '../api';
import { count, percent } from '../format';
import { pieces } from '../rollout';
import { operator, session } from '../session';
import { Reasoned } from './standing';
import { Badge, Card, Operators, Outcome, useAct } from './ui';

type Grave = 'abort' | 'complete' | 'retry';
const forms: Record<Grave, { verb: string; text: string; done: string; word?: string }> = {
  abort: { verb: 'Abort', text: 'Ends it for good: nothing more is offered, and what installs now finishes. Devices that run the release keep it; going back is a rollout of a newer release.', done: 'Aborting: what installs now finishes.', word: 'abort' },
  complete: { verb: 'Complete', text: 'Ends it without those who are left. They are not offered the release any more, unless it takes joiners.', done: 'Completed.' },
  retry: { verb: 'Try again', text: 'Offers the release again to every device that failed or ran out of time. Refusals and releases that did not prove themselves stay as they are.', done: 'They are offered it again.' },
};

export function Moves({ r, moved }: { r: Rollout; moved: () => void }) {
  const [open, setOpen] = useState<Grave | ''>('');
  const { busy, error, done, act } = useAct();
  const run = async (verb: string, reason: string, text: string) => { if (await act(() => post(`/v1/rollouts/${id(r.id)}/${verb}`, { reason }), text)) { setOpen(''); moved(); } };
  const again = (r.counts.FAILED ?? 0) + (r.counts.TIMED_OUT ?? 0);
  const opens = (o: Grave) => ({ type: 'button' as const, 'aria-expanded': open === o, onClick: () => setOpen(open === o ? '' : o) });
  const { pieces: all, total } = pieces(r.counts, r.neutral);
  const good = all.find((p) => p.part === 'done')?.n ?? 0;
  return (
    <section class="reach card" aria-label="Acts" data-testid="moves">
      {open && (
        <Reasoned verb={forms[open].verb} word={forms[open].word} grave={open === 'abort'} busy={busy} close={() => setOpen('')} send={(reason) => void run(open, reason, forms[open].done)}>{forms[open].text}</Reasoned>
      )}
      <Outcome done={done} error={error} />
      <div class="row acts">
        <p class="stand"><Badge state={r.state} testid="rollout-state" /> <strong>{count(good)} of {count(total)}</strong> done{total > 0 && ` (${percent(good, total)})`}</p>
        {operator.value
          ? <>
            {r.state === 'RUNNING' && <button type="button" class="main" data-testid="pause" disabled={busy} onClick={() => void run('pause', '', 'Paused: nothing more is offered; what is under way goes on.')}>Pause</button>}
            {r.state === 'PAUSED' && <button type="button" class="main" data-testid="resume" disabled={busy} onClick={() => void run('resume', '', 'It goes on.')}>Resume</button>}
            {again > 0 && <button {...opens('retry')}>Retry {count(again)}…</button>}
            <button {...opens('complete')}>Complete…</button>
            <button class="danger" data-testid="abort-open" {...opens('abort')}>Abort…</button>
          </>
          : <Operators what="moving a rollout">{null}</Operators>}
      </div>
    </section>
  );
}

/** What stands between a rollout that has not begun and its start. */
export function Before({ r, moved }: { r: Rollout; moved: () => void }) {
  const [reason, setReason] = useState('');
  const { busy, error, done, act } = useAct();
  // With the version that is on the screen: nobody approves what somebody else has changed meanwhile.
  const run = async (verb: string, text: string) => { if (await act(() => post(`/v1/rollouts/${id(r.id)}/${verb}`, { reason: reason.trim(), version: r.version }), text)) { setReason(''); moved(); } };
  const own = session.value?.name === r.created_by;
  const said = {
    DRAFT: ['This is a draft', 'Nothing happens before it is handed in.'],
    AWAITING_APPROVAL: ['Waits for approval', own ? 'You composed it, so somebody else has to approve it.' : `${r.created_by} composed it. Read below whom it reaches, in which waves and within which limits.`],
    READY: ['Ready to start', r.approved_by ? `Approved by ${r.approved_by}.` : 'Nobody else has to approve it.'],
  }[r.state] ?? ['', ''];
  const off = busy || !reason.trim();
  return (
    <Card title={said[0]!} note={said[1]}>
      <Operators what="moving a rollout">
        <div class="row inset">
          <label class="wide">Reason <input value={reason} maxLength={512} placeholder={r.state === 'AWAITING_APPROVAL' ? 'Kept in the audit trail; needed to deny' : 'Kept in the audit trail; needed to discard'} onInput={(e) => setReason(e.currentTarget.value)} /></label>
          {r.state === 'DRAFT' && <><button type="button" class="main" data-testid="submit" disabled={busy} onClick={() => void run('submit', 'Handed in.')}>Submit</button><a class="button" href={`/rollouts/${r.id}/edit`}>Change…</a></>}
          {r.state === 'AWAITING_APPROVAL' && <><button type="button" class="main" data-testid="approve" disabled={busy || own} onClick={() => void run('approve', 'Approved.')}>Approve</button><button type="button" class="danger" data-testid="deny" disabled={off} onClick={() => void run('deny', 'Denied.')}>Deny</button></>}
          {r.state === 'READY' && <button type="button" class="main" data-testid="start" disabled={busy} onClick={() => void run('start', 'Started.')}>Start</button>}
          <button type="button" class="danger" disabled={off} onClick={() => void run('abort', 'Discarded.')}>Discard</button>
        </div>
      </Operators>
      <Outcome done={done} error={error} />
    </Card>
  );
}
