import { useState } from 'preact/hooks';
import { post, Problem, type Session } from '../api';
import { Fault } from '../parts/ui';

export function SignIn({ done }: { done: (s: Session) => void }) {
  const [token, setToken] = useState('');
  const [error, setError] = useState('');
  const [busy, setBusy] = useState(false);
  const submit = async (e: Event) => {
    e.preventDefault();
    setBusy(true);
    try {
      done(await post<Session>('/v1/session', { token: token.trim() }));
    } catch (err) {
      setError(err instanceof Problem && err.status === 401 ? 'This token is not known, has expired or was revoked.' : (err as Error).message);
    }
    setBusy(false);
  };
  return (
    <main id="main" class="signin">
      <form class="card" onSubmit={(e) => void submit(e)}>
        <h1>Tillward</h1>
        <p>Sign in with an operator token. The first one is in the file <code>admin.token</code> in the service's data folder; <code>tillward token create</code> makes more.</p>
        <label for="token">Operator token</label>
        <input id="token" data-testid="signin-token" type="password" autocomplete="current-password" required value={token}
          onInput={(e) => setToken(e.currentTarget.value)} placeholder="twt_…" />
        <Fault text={error} />
        <button type="submit" class="main" data-testid="signin-submit" disabled={busy || !token}>Sign in</button>
      </form>
    </main>
  );
}
