// The status pages of a proxy and of a gateway in headless Chromium.
//
// usage: node checks.js PROXY MEMBER_PID TENANTS GATEWAY [FOLDER]    TENANTS is the listener for metrics of a proxy with tenants, GATEWAY that of
// a gateway with one endpoint that is down and one that serves; with a FOLDER, screenshots of a wide and of a narrow window go there
'use strict';
const assert = require('node:assert');
const { chromium } = require('playwright-core');

// Only a check that hangs meets it.
const PATIENCE = 120_000;
const [proxy, memberPid, tenants, gateway, folder] = process.argv.slice(2);

async function main() {
  const browser = await chromium.launch({
    timeout: PATIENCE,
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync'],
  });
  try {
    const page = await browser.newPage({ viewport: { width: 1100, height: 900 } });
    page.setDefaultTimeout(PATIENCE);
    const problems = [];
    const hosts = [proxy, tenants, gateway];
    page.on('pageerror', (error) => problems.push(String(error)));
    page.on('console', (message) => { if (message.type() === 'error') problems.push(message.text()); });
    page.on('request', (request) => {
      if (!hosts.includes(new URL(request.url()).host) && !request.url().startsWith('data:')) problems.push('asks ' + request.url());
    });
    await page.goto('http://' + proxy + '/ui');
    await page.waitForSelector('#endpoints td.ready');
    await page.waitForSelector('#cached td.live');
    assert.ok(await page.isHidden('#of-tenants'), 'there are no tenants');
    assert.match(await page.textContent('#cached tbody'), /\/jobs\/\*/);
    assert.match(await page.textContent('#calls tbody'), /Range/);
    await page.waitForFunction(() => document.querySelectorAll('figure .line[d]').length === document.querySelectorAll('figure').length);
    // Enough points for the picture.
    if (folder) await page.waitForTimeout(20000);
    if (folder) await page.screenshot({ path: folder + '/status-page.png', fullPage: true });
    await page.setViewportSize({ width: 390, height: 844 });
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.strictEqual(overflow, 0, 'the page is wider than a phone');
    if (folder) await page.screenshot({ path: folder + '/status-page-phone.png', fullPage: true });
    await page.setViewportSize({ width: 1100, height: 900 });
    await page.goto('http://' + tenants + '/ui');
    await page.waitForSelector('#limits meter');
    assert.match(await page.textContent('#about'), /2 tenants/);
    assert.match(await page.textContent('#tenants tbody'), /team-a\/team-a\//);
    const limits = await page.$$eval('#limits tbody tr', (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));
    assert.deepStrictEqual(limits[0], ['team-a', 'stored-keys', '1', '1', '', '1']);
    await page.waitForFunction(() => [...document.querySelectorAll('figure:not([hidden]) .name')].some((name) => name.textContent.startsWith('Refused')));
    if (folder) await page.screenshot({ path: folder + '/status-page-tenants.png', fullPage: true });
    await page.setViewportSize({ width: 390, height: 844 });
    assert.strictEqual(await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth), 0);
    await page.setViewportSize({ width: 1100, height: 900 });
    await page.goto('http://' + gateway + '/ui');
    await page.waitForSelector('#endpoints td.up');
    await page.waitForSelector('#endpoints td.down');
    assert.match(await page.textContent('#about'), /accepts connections on/);
    assert.match(await page.textContent('#endpoints tbody'), /refused/);
    await page.waitForFunction(() => document.querySelectorAll('figure .line[d]').length === document.querySelectorAll('figure').length);
    const moved = () => document.querySelector('#charts').textContent.match(/To endpoints [1-9]/);
    await page.waitForFunction(moved);
    if (folder) await page.waitForTimeout(10000);
    if (folder) await page.screenshot({ path: folder + '/status-page-gateway.png', fullPage: true });
    await page.setViewportSize({ width: 390, height: 844 });
    assert.strictEqual(await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth), 0);
    await page.goto('http://' + proxy + '/ui');
    await page.waitForSelector('#endpoints td.ready');
    assert.deepStrictEqual(problems, []);
    process.kill(Number(memberPid), 'SIGKILL');
    await page.waitForSelector('#endpoints td.failed, #endpoints td.limited', { timeout: PATIENCE });
    console.log('status page: ok');
  } finally {
    await browser.close();
  }
}

main().catch((error) => { console.error(error); process.exit(1); });
