// Walks through the console in a real browser, as an operator would, and fails
// when something is not as it must be: it asks a device for proof, sends a
// command, verifies an audit chain, rolls the newest release out to every device,
// composes another rollout that is watched, paused and aborted, sets the hours of
// a site, looks after a printer and at whom the fleet trusts. Started by the end-to-end test; the fleet needs an online device and a published release.
//
//   TILLWARD_URL         the console
//   TILLWARD_TOKEN_FILE  file with an operator token
//   OUT                  folder for screenshots
//   CHROMIUM             browser; /usr/bin/chromium by default
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const { TILLWARD_URL: url, TILLWARD_TOKEN_FILE: tokenFile, OUT: out = 'screenshots', CHROMIUM: executablePath = '/usr/bin/chromium' } = process.env;
if (!url || !tokenFile) throw new Error('TILLWARD_URL and TILLWARD_TOKEN_FILE say where the console is and who signs in');
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const profile = mkdtempSync(join(tmpdir(), 'tillward-browser-'));
mkdirSync(out, { recursive: true });

// The content security policy stays in force: what it blocks is a console error and so a fault.
const context = await chromium.launchPersistentContext(profile, {
  executablePath, headless: true, viewport: { width: 1280, height: 900 },
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
const faults = [];
const page = context.pages()[0] ?? await context.newPage();
page.setDefaultTimeout(30_000);
let signedIn = false;
let cut = false; // the live connection was taken away; its errors are ours
page.on('console', (m) => { if (m.type() === 'error' && !cut && (signedIn || !m.text().includes('401'))) faults.push(`console: ${m.text()}`); });
page.on('pageerror', (e) => faults.push(`page: ${e}`));
page.on('request', (r) => { if (new URL(r.url()).host !== new URL(url).host && !r.url().startsWith('data:')) faults.push(`request to another host: ${r.url()}`); });

const shots = [];
const tid = (id) => page.getByTestId(id);

/** Adds what axe finds serious to the faults. */
async function judge(name) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
  for (const v of violations) {
    if (v.impact === 'serious' || v.impact === 'critical') faults.push(`${name}: ${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160)).join(' | ')}`);
  }
}

/** Looks at the page in both colour schemes and at the width of a phone. */
async function look(name) {
  await page.evaluate(() => scrollTo(0, 0));
  for (const scheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: 'reduce' });
    await judge(`${name} (${scheme})`);
    await page.screenshot({ path: join(out, `${name}-${scheme}.png`), fullPage: true });
    shots.push(`${name}-${scheme}.png`);
  }
  await page.emulateMedia({ colorScheme: 'light' });
  await page.setViewportSize({ width: 390, height: 844 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  if (wide > 1) faults.push(`${name}: scrolls sideways by ${wide} pixels on a phone`);
  await judge(`${name} (phone)`);
  await page.screenshot({ path: join(out, `${name}-phone.png`), fullPage: true });
  shots.push(`${name}-phone.png`);
  await page.setViewportSize({ width: 1280, height: 900 });
}

/** Waits until nothing is awaited, and holds it against the page if something could not be had. */
async function loaded(name) {
  await page.locator('.loading').first().waitFor({ state: 'detached' });
  for (const text of await page.getByRole('alert').allTextContents()) faults.push(`${name}: ${text}`);
}

let error;
try {
  await page.goto(url);
  await tid('signin-token').fill('twt_wrong');
  await tid('signin-submit').click();
  await page.getByRole('alert').waitFor();
  await look('signin');
  await tid('signin-token').fill(readFileSync(tokenFile, 'utf8').trim());
  await tid('signin-submit').click();
  await page.locator('[data-testid=fleet-row][data-trust=attested]').first().waitFor();
  signedIn = true;
  await page.locator('[data-testid=live-state][data-state=on]').waitFor();
  await look('fleet');

  await tid('fleet-row').first().getByRole('link').click();
  await tid('device-trust').getByText('attested').waitFor();
  await tid('peripheral').first().waitFor();
  await page.locator('[data-testid=chart] canvas').waitFor();
  await tid('audit-row').first().waitFor();
  await tid('appraisal-row').first().waitFor();
  await tid('device-waits').waitFor();
  await tid('installed-row').first().waitFor();
  await tid('attest-now').click();
  await page.getByText('Asked for proof').waitFor();
  await tid('command-verb').selectOption('identify');
  const [answer] = await Promise.all([
    page.waitForResponse((r) => r.request().method() === 'POST' && new URL(r.url()).pathname === '/v1/commands'),
    tid('command-send').click(),
  ]);
  if (!answer.ok()) throw new Error(`identify was refused: ${await answer.text()}`);
  const sent = (await answer.json()).items[0].id;
  await page.locator(`[data-testid=command-row][data-id="${sent}"][data-state=SUCCEEDED]`).waitFor({ timeout: 60_000 });
  await tid('audit-verify').click();
  const whole = await tid('audit-verify-result').getAttribute('data-ok');
  if (whole !== 'true') faults.push(`audit chain: ${await tid('audit-verify-result').textContent()}`);
  await look('device');

  const main = page.getByRole('navigation', { name: 'Main' });
  await main.getByRole('link', { name: 'Peripherals' }).click();
  await tid('peripheral-row').nth(2).waitFor();
  await loaded('peripherals');
  await look('peripherals');
  let searches = 0;
  page.on('request', (r) => { if (new URL(r.url()).searchParams.has('q')) searches++; });
  await page.getByRole('searchbox').pressSequentially('receipt', { delay: 40 });
  await page.locator('[data-testid=peripheral-row]:not([data-id=receipt])').first().waitFor({ state: 'detached' });
  if (searches > 3) faults.push(`a word of seven letters is searched for ${searches} times`);
  await page.locator('[data-testid=peripheral-row][data-id=receipt]').first().getByRole('link').first().click();
  await tid('durations').waitFor();
  await tid('check-now').click();
  await page.locator('[data-testid=check-row]').first().getByText('✓').waitFor();
  const [file] = await Promise.all([page.waitForEvent('download'), tid('xml').click()]);
  if (!file.suggestedFilename().endsWith('-UPOSStat.xml')) faults.push(`the statistics are kept as ${file.suggestedFilename()}`);
  const xml = await page.evaluate((at) => fetch(at).then((r) => r.text()), await tid('xml').getAttribute('href'));
  if (!/<UPOSStat[\s>]/.test(xml) || !xml.includes('<Equipment>')) faults.push(`UnifiedPOS statistics are no such: ${xml.slice(0, 200)}`);
  await loaded('peripheral');
  await look('peripheral');
  await main.getByRole('link', { name: 'Rollouts' }).click();
  await tid('compose').click();
  await tid('way-quick').click();
  await tid('dry-text').getByText('Reaches 2 devices').waitFor();
  await look('compose');
  await tid('wave-edit').first().getByLabel('Of whom').selectOption('devices');
  await tid('dry-lacks').getByText('names nobody yet').waitFor();
  if (await tid('compose-start').isEnabled()) faults.push('a wave that names nobody may be started: it would take everybody');
  await page.getByRole('searchbox', { name: 'Which devices' }).fill('till-2');
  await page.getByRole('button', { name: '+ till-2' }).click();
  await tid('wave-edit').first().getByText('takes 1 device now').waitFor();
  await tid('way-once').click();
  await tid('compose-start').click();
  const ended = page.locator('[data-testid=execution-row]:is([data-state=SUCCEEDED], [data-state=ALREADY_INSTALLED])');
  await ended.first().waitFor({ timeout: 60_000 });
  await tid('rollout-state').getByText('completed').waitFor({ timeout: 60_000 });
  await loaded('rollout');
  await look('rollout');

  // Another one goes its whole way by hand: draft, handed in, started, watched, paused, resumed, aborted.
  const stands = (text) => tid('rollout-state').getByText(text, { exact: true }).waitFor();
  await main.getByRole('link', { name: 'Rollouts' }).click();
  await tid('compose').click();
  await tid('compose-save').click();
  await stands('draft');
  await look('draft');
  await page.getByRole('link', { name: 'Change' }).click();
  await tid('wave-edit').nth(2).waitFor();
  await tid('compose-submit').click();
  await stands('ready');
  await tid('start').click();
  await page.locator('[data-testid=wave][data-state=SOAKING]').waitFor();
  await tid('soak').waitFor();
  await page.evaluate(() => scrollTo(0, document.body.scrollHeight / 2));
  const reach = await tid('pause').evaluate((e) => { const r = e.getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight; });
  if (!reach) faults.push('Pause is out of reach on a page that is scrolled');
  await tid('pause').click();
  await stands('paused');
  await loaded('board');
  await look('board');
  await tid('resume').click();
  await stands('running');
  await tid('abort-open').click();
  const abort = page.getByRole('button', { name: 'Abort', exact: true });
  await page.getByLabel('Reason').fill('seen enough');
  if (await abort.isEnabled()) faults.push('a rollout may be aborted without the word that confirms it');
  await page.getByLabel('Type “abort” to confirm').fill('abort');
  await abort.click();
  await stands('aborted');
  await page.getByText('seen enough').first().waitFor();

  await main.getByRole('link', { name: 'Rollouts' }).click();
  await tid('rollout-row').nth(1).waitFor();
  await look('rollouts');
  await main.getByRole('link', { name: 'Sites' }).click();
  await tid('site-add').click();
  await page.getByLabel('Name').fill('oslo');
  await page.getByLabel('Time zone').fill('Europe/Oslo');
  await page.getByLabel('May touch the till').fill('mon-fri 22:00-05:00');
  await tid('site-save').click();
  await tid('site-row').getByText('Europe/Oslo').waitFor();
  await tid('site-edit').click();
  await loaded('sites');
  await look('sites');
  await main.getByRole('link', { name: 'Releases' }).click();
  await tid('release-row').first().waitFor();
  await look('releases');
  await main.getByRole('link', { name: 'Audit' }).click();
  await tid('audit-row').first().waitFor();
  await tid('found-row').first().waitFor();
  await tid('ask-what').fill('command.');
  await tid('ask-outcome').selectOption('success');
  await Promise.all([
    page.waitForResponse((r) => ['what=command.', 'outcome=success', 'from='].every((part) => r.url().includes(part))),
    tid('ask-since').selectOption('24h'),
  ]);
  await page.locator('[data-testid=found-row]:not([data-kind^="command."])').first().waitFor({ state: 'detached' });
  await page.locator('[data-testid=found-row][data-kind="command.issued"]').first().getByRole('button').click();
  await tid('found-open').getByText('verb').waitFor();
  const [kept] = await Promise.all([page.waitForEvent('download'), tid('found-save').click()]);
  const found = readFileSync(await kept.path(), 'utf8').trim().split('\n').map((l) => JSON.parse(l));
  if (found.length === 0 || found.some((e) => !e.kind.startsWith('command.') || e.outcome !== 'success')) faults.push(`the file of what was found holds ${found.map((e) => `${e.kind} ${e.outcome}`).join(', ')}`);
  if (!page.url().endsWith('/audit?what=command.&outcome=success&since=24h')) faults.push(`the search is not in the address: ${page.url()}`);
  await look('audit');
  await page.reload();
  await tid('found-row').first().waitFor();
  if (await tid('ask-what').inputValue() !== 'command.') faults.push('the search is not as it was when the page is loaded again');
  await tid('ask-who').fill('nobody');
  await page.getByText('No entry matches.').waitFor();
  await page.getByRole('button', { name: 'Clear' }).click();
  await tid('found-row').nth(3).waitFor();

  await main.getByRole('link', { name: 'Waiting' }).click();
  await loaded('waiting');
  await tid('claim-code').fill('01234-56789-ABCDE-FGHJK-K');
  await tid('claim-says').getByText('does not fit').waitFor();
  if (await tid('claim-send').isEnabled()) faults.push('a claim code with a wrong check character may be sent');
  await look('waiting');
  await tid('claim-code').fill('01234-56789-abcde-fghjk-j');
  await tid('claim-says').getByText('The code is whole').waitFor();
  await main.getByRole('link', { name: 'Firmware' }).click();
  await page.getByRole('heading', { name: 'Reference values' }).first().waitFor();
  await loaded('firmware');
  await look('firmware');
  await main.getByRole('link', { name: 'Alarms' }).click();
  await loaded('alarms');
  await look('alarms');
  await main.getByRole('link', { name: 'Service' }).click();
  for (const part of ['store', 'broker', 'ingest', 'verifier', 'rollout', 'export/siem', 'certificates', 'disk', 'clock', 'access-log']) {
    await page.locator(`[data-testid=health][data-part="${part}"]:not([data-state=failing])`).waitFor();
  }
  await page.locator('[data-testid=rate-chart] canvas').waitFor();
  await page.locator('[data-testid=time-chart] canvas').waitFor();
  await page.locator('[data-testid=fault-chart] canvas').waitFor();
  await tid('slow-row').first().waitFor();
  await page.locator('[data-testid=part-row][data-part=store]').getByRole('button').click();
  await tid('part').selectOption('mqtt-up');
  await tid('slow-row').getByText('audit').waitFor();
  await tid('range-6h').check();
  await page.locator('[data-testid=rate-chart] canvas').waitFor();
  await tid('range-15min').check();
  await page.locator('[data-testid=rate-chart] canvas').waitFor();
  await loaded('service');
  await look('service');
  await main.getByRole('link', { name: 'Settings' }).click();
  await page.locator('[data-testid=issuing-row][data-current=true]').waitFor();
  await tid('export-test').click();
  await page.getByText('A test event has arrived at siem.').waitFor();
  await loaded('settings');
  await look('settings');
  await main.getByRole('link', { name: 'Audit' }).click();
  await tid('audit-row').first().waitFor();

  // Who has scrolled must still learn that what is shown may be old.
  cut = true;
  await page.route('**/v1/live', (r) => r.abort());
  await page.reload();
  await tid('audit-row').first().waitFor();
  await page.locator('[data-testid=live-state][data-state=off]').waitFor({ timeout: 60_000 });
  await page.setViewportSize({ width: 1280, height: 420 });
  const down = await page.evaluate(() => { scrollTo(0, document.body.scrollHeight); return scrollY; });
  if (down < 150) faults.push(`the audit page scrolls by ${down} pixels only, too few to hide anything`);
  const seen = await page.getByRole('alert').evaluate((e) => { const r = e.getBoundingClientRect(); return r.height > 0 && r.top >= 0 && r.bottom <= innerHeight; });
  if (!seen) faults.push('the word that the live connection is lost is out of view');
  await judge('audit (connection lost)');
  await page.screenshot({ path: join(out, 'lost.png') });
  shots.push('lost.png');
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.unroute('**/v1/live');
  await page.locator('[data-testid=live-state][data-state=on]').waitFor({ timeout: 60_000 });
  cut = false;
  await page.getByRole('button', { name: 'Sign out' }).click();
  await tid('signin-token').waitFor();
} catch (e) {
  error = String(e);
  await page.screenshot({ path: join(out, 'failed.png'), fullPage: true }).catch(() => undefined);
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
const ok = !error && faults.length === 0;
if (error) console.error(`the walk through the console stopped: ${error}`);
for (const f of faults) console.error(f);
console.log(JSON.stringify({ ok, screenshots: shots.length, faults, error }));
process.exit(ok ? 0 : 1);
