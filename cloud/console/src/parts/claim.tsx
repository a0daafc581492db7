import { useState } from 'preact/hooks';
import { post, type Waiting } from '../api';
import { read } from '../claim';
import { Outcome, useAct } from './ui';

/** Claims a device by the code on its label, typed, pasted or scanned. */
export function Claim({ waiting, device, choose, claimed }: { waiting: Waiting[]; device: string; choose: (device: string) => void; claimed: () => void }) {
  const [text, setText] = useState('');
  const [place, setPlace] = useState({ site: '', group: '' });
  const [last, setLast] = useState('');
  const { busy, error, done, act } = useAct();
  const r = read(text);
  const whose = r.device || device;
  const claim = async (e: Event) => {
    e.preventDefault();
    const body = { ...(r.device ? { uri: `tillward:claim?d=${r.device}&c=${r.code}` } : { code: r.code, ...(device && { device }) }), ...place };
    const ok = await act(async () => { setLast((await post<{ device: string }>('/v1/claims', body)).device); }, 'Claimed. The device joins by itself within minutes.');
    if (ok) { setText(''); choose(''); claimed(); }
  };
  return (
    <form class="inset" onSubmit={(e) => void claim(e)}>
      <div class="row">
        <label class="wide">Claim code <input id="claim-code" class="code" data-testid="claim-code" value={text} required maxLength={128} autocomplete="off" autocapitalize="characters" spellcheck={false}
          aria-invalid={r.tone === 'bad'} aria-describedby="claim-says" placeholder="XXXXX-XXXXX-XXXXX-XXXXX-X" onInput={(e) => setText(e.currentTarget.value)} /></label>
        <label>Device <select value={whose} disabled={r.device !== ''} onChange={(e) => choose(e.currentTarget.value)}>
          <option value="">found by its code</option>
          {r.device && !waiting.some((w) => w.device === r.device) && <option value={r.device}>{r.device}</option>}
          {waiting.map((w) => <option value={w.device} key={w.device}>{w.serial || w.device}</option>)}
        </select></label>
        <label>Site <input value={place.site} maxLength={64} onInput={(e) => setPlace({ ...place, site: e.currentTarget.value })} /></label>
        <label>Group <input value={place.group} maxLength={64} onInput={(e) => setPlace({ ...place, group: e.currentTarget.value })} /></label>
        <button type="submit" class="main" data-testid="claim-send" disabled={busy || !r.whole}>Claim</button>
      </div>
      <p id="claim-says" class={`says ink ${r.tone}`} data-testid="claim-says" aria-live="polite">{r.tone !== 'dim' && r.code && <code>{r.code}</code>} {r.say}</p>
      <Outcome done={done} error={error} />
      {done && last && <p><a href={`/device/${last}`}>Its page</a> opens when it has joined.</p>}
    </form>
  );
}
