import { expect, test } from 'vitest';
import type { AuditProof } from './api';
import { proven } from './trail';

const proof = (p: Partial<AuditProof>): AuditProof => ({ head: 0, broken: false, missing: 0, lost: 0, anchored_to: 0, anchored_at: null, countersigned_to: 0, archived_to: 0, ...p });
const said = (p: Partial<AuditProof>) => proven(proof(p)).map((f) => f.text);

test('a trail says how far it is proven', () => {
  expect(said({})).toEqual(['no entries yet', 'nothing yet', 'nothing yet']);
  expect(said({ head: 9, anchored_to: 8, countersigned_to: 9 })).toEqual(['no gap', 'all 9 entries', 'all 9 entries']);
  expect(said({ head: 9, anchored_to: 4, countersigned_to: 2 })).toEqual(['no gap', 'entries up to 4 of 9', 'entries up to 2 of 9']);
});

test('what is missing, lost or put away is told', () => {
  const facts = proven(proof({ head: 9, broken: true, missing: 2, lost: 3, archived_to: 4 }));
  expect(facts[0]).toMatchObject({ text: '2 entries are missing and may come yet', bad: true });
  expect(facts.slice(3).map((f) => f.name)).toEqual(['Lost', 'Put away']);
  expect(proven(proof({ head: 9, broken: true }))[0]!.text).toBe('it did not hold: verify it');
});
