import { Page } from '../parts/ui';
import { Trail } from '../parts/trail';

export function Audit() {
  return (
    <Page title="Audit">
      <p class="dim">What operators did and what the service refused. Each device keeps a trail of its own, on its page.</p>
      <Trail title="The service's own trail" path="/v1/audit" concerns={(c) => c.kind === 'audit' || c.kind === 'command' || c.kind === 'rollout' || c.kind === 'release'} />
    </Page>
  );
}
