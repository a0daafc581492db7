import type { Attestation, Device, Finding } from '../api';
import { clock, day, expiry, sentence, span } from '../format';
import { now } from '../live';
import { meaning, register, tiers, todo } from '../trust';
import { Standing, Waived } from './standing';
import { Badge, Card, When } from './ui';

/** A device shows evidence again after this long, or a little more. */
const every = 15 * 60_000;

/** What the device has proven, how it was judged, and what may be done about it. */
export function Identity({ d, last, changed }: { d: Device; last: Attestation | undefined; changed: () => void }) {
  const cert = expiry(d.cert_not_after, now.value);
  const findings = d.findings;
  const c = d.certificate;
  return (
    <Card title="Identity and attestation">
      {d.waiver && Date.parse(d.waiver.until) > now.value && <Waived d={d} w={d.waiver} changed={changed} />}
      {d.revoked_at && <p class="finding Fault" data-testid="device-revoked"><strong>Revoked <When at={d.revoked_at} />:</strong> {sentence(d.revoked_why)}</p>}
      <div class={`verdict ${d.revoked_at ? 'quarantined' : d.trust}`}>
        <Badge state={d.trust} testid="device-trust" as={d.revoked_at ? 'bad' : undefined} text={d.revoked_at ? 'revoked' : undefined} />
        <div>
          <p>{d.revoked_at ? 'An operator shut it out: its certificates open nothing until it is readmitted.' : meaning(d.trust, Boolean(last?.release))}</p>
          {findings.length > 0
            ? <ul class="findings">{findings.map((f) => <FindingItem f={f} key={f.check + f.pcr + f.event} />)}</ul>
            : d.trust_reasons.length > 0 && <ul>{d.trust_reasons.map((r) => <li key={r}>{sentence(r)}</li>)}</ul>}
        </div>
      </div>
      <dl class="facts">
        <div><dt>Judged by</dt><dd>
          {judged(last)}
          {d.boot_release && d.boot_release !== last?.release && <small>The release that it committed to last is {d.boot_release}.</small>}
        </dd></div>
        <div><dt>Attested</dt><dd>{d.attested_at ? <>last <When at={d.attested_at} /></> : 'never'}; {next(d, now.value)}</dd></div>
        <div><dt>Tier {d.tier}: {tiers[d.tier]?.short ?? 'unknown kind of identity'}</dt><dd>{tiers[d.tier]?.long}</dd></div>
        <div><dt>Certificate</dt><dd title={clock(d.cert_not_after)}>
          {d.cert_not_after ? <>until {day(d.cert_not_after)} <span class={`ink ${cert.tone}`}>({cert.text})</span></> : 'none yet'}
          {c.next && <small>A newer one, until {day(c.next.not_after)}, waits to be shown first; then this one ends.</small>}
        </dd></div>
        <div><dt>Recovery certificate</dt><dd>{c.recovery ? <>issued; opens quarantine only, for repair</> : 'none; a repair would begin with enrolment'}</dd></div>
        <div><dt>Starts of its TPM</dt><dd>{d.reset_count > 0 ? <>{d.reset_count}; grows with each restart and never goes back</> : 'not proven yet'}</dd></div>
      </dl>
      <details><summary>Keys and digests</summary>
        <dl class="facts keys">
          <div><dt>Endorsement key, SHA-256</dt><dd><code>{d.ek_sha256 || '–'}</code></dd></div>
          <div><dt>Certificate serial</dt><dd><code>{d.cert_serial || '–'}</code></dd></div>
          {c.next && <div><dt>Serial of the newer certificate</dt><dd><code>{c.next.serial}</code></dd></div>}
          {c.recovery && <div><dt>Serial of the recovery certificate</dt><dd><code>{c.recovery}</code></dd></div>}
          <div><dt>Digest of the boot that was accepted last</dt><dd><code>{d.boot_digest || '–'}</code></dd></div>
        </dl>
      </details>
      {!d.former_of && <Standing d={d} changed={changed} />}
    </Card>
  );
}

/** Which release the newest proof was held against. */
function judged(last: Attestation | undefined) {
  if (!last) return 'nothing yet';
  if (last.release) return <>the reference values of <strong>{last.release}</strong></>;
  const against = last.findings.find((f) => f.release)?.release;
  if (against) return <>the reference values of <strong>{against}</strong>, which it does not meet</>;
  return last.findings.some((f) => f.check === 'boot.unjudged') ? 'no reference values: its boot was not judged' : 'nothing: its proof did not hold';
}

/** When the next proof is due. */
function next(d: Device, at: number): string {
  if (d.revoked_at || d.former_of) return 'no more';
  if (!d.online) return 'next when it connects';
  if (!d.attested_at) return 'next any moment';
  const left = Date.parse(d.attested_at) + every - at;
  return left > 60_000 ? `next in about ${span(left)}` : 'next any moment';
}

/** A finding as a sentence, what it is about, and what to do. */
export function FindingItem({ f, short }: { f: Finding; short?: boolean }) {
  return (
    <li>
      {sentence(f.text)}
      <small>
        {[f.pcr && register(f.pcr), f.event && `event ${f.event}`, f.release && `release ${f.release}`].filter(Boolean).map((t) => <span key={t}>{t}, </span>)}
        check <code>{f.check}</code>
      </small>
      {!short && todo(f.check) && <p class="todo">{todo(f.check)}</p>}
    </li>
  );
}
