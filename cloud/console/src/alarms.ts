// Which alarms this person has not looked at yet, in this browser: the trail
// itself cannot be ticked off.
import { computed, effect, signal } from '@preact/signals';
import { type Change } from './live';
import { session } from './session';

export const alarms = '/v1/audit?severity=alarm';
export const concern = (c: Change) => c.kind === 'audit' || c.kind === 'device';

const key = computed(() => (session.value ? `tillward.alarms.${session.value.tenant}.${session.value.name}` : ''));

/** The number of the newest alarm that was looked at. */
export const seen = signal(0);
effect(() => { seen.value = key.value ? stored() : 0; });

function stored(): number {
  try { return Number(localStorage.getItem(key.value)) || 0; } catch { return 0; }
}

/** Takes down that all alarms up to this one were looked at. */
export function look(seq: number) {
  if (seq <= seen.peek()) return;
  seen.value = seq;
  try { localStorage.setItem(key.peek(), String(seq)); } catch { /* it holds for this visit */ }
}
