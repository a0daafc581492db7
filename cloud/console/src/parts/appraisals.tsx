import type { Attestation } from '../api';
import type { Rows } from '../live';
import { FindingItem } from './identity';
import { Badge, Card, Empty, Listed, Table, When } from './ui';

/** What each proof came to; a proof that says the same as the one before is not kept. */
export function Appraisals({ rows }: { rows: Rows<Attestation> }) {
  return (
    <Card title="History of appraisals" note="Kept when a proof says something new: another verdict, release, boot or finding.">
      <Listed rows={rows} empty={<Empty title="Nothing was appraised yet.">The device shows evidence when it connects, and about every 15 minutes from then on.</Empty>}>
        <Table label="History of appraisals" head={['When', 'Verdict', 'Judged by', 'TPM starts', 'Findings']}>
          {rows.items.map((a) => (
            <tr key={`${a.at}${a.digest}`} data-testid="appraisal-row" data-trust={a.trust}>
              <td data-label="When"><When at={a.at} /></td>
              <td data-label="Verdict"><Badge state={a.trust} /></td>
              <td data-label="Judged by" class="detail">{a.release ? <span>{a.release}</span> : <span class="dim">nothing</span>}{a.digest && <details><summary>Digest</summary><small><code>{a.digest}</code></small></details>}</td>
              <td data-label="TPM starts" class="num">{a.reset_count}</td>
              <td data-label="Findings" class="detail">{a.findings.length > 0 ? <ul class="findings">{a.findings.map((f) => <FindingItem f={f} short key={f.check + f.pcr + f.event} />)}</ul> : <span class="dim">none</span>}</td>
            </tr>
          ))}
        </Table>
      </Listed>
    </Card>
  );
}
