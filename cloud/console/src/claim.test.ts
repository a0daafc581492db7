import { expect, test } from 'vitest';
import { check, read } from './claim';

// Made by provisioning/owner.
const codes = [
  '0CDDP-BB4XT-PWXPN-PYMP3-8', 'J9WZT-D721T-PBKCC-JWEXZ-E', 'QH6T7-ZC8M9-CBMHC-V2MWH-5', 'F5DNY-NWGVV-22ZSM-040WY-M',
  '00000-00000-00000-00000-0', 'ZZZZZ-ZZZZZ-ZZZZZ-ZZZZZ-A', '01234-56789-ABCDE-FGHJK-J',
];
const device = 'aeaqcaibaeaqcaibaeaqcaib';

test('a code of a label is whole, however it is typed', () => {
  for (const code of codes) {
    expect(read(code)).toMatchObject({ code, device: '', whole: true, tone: 'good' });
    expect(read(` ${code.toLowerCase().replaceAll('-', ' ')} `)).toMatchObject({ code, whole: true });
    expect(read(code.replaceAll('-', ''))).toMatchObject({ code, whole: true });
  }
  expect(read('ol234-56789-abcde-fghjk-j')).toMatchObject({ code: '01234-56789-ABCDE-FGHJK-J', whole: true });
});

test('the label\'s square names the device, too', () => {
  expect(read(`tillward:claim?d=${device}&c=${codes[0]}`)).toMatchObject({ code: codes[0], device, whole: true });
  expect(read(`TILLWARD:CLAIM?d=${device}&c=${codes[0]}`)).toMatchObject({ device, whole: true });
  for (const bad of [`tillward:claim?d=${device}`, `tillward:claim?d=short&c=${codes[0]}`, 'tillward:claim?d=']) {
    expect(read(bad)).toMatchObject({ whole: false, tone: 'bad' });
  }
});

test('one wrong character and two swapped neighbours always show', () => {
  const alphabet = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
  const plain = codes[3]!.replaceAll('-', '');
  for (let i = 0; i < plain.length; i++) {
    for (const c of alphabet) {
      if (c !== plain[i]) expect(read(plain.slice(0, i) + c + plain.slice(i + 1)).whole, `${c} at ${i}`).toBe(false);
    }
    const swapped = plain.slice(0, i) + (plain[i + 1] ?? '') + plain[i] + plain.slice(i + 2);
    if (swapped !== plain) expect(read(swapped).whole, `swapped at ${i}`).toBe(false);
  }
  expect(check(plain.slice(0, 20))).toBe(plain[20]);
});

test('what is missing or too much is said, and nothing is an answer', () => {
  expect(read('')).toMatchObject({ whole: false, tone: 'dim' });
  expect(read('0CDDP-BB4')).toMatchObject({ code: '0CDDP-BB4', whole: false, tone: 'dim', say: '8 of 21' });
  expect(read(`${codes[0]}77`)).toMatchObject({ whole: false, tone: 'bad', say: '2 too many: a code has 21 letters and digits.' });
  expect(read('0CDDU')).toMatchObject({ whole: false, tone: 'bad', say: 'No code holds “U”. Compare with the label.' });
});
