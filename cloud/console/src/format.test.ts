import { expect, test } from 'vitest';
import { ago, bytes, sensor, short, span, tone, words } from './format';

test('spans are said in the unit that matters', () => {
  expect(span(14 * 60_000)).toBe('14 min');
  expect(span(59_400)).toBe('59 s');
  expect(span(90 * 60_000)).toBe('1 h 30 min');
  expect(span(72 * 3600_000)).toBe('3 days');
  expect(span(-5)).toBe('0 s');
});

test('never is a word', () => expect(ago(null, 0)).toBe('never'));

test('what is unknown is never good', () => {
  for (const s of ['Unknown', 'PS_UNKNOWN', '', 'SOMETHING_NEW']) expect(tone(s)).toBe('dim');
  expect(tone('OK')).toBe('good');
  expect(tone('quarantined')).toBe('bad');
});

test('sizes and words', () => {
  expect(bytes(512)).toBe('512 B');
  expect(bytes(14_000_000)).toBe('13.4 MiB');
  expect(words('ROLLED_BACK')).toBe('rolled back');
  expect(short(19_840_000_000)).toBe('19.84B');
  expect(sensor('CoverOpen')).toBe('Cover open');
  expect(sensor('M_CutterError')).toBe('Cutter error');
});
