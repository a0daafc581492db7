import { useState } from 'preact/hooks';
import type { Rollout } from '../api';
import { count, many, words } from '../format';
import { useRows } from '../live';
import { Progress } from '../parts/progress';
import { Badge, Empty, Listed, Page, Table, When } from '../parts/ui';
import { whom } from '../plan';
import { ended } from '../rollout';
import { go } from '../router';
import { operator } from '../session';

const shown = {
  '': { text: 'all', fits: () => true },
  open: { text: 'not ended', fits: (r: Rollout) => !ended(r.state) },
  ended: { text: 'ended', fits: (r: Rollout) => ended(r.state) },
};

export function Rollouts() {
  const rows = useRows<Rollout>('/v1/rollouts', (c) => c.kind === 'rollout');
  const [show, setShow] = useState<keyof typeof shown>('');
  const items = rows.items.filter(shown[show].fits);
  return (
    <Page title="Rollouts" lead="A rollout brings a signed release to devices in waves, watches each, and stops by itself when something is wrong."
      aside={operator.value && <a class="button main" href="/rollouts/new" data-testid="compose">New rollout</a>}>
      <div class="row filters" role="search">
        <label>Show <select value={show} onChange={(e) => setShow(e.currentTarget.value as keyof typeof shown)}>{Object.entries(shown).map(([k, v]) => <option value={k} key={k}>{v.text}</option>)}</select></label>
      </div>
      <Listed rows={rows} empty={<Empty title="No rollout has been composed.">Begin with a few canaries. A device that fails its own check goes back to the version before by itself.</Empty>}>
        {items.length === 0
          ? <Empty title={show === 'open' ? 'No rollout is open.' : 'No rollout has ended.'}><button type="button" onClick={() => setShow('')}>Show all rollouts</button></Empty>
          : (
            <Table label="Rollouts" head={['Release', 'State', 'Progress', 'Wave', 'To', 'Composed']}>
              {items.map((r) => <Row r={r} key={r.id} />)}
            </Table>
          )}
      </Listed>
    </Page>
  );
}

function Row({ r }: { r: Rollout }) {
  const to = `/rollouts/${r.id}`;
  const held = r.holds.filter((h) => !h.released_at).length;
  return (
    <tr data-testid="rollout-row" data-state={r.state} class="link" onClick={(e) => { if (!(e.target as Element).closest('a') && !getSelection()?.toString()) go(to); }}>
      <td class="name"><a href={to}>{r.release}</a><small>{r.id}</small></td>
      <td data-label="State"><Badge state={r.state} />{held > 0 && <small>{count(held)} held</small>}{r.reason && <small>{r.reason}</small>}</td>
      <td data-label="Progress">{r.total > 0 ? <Progress counts={r.counts} neutral={r.neutral} /> : <span class="dim">not begun</span>}</td>
      <td data-label="Wave"><Waves r={r} /></td>
      <td data-label="To">{whom(r.spec.filter)}</td>
      <td data-label="Composed"><When at={r.created_at} /><small>by {r.created_by}{r.approved_by && `, approved by ${r.approved_by}`}</small></td>
    </tr>
  );
}

/** Which wave it is at: one dot each. */
function Waves({ r }: { r: Rollout }) {
  const at = r.waves.findIndex((w) => w.state !== 'PASSED');
  const now = r.waves[at < 0 ? r.waves.length - 1 : at];
  if (!now) return <>–</>;
  if (r.waves.every((w) => w.state === 'PENDING')) return <>{many(r.waves.length, 'wave')}</>;
  const text = at < 0 ? 'all passed' : `${now.name}${now.state === 'PENDING' ? '' : `, ${words(now.state)}`}`;
  return <><span class="dots" aria-hidden="true">{r.waves.slice(0, 12).map((w) => <i class={w.state} key={w.name} />)}</span>{text}{r.waves.length > 1 && <small>{at < 0 ? r.waves.length : at + 1} of {r.waves.length}</small>}</>;
}
