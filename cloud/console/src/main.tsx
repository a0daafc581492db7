// The console: who is signed in, the frame, and which page is shown.
import { render } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { alarms, concern, seen } from './alarms';
import { type AuditEvent, call, get, type List, type Session, whenSignedOut } from './api';
import { connect, disconnect, live, useLive } from './live';
import { Alarms } from './pages/alarms';
import { Audit } from './pages/audit';
import { Compose } from './pages/compose';
import { DevicePage } from './pages/device';
import { Firmware } from './pages/firmware';
import { Fleet } from './pages/fleet';
import { PeripheralPage } from './pages/peripheral';
import { Peripherals } from './pages/peripherals';
import { Releases } from './pages/releases';
import { RolloutPage } from './pages/rollout';
import { Rollouts } from './pages/rollouts';
import { Settings } from './pages/settings';
import { Service } from './pages/service';
import { SignIn } from './pages/signin';
import { Sites } from './pages/sites';
import { WaitingPage } from './pages/waiting';
import { Empty, Mark, Page } from './parts/ui';
import { go, path, plain } from './router';
import { session } from './session';
import './style.css';
import './parts/parts.css';
import './parts/rollouts.css';
import './parts/peripherals.css';
import './parts/service.css';

function Route() {
  const [, page, rest, more] = path.value.split('/');
  switch (page) {
    case '': return <Fleet />;
    case 'peripherals': return <Peripherals />;
    case 'device':
      if (more) return <PeripheralPage device={plain(rest ?? '')} peripheral={plain(more)} key={path.value} />;
      return <DevicePage device={plain(rest ?? '')} key={rest} />;
    case 'rollouts':
      if (!rest) return <Rollouts />;
      if (rest === 'new') return <Compose release={more && plain(more)} key={path.value} />;
      if (more === 'edit') return <Compose draft={plain(rest)} key={path.value} />;
      if (more === 'again') return <Compose like={plain(rest)} key={path.value} />;
      return <RolloutPage rollout={plain(rest)} key={rest} />;
    case 'sites': return <Sites />;
    case 'releases': return <Releases />;
    case 'waiting': return <WaitingPage />;
    case 'firmware': return <Firmware />;
    case 'alarms': return <Alarms />;
    case 'audit': return <Audit />;
    case 'service': return <Service />;
    case 'settings': return <Settings />;
  }
  return <Page title="No such page"><Empty title="There is nothing at this address."><a href="/">Back to the fleet</a></Empty></Page>;
}

const nav = [
  ['/', 'Fleet'], ['/peripherals', 'Peripherals'], ['/alarms', 'Alarms'], ['/waiting', 'Waiting'], ['/rollouts', 'Rollouts'], ['/releases', 'Releases'], ['/sites', 'Sites'],
  ['/firmware', 'Firmware'], ['/audit', 'Audit'], ['/service', 'Service'], ['/settings', 'Settings'],
] as const;

/** How many alarms nobody here has looked at. */
function Count() {
  const newest = useLive<List<AuditEvent>>(`${alarms}&limit=100`, concern, 30_000);
  const n = (newest.data?.items ?? []).filter((e) => e.seq > seen.value).length;
  return n > 0 ? <span class="count" data-testid="alarm-count">{n >= 100 ? '99+' : n}<span class="hidden"> not looked at</span></span> : null;
}

function Live() {
  const text = live.value === 'on' ? 'Live' : live.value === 'off' ? 'Reconnecting' : 'Connecting';
  return <span class={`live ${live.value}`} data-testid="live-state" data-state={live.value} role="status">{text}</span>;
}

function Frame() {
  const s = session.value!;
  const here = (to: string) => (to === '/' ? path.value === '/' || path.value.startsWith('/device') : path.value.startsWith(to));
  const menu = useRef<HTMLElement>(null);
  // On a phone the menu is wider than the page; what is open is in its middle.
  useEffect(() => { menu.current?.querySelector('[aria-current]')?.scrollIntoView({ block: 'nearest', inline: 'center' }); }, [path.value]);
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
        <nav aria-label="Main" ref={menu}>{nav.map(([to, text]) => <a href={to} key={to} aria-current={here(to) ? 'page' : undefined}>{text}{to === '/alarms' && <> <Count /></>}</a>)}</nav>
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
