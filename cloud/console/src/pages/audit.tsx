import { Page } from '../parts/ui';
import { Trail } from '../parts/trail';

export function Audit() {
  return (
    <Page title="Service audit" lead="What operators did and what the service refused. Each device keeps a trail of its own, on its page.">
      <Trail title="The service's own trail" path="/v1/audit" concerns={(c) => c.kind !== 'event' && c.kind !== 'device'} />
    </Page>
  );
}
