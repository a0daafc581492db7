import { afterEach, expect, test, vi } from 'vitest';
import { call, get, Problem, rows, upload, whenSignedOut } from './api';

const answer = (status: number, body?: unknown) => {
  const f = vi.fn((_: string, __?: RequestInit) => Promise.resolve(new Response(body === undefined ? null : JSON.stringify(body), { status })));
  vi.stubGlobal('fetch', f);
  return f;
};
afterEach(() => { vi.unstubAllGlobals(); whenSignedOut(() => undefined); });

test('every request carries the header that another site cannot send', async () => {
  const f = answer(200, {});
  await call('POST', '/v1/commands', { verb: 'identify' });
  expect(f.mock.calls[0]?.[1]).toEqual({ method: 'POST', headers: { 'X-Tillward': '1', 'Content-Type': 'application/json' }, body: '{"verb":"identify"}' });
});

test('a refusal says what the service says', async () => {
  answer(422, { status: 422, detail: 'no device is in group x.', errors: [{ message: 'choose another' }] });
  await expect(get('/v1/x')).rejects.toEqual(new Problem(422, 'no device is in group x. choose another'));
  answer(502);
  await expect(get('/v1/x')).rejects.toThrow('answered 502');
});

test('no network is a sentence, not a stack', async () => {
  vi.stubGlobal('fetch', () => Promise.reject(new TypeError('fetch failed')));
  await expect(get('/v1/x')).rejects.toThrow('cannot be reached');
});

test('an ended session signs out; a wrong token at the door does not', async () => {
  const out = vi.fn();
  whenSignedOut(out);
  answer(401, { detail: 'sign in' });
  await expect(call('POST', '/v1/session', { token: 'x' })).rejects.toThrow();
  expect(out).not.toHaveBeenCalled();
  await expect(get('/v1/devices')).rejects.toThrow();
  expect(out).toHaveBeenCalledTimes(1);
});

test('nothing is an answer, too', async () => {
  answer(204);
  await expect(call('DELETE', '/v1/session')).resolves.toBeUndefined();
});

test('a list is read by its keys, page after page, and not further than asked', async () => {
  const all = Array.from({ length: 2500 }, (_, i) => i);
  const f = vi.fn((path: string, _?: RequestInit) => {
    const q = new URL(path, 'http://tillward').searchParams;
    const at = Number(q.get('after') ?? 0);
    const end = at + Number(q.get('limit'));
    return Promise.resolve(new Response(JSON.stringify({ items: all.slice(at, end), next: end < all.length ? String(end) : '' })));
  });
  vi.stubGlobal('fetch', f);
  await expect(rows('/v1/x?q=a', 50)).resolves.toEqual({ items: all.slice(0, 50), next: '50' });
  expect(f.mock.calls.map(([path]) => path)).toEqual(['/v1/x?q=a&limit=50']);
  await expect(rows('/v1/x', 1600)).resolves.toEqual({ items: all.slice(0, 1600), next: '1600' });
  await expect(rows('/v1/x', 3200)).resolves.toEqual({ items: all, next: '' });
  expect(f.mock.calls.map(([path]) => path).slice(1)).toEqual([
    '/v1/x?limit=1000', '/v1/x?limit=600&after=1000', '/v1/x?limit=1000', '/v1/x?limit=1000&after=1000', '/v1/x?limit=1000&after=2000',
  ]);
});

test('an empty page is not the end of a filtered list; a page that leads to itself is', async () => {
  const pages: Record<string, { items: number[]; next: string }> = { '': { items: [], next: 'a' }, a: { items: [7], next: 'b' }, b: { items: [], next: 'b' } };
  vi.stubGlobal('fetch', (path: string) => Promise.resolve(new Response(JSON.stringify(pages[new URL(path, 'http://tillward').searchParams.get('after') ?? '']))));
  await expect(rows('/v1/audit?severity=alarm', 50)).resolves.toEqual({ items: [7], next: '' });
});

test('a file goes as it is, under the type it is asked for', async () => {
  const f = answer(202);
  await expect(upload('/v1/manifests', new Blob(['{}'], { type: 'text/plain' }), 'application/json')).resolves.toBeUndefined();
  const init = f.mock.calls[0]?.[1];
  expect(init?.headers).toEqual({ 'X-Tillward': '1', 'Content-Type': 'application/json' });
  await expect((init?.body as Blob).text()).resolves.toBe('{}');
});
