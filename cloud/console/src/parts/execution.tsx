// One device's part in a rollout, as it is told in tables.
import type { Execution } from '../api';
import { bytes, sentence, words } from '../format';
import { neutral, wait } from '../rollout';
import { Badge } from './ui';

/** Where it stands, and for what it waits. */
export function State({ e }: { e: Execution }) {
  return <><Badge state={e.state} as={neutral(e) ? 'dim' : undefined} />{e.state === 'WAITING' && <small>for {wait(e.reason)}</small>}{e.attempt > 1 && <small>attempt {e.attempt}</small>}</>;
}

/** What it says of itself. */
export function Detail({ e }: { e: Execution }) {
  return <>{e.reason && e.state !== 'WAITING' && <strong>{words(e.reason.replaceAll('-', ' '))}</strong>}<span>{e.text && sentence(e.text)}</span></>;
}

/** How much is there, and what of it did not come over the line. */
export function Fetched({ e }: { e: Execution }) {
  const b = e.bytes;
  const all = b.wire + b.peer + b.medium + b.reused;
  const loading = e.total > 0 && e.done < e.total && e.state === 'DOWNLOADING';
  if (e.total === 0 && all === 0) return <>–</>;
  return (
    <>
      {loading && <progress value={e.done} max={e.total} aria-label="fetched" />}
      <small>{loading ? `${bytes(e.done)} of ${bytes(e.total)}` : e.total > 0 && bytes(e.total)}</small>
      {all > 0 && <small>{bytes(b.wire)} from the service</small>}
    </>
  );
}
