import { expect, test } from 'vitest';
import { ago, bytes, count, expiry, gaps, many, marks, measure, pause, percent, reading, reason, sensor, sentence, seriesName, short, span, tone, words } from './format';

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

test('a sensor that cannot tell is not healthy', () => {
  expect(reading('CoverOpen', 'Unknown')).toEqual({ text: 'cannot tell', tone: 'dim' });
  expect(reading('CoverOpen', '').tone).toBe('dim');
  expect(reading('CoverOpen', 'Yes').tone).toBe('warn');
  expect(reading('CoverOpen', 'No').tone).toBe('good');
  expect(reading('SCPresentSensor', 'Yes').tone).toBe('dim');
  expect(reading('DrawerOpened', 'Yes').tone).toBe('dim');
  expect(reading('M_DrawerStuck', 'Yes').tone).toBe('warn');
  expect(reading('CoverOpen', 'No', true)).toEqual({ text: 'was no', tone: 'dim' });
  expect(reading('CoverOpen', 'Unknown', true).text).toBe('cannot tell');
  expect(sensor('SCPresentSensor')).toBe('Card present');
  expect(sensor('RecNearEnd')).toBe('Paper near end');
  expect(sensor('Drawer1Opened')).toBe('Drawer 1 opened');
});

test('reasons and series read as words', () => {
  expect(reason('REC_NEAREMPTY')).toBe('Paper nearly empty');
  expect(reason('M_CARD_MUTE')).toBe('Card mute');
  expect(reason('PS_OFF_OFFLINE')).toBe('Off offline');
  expect(seriesName('M_PaperEmptyCount')).toBe('Paper empty');
  expect(seriesName('memory_free_bytes')).toBe('Memory free');
});

test('what the service says becomes a sentence', () => {
  expect(sentence('no release says how model x boots')).toBe('No release says how model x boots.');
  expect(sentence('Done.')).toBe('Done.');
  expect(sentence('')).toBe('');
});

test('a certificate warns a week before its end', () => {
  const in_ = (d: number) => expiry(new Date(d * 86400e3).toISOString(), 0);
  expect(in_(90)).toEqual({ text: '90 days left', tone: 'good' });
  expect(in_(6).tone).toBe('warn');
  expect(in_(-3)).toEqual({ text: 'expired 3 days ago', tone: 'bad' });
  expect(expiry(null, 0).tone).toBe('dim');
});

test('counts and shares are written for people', () => {
  expect(count(4212)).toBe('4,212');
  expect(many(1, 'device')).toBe('1 device');
  expect(many(1200, 'device')).toBe('1,200 devices');
  expect(percent(1, 3)).toBe('33.3 %');
  expect(percent(2, 2)).toBe('100 %');
  expect(percent(0, 0)).toBe('0 %');
});

test('waiting grows, is spread and ends at half a minute', () => {
  expect(pause(0, 0)).toBe(500);
  expect(pause(0, 1)).toBe(1000);
  expect(pause(3, 1)).toBe(8000);
  expect(pause(50, 1)).toBe(30_000);
});

test('a chart does not draw a line through time without measurements', () => {
  expect(gaps([[1000, 1], [2000, 2], [60_000, 3]], 1000)).toEqual([[1, 2, 31, 60], [1, 2, null, 3]]);
  expect(gaps([], 1000)).toEqual([[], []]);
});

test('a value carries the unit of its name', () => {
  expect(measure('memory_free_bytes', 26_000_000_000)).toBe('24.2 GiB');
  expect(measure('cpu_temp_mc', 41_250)).toBe('41.3 °C');
  expect(measure('uptime_s', 7200)).toBe('2 h');
  expect(measure('PaperCutCount', 1200)).toBe('1.2K');
});

test('no two marks of an axis read the same', () => {
  expect(marks('memory_free_bytes', [22.9 * 2 ** 30, 22.95 * 2 ** 30, 23 * 2 ** 30])).toEqual(['22.90 GiB', '22.95 GiB', '23.00 GiB']);
  expect(marks('memory_free_bytes', [0, 2 ** 30])).toEqual(['0 B', '1 GiB']);
  expect(marks('temp_mc', [41_000, 41_500])).toEqual(['41.0 °C', '41.5 °C']);
  expect(marks('HoursPoweredCount', [1000, 1001])).toEqual(['1K', '1.001K']);
  expect(marks('samples', [0, 2.5, 5, 7.5])).toEqual(['0', '2.5', '5', '7.5']);
  expect(marks('spool_depth', [0, 50, 100])).toEqual(['0', '50', '100']);
  expect(marks('memory_free_bytes', [24.6e9, 24.7e9])).toEqual(['22.91 GiB', '23.00 GiB']);
  expect(marks('x', [])).toEqual([]);
  expect(marks('x', [1e-9, 2e-9])).toEqual(['0', '0']);
});
