import { useState } from 'preact/hooks';
import { post, type Waiting } from '../api';
import { useRows } from '../live';
import { Claim } from '../parts/claim';
import { Papers } from '../parts/papers';
import { Admins, Badge, Card, Empty, Listed, Outcome, Page, Table, useAct, When } from '../parts/ui';
import { admin } from '../session';
import { tiers } from '../trust';

export function WaitingPage() {
  const rows = useRows<Waiting>('/v1/waiting', (c) => c.kind === 'device' || c.kind === 'audit', 50, 3000);
  const [chosen, choose] = useState('');
  const { busy, error, done, act } = useAct();
  const take = async (w: Waiting) => {
    if (await act(() => post('/v1/claims/device', { device: w.device }), `${w.serial || w.device} is claimed. It joins by itself within minutes.`)) rows.reload();
  };
  const pick = (w: Waiting) => { choose(w.device); document.getElementById('claim-code')?.focus(); };
  return (
    <Page title="Waiting devices" lead="Genuine devices that asked to join and that nobody owns. Each asks again by itself, every few minutes.">
      <Card title="Claim with the code on the label" note="The code is on the device, below a square that a scanner reads. It works once.">
        <Admins what="claiming a device"><Claim waiting={rows.items.filter((w) => w.listed && !w.claimed)} device={chosen} choose={choose} claimed={rows.reload} /></Admins>
      </Card>
      <Card title="Who waits">
        <Outcome done={done} error={error} />
        <Listed rows={rows} empty={
          <Empty title="No device is waiting.">
            Switch a new device on with the network plugged in: it finds this service by a USB stick, by DHCP or by its image, and shows here within a minute.
            If it does not, its TPM may have no certificate of its maker: import the vendor's manifest below.
          </Empty>}>
          <Table label="Devices that wait" head={['Device', 'Model', 'Tier', 'Seen', 'From', 'Next']}>
            {rows.items.map((w) => (
              <tr key={w.device} data-testid="waiting-row" data-device={w.device}>
                <td class="name"><strong>{w.serial || 'no serial'}</strong><small>{w.device}</small></td>
                <td data-label="Model" class="ver">{w.model || '–'}</td>
                <td data-label="Tier">{w.tier ? <>{w.tier}<small>{tiers[w.tier]?.short}</small></> : <>–<small>only a manifest can vouch for it</small></>}</td>
                <td data-label="Seen"><When at={w.last_at} /><small>first <When at={w.first_at} /></small></td>
                <td data-label="From" class="detail"><code>{w.from || '–'}</code></td>
                <td data-label="Next" class="detail"><Next w={w} busy={busy} pick={() => pick(w)} take={() => void take(w)} /></td>
              </tr>
            ))}
          </Table>
        </Listed>
      </Card>
      <Papers changed={rows.reload} />
    </Page>
  );
}

/** How this device may be claimed. */
function Next({ w, busy, pick, take }: { w: Waiting; busy: boolean; pick: () => void; take: () => void }) {
  if (w.claimed) return <><Badge state="OK" text="claimed" /><small>joins when it asks again</small></>;
  if (w.listed) return admin.value ? <button type="button" onClick={pick}>Enter its code</button> : <Badge state="" text="has a label" />;
  if (w.tier !== 'A') return <span class="dim">Import the vendor's manifest or order file.</span>;
  return admin.value
    ? <><button type="button" disabled={busy} onClick={take}>Claim without a code</button><small>Only where the service's configuration allows it.</small></>
    : <span class="dim">no label; an admin may claim it</span>;
}
