import { address, asked, type Asked, classes, lines, query } from '../audit';
import type { List, Site } from '../api';
import { useLive, useSettled } from '../live';
import { Entries, useSearch } from '../parts/found';
import { Trail } from '../parts/trail';
import { Card, Empty, Fault, Loading, More, Page, save, When } from '../parts/ui';
import { rename, search } from '../router';

export function Audit() {
  return (
    <Page title="Audit" lead="What operators, the service and every till did, and what was refused: all trails, newest first.">
      <Search />
      <Trail title="The service's own trail" path="/v1/audit" concerns={(c) => c.kind !== 'event' && c.kind !== 'device'} />
    </Page>
  );
}

function Search() {
  const a = asked(search.value);
  const set = (part: Partial<Asked>) => rename(address({ ...a, ...part }));
  const typed = useSettled(JSON.stringify([a.who, a.what, a.device, a.subject]));
  const [who, what, device, subject] = typed ? JSON.parse(typed) as string[] : ['', '', '', ''];
  const q = query({ ...a, who: who!, what: what!, device: device!, subject: subject! }, Date.now());
  const found = useSearch(String(q), !q.has('to'));
  const placed = useLive<List<Site>>('/v1/sites', () => false);
  const sites = [...new Set([a.site, ...(placed.data?.items ?? []).map((s) => s.name), ...found.items.map((e) => e.site)])].filter(Boolean).sort();
  const kinds = [...new Set([...classes.map((c) => `${c}.`), ...found.items.map((e) => e.kind)])].sort();
  const text = (name: 'who' | 'device' | 'subject', label: string, hint: string) => (
    <label>{label} <input value={a[name]} placeholder={hint} data-testid={`ask-${name}`} onInput={(e) => set({ [name]: e.currentTarget.value })} /></label>
  );
  const choice = (name: 'severity' | 'outcome' | 'trail' | 'since' | 'clock', label: string, of: Record<string, string>) => (
    <label>{label} <select value={a[name]} data-testid={`ask-${name}`} onChange={(e) => set({ [name]: e.currentTarget.value })}>{Object.entries(of).map(([k, v]) => <option key={k} value={k}>{v}</option>)}</select></label>
  );
  const filtered = address(a) !== '/audit';
  return (
    <Card title="Search" note="Entries of the service and of all tills." aside={found.items.length > 0 && (
      <button type="button" data-testid="found-save" onClick={() => save('trail.jsonl', lines(found.items))}>Download as JSON lines</button>
    )}>
      <form class="row filters" role="search" aria-label="Audit trails" onSubmit={(e) => e.preventDefault()}>
        {text('who', 'Who', 'Operator, till or part')}
        <label>What <input value={a.what} placeholder="update.failed or update." list="kinds" data-testid="ask-what" onInput={(e) => set({ what: e.currentTarget.value })} /></label>
        <datalist id="kinds">{kinds.map((k) => <option value={k} key={k} />)}</datalist>
        {text('device', 'Till', 'Device id')}
        <label>Site <select value={a.site} data-testid="ask-site" onChange={(e) => set({ site: e.currentTarget.value })}><option value="">any</option>{sites.map((s) => <option key={s}>{s}</option>)}</select></label>
        {text('subject', 'Subject', 'Rollout, token, printer…')}
        {choice('severity', 'Severity', { '': 'any', alarm: 'alarm', warn: 'warning', info: 'info' })}
        {choice('outcome', 'Outcome', { '': 'any', success: 'success', failure: 'failure', refused: 'refused' })}
        {choice('trail', 'Trail', { '': 'all', service: 'of the service', devices: 'of tills' })}
        {choice('since', 'Time', { '': 'any', '1h': 'last hour', '24h': 'last 24 hours', '7d': 'last 7 days', '30d': 'last 30 days', '90d': 'last 90 days', own: 'from … to' })}
        {a.since === 'own' && <>
          <label>From <input type="datetime-local" value={a.from} onInput={(e) => set({ from: e.currentTarget.value })} /></label>
          <label>To <input type="datetime-local" value={a.to} onInput={(e) => set({ to: e.currentTarget.value })} /></label>
        </>}
        {a.since && choice('clock', 'By', { '': 'when it was stored', event: 'when it happened' })}
        {filtered && <button type="button" class="quiet" onClick={() => rename('/audit')}>Clear</button>}
      </form>
      <Fault text={found.error} retry={found.again} />
      {found.busy && found.items.length === 0 && <Loading />}
      {!found.busy && !found.error && found.items.length === 0 && !found.more && (
        <Empty title={filtered ? 'No entry matches.' : 'No entries yet.'}>{filtered ? 'Take a filter away, or look further back.' : 'Sign-ins, enrolments, commands and updates are written here.'}</Empty>
      )}
      {found.items.length > 0 && <Entries items={found.items} pick={set} />}
      <p class="dim" role="status">{found.busy && found.items.length > 0 ? 'Searching…' : found.reached && <>{found.items.length} found, back to <When at={found.reached} />.</>}</p>
      <More rows={found} />
    </Card>
  );
}
