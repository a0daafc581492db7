// Where we are: the path of the address bar, as a signal.
import { signal } from '@preact/signals';

export const path = signal(location.pathname);
/** What stands behind it. */
export const search = signal(location.search);

const moved = () => { path.value = location.pathname; search.value = location.search; };

export function go(to: string) {
  if (to === location.pathname + location.search) return;
  history.pushState(null, '', to);
  moved();
  scrollTo(0, 0);
}

/** Says in the address bar what the page shows; it is no place to go back to. */
export function rename(to: string) {
  history.replaceState(null, '', to);
  moved();
}

addEventListener('popstate', moved);

// Links are plain links; those of ours do not load the page again.
document.addEventListener('click', (e) => {
  const a = (e.target as Element).closest('a');
  if (!a || a.origin !== location.origin || a.hasAttribute('download') || e.defaultPrevented || e.button !== 0 || e.metaKey || e.ctrlKey || e.shiftKey || a.target) return;
  if (a.hash && a.pathname === location.pathname) return;
  e.preventDefault();
  go(a.pathname + a.search);
});

/** A part of the path as it was before it was escaped; nonsense stays as it is. */
export function plain(part: string): string {
  try { return decodeURIComponent(part); } catch { return part; }
}
