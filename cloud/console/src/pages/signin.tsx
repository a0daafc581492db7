import { useEffect, useState } from 'preact/hooks';
import { post, Problem, type Session } from '../api';
import { Fault, Mark } from '../parts/ui';

export function SignIn({ done }: { done: (s: Session) => void }) {
  useEffect(() => { document.title = 'Sign in – Tillward'; }, []);
  const [token, setToken] = useState('');
  const [error, setError] = useState('');
  const [busy, setBusy] = useState(false);
  const submit = async (e: Event) => {
    e.preventDefault();
    setBusy(true);
    try {
      done(await post<Session>('/v1/session', { token: token.trim() }));
    } catch (err) {
      setError(err instanceof Problem && err.status === 401 ? 'This token is not known, has expired or was revoked. Copy it whole, from twt_ to the end.' : (err as Error).message);
    }
    setBusy(false);
  };
  return (
    <main id="main" class="signin">
      <form class="card" onSubmit={(e) => void submit(e)}>
        <h1><Mark />Tillward</h1>
        <p class="dim">Fleet service for tills. Sign in with an operator token.</p>
        <label for="token">Operator token</label>
        <input id="token" data-testid="signin-token" type="password" autocomplete="current-password" required value={token}
          onInput={(e) => setToken(e.currentTarget.value)} placeholder="twt_…" />
        <Fault text={error} />
        <button type="submit" class="main" data-testid="signin-submit" disabled={busy || !token}>{busy ? 'Signing in…' : 'Sign in'}</button>
        <p class="hint">No token yet? The service wrote the first one to the file <code>admin.token</code> of its data folder at its first start. <code>tillward token create</code> makes one for each colleague.</p>
      </form>
    </main>
  );
}
