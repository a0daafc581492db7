// The claim code on a device's label, read while it is typed: same alphabet
// and check character as provisioning/owner/claim.go, so that a slip is seen
// before it is sent. Whether the code is the right one only the service knows.
import type { Tone } from './format';

const alphabet = '0123456789ABCDEFGHJKMNPQRSTVWXYZ'; // Crockford: no I, L, O, U
const length = 20; // and the check character
const uri = /^tillward:claim\?d=/i;

/** What was typed so far: the code as it is printed, the device when the label named it, and what to say about it. */
export interface Reading { code: string; device: string; whole: boolean; tone: Tone; say: string }

export function read(text: string): Reading {
  text = text.trim();
  let device = '';
  const bad = (code: string, say: string): Reading => ({ code, device, whole: false, tone: 'bad', say });
  if (uri.test(text)) {
    const [d = '', c] = text.replace(uri, '').split('&c=');
    if (!/^[a-z2-7]{24}$/.test(d) || c === undefined) return bad('', 'This is not a whole label: scan it again, or type the code below the square.');
    device = d;
    text = c;
  }
  const plain = text.toUpperCase().replace(/[ -]/g, '').replaceAll('O', '0').replace(/[IL]/g, '1');
  const code = plain.match(/.{1,5}/gs)?.join('-') ?? '';
  const stray = [...plain].find((c) => !alphabet.includes(c));
  if (stray) return bad(code, `No code holds “${stray}”. Compare with the label.`);
  if (plain.length > length + 1) return bad(code, `${plain.length - length - 1} too many: a code has ${length + 1} letters and digits.`);
  if (plain.length <= length) return { code, device, whole: false, tone: 'dim', say: plain ? `${plain.length} of ${length + 1}` : `${length + 1} letters and digits, on the label below the square.` };
  if (plain[length] !== check(plain.slice(0, length))) return bad(code, 'The last character does not fit the rest: one is mistaken, or two are swapped. Compare with the label.');
  return { code, device, whole: true, tone: 'good', say: device ? `The code is whole; the label is that of ${device}.` : 'The code is whole.' };
}

/** A polynomial over GF(32), x^5+x^2+1, at its generator: one wrong character and two swapped neighbours always show. */
export function check(code: string): string {
  const twice = (v: number) => (v << 1 > 31 ? (v << 1) ^ 0b100101 : v << 1);
  let c = 0;
  for (const x of code) c = twice(c) ^ alphabet.indexOf(x);
  return alphabet[twice(c)]!;
}
