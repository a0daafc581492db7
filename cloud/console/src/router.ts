// Where we are: the path of the address bar, as a signal.
import { signal } from '@preact/signals';

export const path = signal(location.pathname);

export function go(to: string) {
  if (to === path.value) return;
  history.pushState(null, '', to);
  path.value = location.pathname;
  scrollTo(0, 0);
}

addEventListener('popstate', () => { path.value = location.pathname; });

// Links are plain links; those of ours do not load the page again.
document.addEventListener('click', (e) => {
  const a = (e.target as Element).closest('a');
  if (!a || a.origin !== location.origin || a.hasAttribute('download') || e.defaultPrevented || e.button !== 0 || e.metaKey || e.ctrlKey || e.shiftKey || a.target) return;
  if (a.hash && a.pathname === location.pathname) return;
  e.preventDefault();
  go(a.pathname);
});

/** A part of the path as it was before it was escaped; nonsense stays as it is. */
export function plain(part: string): string {
  try { return decodeURIComponent(part); } catch { return part; }
}
