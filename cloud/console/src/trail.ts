// What is proven of a device's audit trail, in words.
import type { AuditProof } from './api';

export interface Fact { name: string; text: string; bad?: boolean; at?: string | null }

const upTo = (n: number, head: number): string => (n === 0 ? 'nothing yet' : n >= head ? `all ${head} entries` : `entries up to ${n} of ${head}`);

/** The facts of a trail; the TPM's word stands one entry behind the head, which is the anchor itself. */
export function proven(p: AuditProof): Fact[] {
  const facts: Fact[] = [
    { name: 'Chain', text: p.missing > 0 ? `${p.missing} entries are missing and may come yet` : p.broken ? 'it did not hold: verify it' : p.head === 0 ? 'no entries yet' : 'no gap', bad: p.broken },
    { name: 'Signed by the TPM', text: upTo(p.anchored_to > 0 && p.anchored_to + 1 >= p.head ? p.head : p.anchored_to, p.head), at: p.anchored_at },
    { name: 'Countersigned by the service', text: upTo(p.countersigned_to, p.head) },
  ];
  if (p.lost > 0) facts.push({ name: 'Lost', text: `${p.lost} entries with a damaged file, as the till recorded and its TPM signed` });
  if (p.archived_to > 0) facts.push({ name: 'Put away', text: `entries up to ${p.archived_to} lie in sealed files` });
  return facts;
}
