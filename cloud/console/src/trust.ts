// What attestation says, in the words of people: checks, registers, tiers and
// alarms, each with what to do. The names are those of the service.
import type { AuditEvent, Finding, Party, Title } from './api';
import { day, type Tone } from './format';

export const tiers: Record<string, { short: string; long: string }> = {
  A: { short: 'TPM with its maker\'s certificate', long: 'The chip was proven to be a genuine one by its maker\'s certificate. The strongest there is.' },
  B: { short: 'TPM on the vendor\'s signed list', long: 'The chip has no certificate of its maker; the vendor recorded it on the line and signed for it. All but a claim across tenants.' },
  C: { short: 'virtual TPM', long: 'The keys are as safe as the machine that plays the TPM. For test fleets only.' },
  D: { short: 'software key', long: 'A key in a file, which a copy of the disk holds, too; nothing of the boot is measured. Telemetry and updates only, no secrets.' },
};

const meanings: Record<string, string> = {
  pending: 'It has not proven itself yet, so only its proof is listened to.',
  degraded: 'It is who it says and works as usual, but proved less than it should.',
  quarantined: 'It is kept from the fleet. Diagnose, logs, a restart and a repairing update still reach it.',
  stale: 'Its last proof is too old. This heals by itself with its next proof.',
};

/** What a trust state means; a boot that no release was held against is not said to be good. */
export function meaning(trust: string, judged: boolean): string {
  if (trust !== 'attested') return meanings[trust] ?? '';
  return `It has proven that it is the device that was enrolled${judged ? ', and that it started as its release should.' : '; how it started was not judged.'}`;
}

/** What a register measures [PC Client Platform Firmware Profile 1.06, 3.3.4]. */
const registers: Record<string, string> = {
  0: 'firmware', 1: 'firmware settings', 2: 'option ROMs', 3: 'settings of option ROMs', 4: 'boot manager', 5: 'boot manager settings and partitions',
  6: 'the maker\'s own', 7: 'Secure Boot keys', 8: 'boot loader commands', 9: 'kernel and initial disk', 11: 'parts of the boot image',
};

export function register(pcr: string | number): string {
  const what = registers[pcr];
  return what ? `register ${pcr} (${what})` : `register ${pcr}`;
}

/** What to do about a check that spoke. The name is stable, its sentence is the service's. */
const advice: Record<string, string> = {
  'boot.unknown-event': 'If you know the firmware change, approve it once for the whole model on the Firmware page; else send diagnose and look at the till.',
  'boot.rejected-event': 'This event was rejected for the model. Roll out a repairing update, or set the firmware back and restart.',
  'boot.missing-event': 'A part of the start did not happen. Send diagnose; a rollout of the current release repairs the slot.',
  'boot.no-log': 'The device sent no event log. Update its agent; if that is new enough, the kernel does not offer the log: check the image.',
  'boot.log-replay': 'The log does not explain the register: it was edited, or the firmware is broken. Take the till out of use and keep its disk as it is.',
  'boot.not-covered': 'The release asks for a register that this model does not prove. Mend its reference values, or the firmware setting that measures it.',
  'boot.unjudged': 'No release of this model carries reference values. Publish one that does; see the Firmware page.',
  'boot.old-release': 'It started a release from before its last good update. Restart it; if it stays, somebody may be rolling it back: look at the till.',
  'boot.not-offered': 'It started a release that nobody offered it. Read the rollouts; if none explains it, look at the till.',
  'quote.signature': 'The proof is not signed by this device\'s key. Reading it again will not help: look at the till, then enrol it anew.',
  'quote.binding': 'The proof was made for another connection: somebody may relay it. Look at the network between till and service.',
  'quote.selection': 'It did not prove the registers that it was asked for. Update its agent.',
  'quote.values': 'The values it sent are not those that its TPM signed. Attest again; if it stays, take the till out of use.',
  'quote.replayed': 'The proof was used before. Attest again; if it stays, somebody records and replays: look at the network.',
  'quote.malformed': 'The proof cannot be read. Update its agent.',
  'tpm.reset-count': 'The counter of its TPM went back: the TPM was cleared, or this is another one. The device enrols again by itself; claim or readmit it only when you know why.',
  'tpm.firmware': 'The firmware of its TPM is another than at enrolment. If it was updated on purpose, let it enrol again.',
  'identity.revoked': 'Nothing that it shows is believed. Find the till; if it is yours again, readmit it.',
  'identity.replaced': 'It shows a certificate that a newer one has replaced: a copy of an old disk may be running. Find out which till it is.',
  'identity.clone': 'Two devices speak with one identity. Find both: one of them is a copy. Revoke the identity until you know which.',
  'identity.keys': 'It has used hundreds of attestation keys in a year. Find out why; to let it enrol anew, give it up and claim it again.',
  'identity.restricted': 'Nothing to do if it is being repaired or passed on. Else let it renew its certificate: attest now, or restart it.',
  'identity.certificate': 'The certificate is not one of this service. The device enrols again by itself; if it does not, look at the till.',
  'identity.recovery': 'The recovery certificate opens quarantine only. The device gets its usual one back by enrolling again.',
  'identity.unknown': 'No device of this fleet has that identity. It was given up, or never joined: find out which till it is.',
  'identity.serial': 'The chip is known from another till. Find out whether the board was moved; if not, revoke the device.',
  'enrol.ek-certificate': 'The certificate is not that of its TPM: somebody may pose as a genuine device. Do not claim it; keep the till and ask the vendor.',
  'enrol.ek-listed': 'Its TPM is on no list. Upload the vendor\'s manifest on the Waiting page, or ask the vendor whether the till is his.',
  'enrol.ek-duplicate': 'Its TPM is enrolled under another serial number. Find out whether the board was moved; if not, revoke the device.',
  'enrol.activation': 'It could not open what only its own TPM opens: it has the papers of another device. Find the till.',
  'enrol.certify': 'Its key is not in its TPM. Find the till; it may be software that poses as one.',
  'enrol.key-attributes': 'Its key could be copied out of the TPM. Install the current image and let it enrol again.',
  'enrol.tier': 'It showed a weaker identity than it was enrolled with. Somebody may pose as the till: look at it before you do anything else.',
  'enrol.claim': 'The claim code does not fit the device. Compare with the label; after five wrong ones the device is locked for 10 minutes.',
  'enrol.binding': 'The proof was made for another connection: somebody may sit between till and service. Look at the network.',
  'enrol.owner': 'The device is another owner\'s, who has to give it up first: ask for the voucher.',
  'enrol.boot': 'It started something that no release of its model knows. Look at the Firmware page before you let it in.',
  'rotate.ek': 'The new key is not in the TPM that is on file. Somebody may pose as the device: look at the till.',
  'enrol.selection': 'It did not prove the registers that it was asked for. Update its agent.',
};

/** What to do about a finding or an alarm by the name of its check; nothing for a name we do not know. */
export const todo = (check: string): string => advice[check] ?? '';

/** What is decided about a firmware event. */
export const decisions: Record<string, { text: string; tone: Tone }> = {
  open: { text: 'waits for a decision', tone: 'warn' }, approved: { text: 'approved', tone: 'good' }, rejected: { text: 'rejected', tone: 'bad' },
};

/** A word stands against what a release says of a boot; against a proof that proves nothing, or an identity, there is none. */
export const waivable = (findings: Finding[]): boolean => findings.every((f) => f.check.startsWith('boot.'));

interface Alarm { title: string; todo: string }

/** Alarms of the service's own trail that name no check, by kind. */
const kinds: [RegExp, Alarm][] = [
  [/chain.broken/, { title: 'Broken audit trail', todo: 'The device\'s trail has a gap or was changed. Verify it on the device\'s page, take the till out of use and keep its disk as it is.' }],
  [/^audit\.anchor_bad/, { title: 'TPM does not vouch for the trail', todo: 'An anchor was not signed by the device\'s TPM, is a copy, or belongs to an older history. Take the till out of use, keep its disk as it is, and export its trail.' }],
  [/^audit\.archive_failed/, { title: 'Trail not put away', todo: 'Entries are older than they stay in the database and their trail does not hold, or the archive folder cannot be written. Read the entry below; nothing was deleted.' }],
  [/clone/, { title: 'Two of one identity', todo: advice['identity.clone']! }],
  [/expir/, { title: 'Certificate about to expire', todo: 'The device renews by itself while it is connected. Switch it on and see that it reaches the service; after the end it has to enrol again, which needs no visit either.' }],
  [/^device\.revoked/, { title: 'Revoked by an operator', todo: 'Nothing is left to do; if the device goes on trying, another alarm says so.' }],
  [/revoked/, { title: 'Revoked, still trying', todo: advice['identity.revoked']! }],
  [/violation/, { title: 'Broke the rules of the broker', todo: 'It asked for what is not its own. Update its agent; if that is current, somebody else may be using its key: revoke it.' }],
  [/^attest\./, { title: 'Failed its proof', todo: 'Open the device: each finding says what to do.' }],
  [/^enrol\./, { title: 'Refused to enrol', todo: 'Read the reason below. Do not claim the device before you know what it is.' }],
  [/^release\.refused/, { title: 'Release refused', todo: 'An upload was not signed as it must be. Ask who sent it; publish again from the signing desk.' }],
  [/^rollout\.held/, { title: 'Held in a rollout', todo: 'A model or a site does badly and is kept out; the others go on. Open the rollout, look at a device that ended badly, and let it in again when you know why.' }],
  [/^update\.truth/, { title: 'Runs an older release than it said', todo: 'Look whether the box fell back after it had reported success, or was flashed anew; then try the rollout again.' }],
  [/^rollout\./, { title: 'Rollout stopped', todo: 'Too many devices ended badly. Open the rollout and read why before you resume it.' }],
  [/^manifest\.refused/, { title: 'Manifest refused', todo: 'The file is not signed by a vendor whose key is configured. Ask the vendor for the file again, over another way.' }],
  [/^ownership\.override/, { title: 'The vendor moves a device', todo: 'The vendor was told that its owner is lost. Object on the device\'s page before the date below if you are not.' }],
  [/^ownership\.refused/, { title: 'Voucher refused', todo: 'The voucher was changed, or is older than one that was seen. Ask for it again; if it stays, somebody tries to take the device.' }],
  [/^ownership\.not-released/, { title: 'Did not let go', todo: 'A device that was passed on could not wipe what it holds of this tenant. It is told again when it connects; send diagnose and read why.' }],
];

const titles: Record<string, string> = {
  'identity.clone': 'Two of one identity', 'identity.revoked': 'Revoked, still trying', 'identity.replaced': 'Old certificate shown',
  'enrol.tier': 'Weaker identity than enrolled', 'enrol.ek-duplicate': 'TPM seen on another serial', 'identity.serial': 'TPM seen on another serial',
  'enrol.ek-certificate': 'Certificate of another TPM', 'enrol.claim': 'Wrong claim code', 'tpm.reset-count': 'TPM counter went back',
};

/** What an alarm is about and what to do, by the check it names or by its kind. */
export function alarm(e: AuditEvent): Alarm {
  const check = e.detail?.check ?? '';
  const byKind = kinds.find(([k]) => k.test(e.kind))?.[1];
  return {
    title: titles[check] ?? byKind?.title ?? e.kind,
    todo: todo(check) || byKind?.todo || 'Read the entry below and look at the device it names.',
  };
}

/** What an entry says of its own. */
export function why(e: AuditEvent): string {
  const d = e.detail ?? {};
  if (d.object_until) return `It goes to ${d.to ?? 'another owner'} unless you object until ${day(d.object_until)}`;
  if (d.not_after) return `Its certificate ends on ${day(d.not_after)}`;
  return d.reason || d.what || d.fault || d.text || '';
}

export interface Group { subject: string; events: AuditEvent[]; kinds: { alarm: Alarm; n: number; last: AuditEvent }[] }

/** Alarms by whom they are about, each kind once; the newest come first, as in the trail. */
export function grouped(events: AuditEvent[]): Group[] {
  const groups = new Map<string, Group>();
  for (const e of events) {
    const g = groups.get(e.subject) ?? { subject: e.subject, events: [], kinds: [] };
    groups.set(e.subject, g);
    g.events.push(e);
    const a = alarm(e);
    const same = g.kinds.find((k) => k.alarm.title === a.title && k.alarm.todo === a.todo);
    if (same) same.n++; else g.kinds.push({ alarm: a, n: 1, last: e });
  }
  return [...groups.values()];
}

/** The end of a day as a moment, but no later than `days` days from now: what a waiver may last. */
export function until(date: string, now: number, days = 30): string {
  const end = new Date(`${date}T23:59:59`).getTime();
  return new Date(Math.min(end, now + days * 86400e3 - 60_000)).toISOString();
}

/** A moment's date as a date field has it, by the clock on the wall. */
export function dateField(ms: number): string {
  const d = new Date(ms);
  return `${d.getFullYear()}-${String(d.getMonth() + 1).padStart(2, '0')}-${String(d.getDate()).padStart(2, '0')}`;
}

/** A party file, as the buyer of a device sends it. */
export function party(text: string): Party {
  let p: { public_key?: unknown; key?: unknown; name?: unknown; tenant?: unknown };
  try { p = JSON.parse(text) as typeof p; } catch { throw new Error('This is not a party file: it holds no JSON. Ask the next owner for the one that his console saves.'); }
  const key = p.public_key ?? p.key;
  if (typeof key !== 'string' || typeof p.name !== 'string') throw new Error('This is not a party file: a name and a public key are missing. Ask the next owner for the one that his console saves.');
  return { name: p.name, tenant: typeof p.tenant === 'string' ? p.tenant : '', key };
}

export interface Step { who: string; name: string; text: string; tone: Tone }

/** The way of a device from its vendor to its next owner. Who has accepted is the owner by the voucher, while the device may still be ours. */
export function steps(t: Title, now: number): Step[] {
  const vendor: Step = { who: 'Vendor', name: t.vendor || 'unknown', text: 'made it and signed for it first', tone: 'dim' };
  if (t.state === 'releasing' || t.state === 'released') {
    const gone = t.state === 'released';
    return [
      vendor,
      { who: 'Owner until now', name: 'this tenant', text: gone ? 'holds nothing of it any more but its trails' : 'its audit trail comes in, then it forgets this tenant', tone: gone ? 'dim' : 'busy' },
      { who: 'Next owner', name: t.owner.name, text: `has accepted${t.since ? `, ${day(t.since)}` : ''}`, tone: 'good' },
    ];
  }
  const from = t.not_before && Date.parse(t.not_before) > now ? `from ${day(t.not_before)} on` : 'at any time';
  return [
    vendor,
    { who: 'Owner', name: t.owner.name, text: t.since ? `since ${day(t.since)}` : 'by the voucher', tone: 'good' },
    t.next
      ? { who: 'Next owner', name: t.next.name, text: `${t.override ? 'named by the vendor; ' : ''}may accept ${from}; until then nothing changes`, tone: 'warn' }
      : { who: 'Next owner', name: 'nobody', text: 'it is not on offer', tone: 'dim' },
  ];
}
