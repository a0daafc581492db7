import { expect, test, vi } from 'vitest';

test('only links to pages of the console are followed here', async () => {
  const heard: Record<string, (e: unknown) => void> = {};
  const listen = (kind: string, f: (e: unknown) => void) => { heard[kind] = f; };
  vi.stubGlobal('location', { pathname: '/', origin: 'https://fleet.example', search: '' });
  vi.stubGlobal('history', { pushState: () => undefined });
  vi.stubGlobal('scrollTo', () => undefined);
  vi.stubGlobal('addEventListener', listen);
  vi.stubGlobal('document', { addEventListener: listen });
  await import('./router');
  const followed = (over: Record<string, unknown>, attributes: string[] = []) => {
    const a = { origin: 'https://fleet.example', hash: '', pathname: '/device/d1', search: '', target: '', hasAttribute: (n: string) => attributes.includes(n), ...over };
    let kept = false;
    heard.click!({ target: { closest: () => a }, button: 0, preventDefault: () => { kept = true; } });
    return kept;
  };
  expect(followed({})).toBe(true);
  expect(followed({ origin: 'https://elsewhere.example' })).toBe(false);
  expect(followed({ pathname: '/v1/devices/d1/peripherals/receipt/statistics.xml' }, ['download'])).toBe(false);
  vi.unstubAllGlobals();
});
