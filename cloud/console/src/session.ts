// Who is signed in, and what that allows. The service decides; the console
// only leaves away what would be refused.
import { computed, signal } from '@preact/signals';
import type { Session } from './api';

export const session = signal<Session | null>(null);
/** May send commands, start rollouts and change devices. */
export const operator = computed(() => session.value?.role === 'operator' || session.value?.role === 'admin');
/** May change whom the fleet trusts. */
export const admin = computed(() => session.value?.role === 'admin');
