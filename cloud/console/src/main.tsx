// The console: who is signed in, the frame, and which page is shown.
import { render } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { call, get, type Session, whenSignedOut } from './api';
import { connect, disconnect, live } from './live';
import { Audit } from './pages/audit';
import { DevicePage } from './pages/device';
import { Fleet } from './pages/fleet';
import { Releases } from './pages/releases';
import { RolloutPage } from './pages/rollout';
import { Rollouts } from './pages/rollouts';
import { SignIn } from './pages/signin';
import { WaitingPage } from './pages/waiting';
import { Empty, Mark, Page } from './parts/ui';
import { go, path, plain } from './router';
import { session } from './session';
import './style.css';
import './parts/parts.css';

function Route() {
  const [, page, rest] = path.value.split('/');
  switch (page) {
    case '': return <Fleet />;
    case 'device': return <DevicePage device={plain(rest ?? '')} key={rest} />;
    case 'rollouts': return rest ? <RolloutPage rollout={plain(rest)} key={rest} /> : <Rollouts />;
    case 'waiting': return <WaitingPage />;
    case 'releases': return <Releases />;
    case 'audit': return <Audit />;
  }
  return <Page title="No such page"><Empty title="There is nothing at this address."><a href="/">Back to the fleet</a></Empty></Page>;
}

const nav = [['/', 'Fleet'], ['/waiting', 'Waiting'], ['/rollouts', 'Rollouts'], ['/releases', 'Releases'], ['/audit', 'Audit']] as const;

function Live() {
  const text = live.value === 'on' ? 'Live' : live.value === 'off' ? 'Reconnecting' : 'Connecting';
  return <span class={`live ${live.value}`} data-testid="live-state" data-state={live.value} role="status">{text}</span>;
}

function Frame() {
  const s = session.value!;
  const here = (to: string) => (to === '/' ? path.value === '/' || path.value.startsWith('/device') : path.value.startsWith(to));
  const out = async () => {
    await call('DELETE', '/v1/session').catch(() => undefined);
    disconnect();
    session.value = null;
    go('/');
  };
  return (
    <>
      <a class="skip" href="#main">Skip to content</a>
      <header class={live.value === 'off' ? 'cut' : undefined}>
        <a class="brand" href="/"><Mark />Tillward</a>
        <nav aria-label="Main">{nav.map(([to, text]) => <a href={to} key={to} aria-current={here(to) ? 'page' : undefined}>{text}</a>)}</nav>
        <Live />
        <span class="who" title={`tenant ${s.tenant}`}>{s.name}{s.name !== s.role && `, ${s.role}`}</span>
        <button type="button" class="quiet" onClick={() => void out()}>Sign out</button>
        {live.value === 'off' && <p class="banner" role="alert">The live connection is lost, so what you see may be old. The console goes on trying; nothing needs to be loaded again.</p>}
      </header>
      <Route />
    </>
  );
}

function App() {
  const [asked, setAsked] = useState(false);
  useEffect(() => {
    whenSignedOut(() => { disconnect(); session.value = null; });
    get<Session>('/v1/session').then((s) => { session.value = s; }).catch(() => undefined).finally(() => setAsked(true));
  }, []);
  const signedIn = session.value !== null;
  useEffect(() => { if (signedIn) connect(); }, [signedIn]);
  if (session.value) return <Frame />;
  return asked ? <SignIn done={(s) => { session.value = s; }} /> : null;
}

render(<App />, document.getElementById('app')!);
