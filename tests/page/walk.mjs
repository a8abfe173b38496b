// A test of the operators' page in a real browser. A step fails the test if the page does not show the expected text in
// time. The service and the embedded cloud are real processes; nothing is intercepted.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import puppeteer from 'puppeteer-core';

const [executablePath, url, secret, cloud, pictures] = process.argv.slice(2);

// Chromium refuses to start with its sandbox as root, the user of most containers.
const args = process.getuid() === 0 ? ['--no-sandbox'] : [];
const browser = await puppeteer.launch({ executablePath, args: [...args, '--disable-dev-shm-usage'] });
const page = await browser.newPage();

/** The browser's errors, and violations of the page's content security policy. */
const complaints = [];
const requested = [];
page.on('console', line => {
  if (['error', 'warn'].includes(line.type())) complaints.push(`${line.text()} (${line.location().url})`);
});
page.on('pageerror', error => complaints.push(String(error)));
page.on('request', request => requested.push(request.url()));
await page.evaluateOnNewDocument(() => {
  document.addEventListener('securitypolicyviolation', event => console.error(`policy: ${event.blockedURI} ${event.violatedDirective}`));
});

const step = async (title, run) => {
  const began = Date.now();
  try {
    await run();
  } catch (error) {
    await picture('failed');
    console.error(`FAILED: ${title}\n${await page.evaluate(() => document.body.innerText)}`);
    throw error;
  }
  console.log(`ok: ${title} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
};

const picture = name => page.screenshot({ path: join(pictures, `${name}.png`), fullPage: true });

/** Waits until the condition holds in the page. */
const until = (condition, seconds, ...more) => page.waitForFunction(condition, { timeout: seconds * 1000, polling: 200 }, ...more);

/** Waits until a VM's card shows this text. */
const shows = (vm, text, seconds = 10) => until((vm, text) =>
  [...document.querySelectorAll('article')].find(card => card.querySelector('h2').textContent === vm)?.innerText.includes(text),
seconds, vm, text);

const button = label => page.waitForSelector(`::-p-aria([name="${label}"][role="button"])`, { visible: true, timeout: 10_000 });
const press = async label => (await button(label)).click();

/** Presses a button of a card, confirms, and returns the dialog's text. */
const command = async (action, vm) => {
  await press(`${action} ${vm}`);
  await page.waitForSelector('dialog[open]');
  const text = await page.$eval('dialog', dialog => dialog.innerText);
  await (await page.$('#yes')).click();
  return text;
};

const play = async path => {
  const answer = await fetch(`${cloud}/play/${path}`, { method: 'POST' });
  assert.equal(answer.status, 200, await answer.text());
};

const enter = async text => {
  await (await page.waitForSelector('#secret', { visible: true })).type(text);
  await page.keyboard.press('Enter');
};

/** The pixels by which the content is wider than the window. */
const overflow = () => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

await page.setViewport({ width: 1280, height: 900 });
await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'light' }]);

await step('a browser gets the page, and is asked for the secret', async () => {
  const answer = await page.goto(url);
  assert.match(answer.headers()['content-type'], /^text\/html/);
  assert.match(answer.headers()['content-security-policy'], /default-src 'none'/);
  await page.waitForSelector('#secret', { visible: true });
  await picture('door');
});

await step('a wrong secret is refused', async () => {
  await enter('not-the-secret');
  await until(() => document.querySelector('#refused').textContent.includes('refused'), 5);
  assert.equal(await page.evaluate(() => sessionStorage.length), 0, 'a wrong secret is kept');
  // The browser logs the expected 401 as an error.
  const unexpected = complaints.splice(0).filter(text => !/status of 401/.test(text));
  assert.deepEqual(unexpected, []);
});

await step('the right secret shows the VMs', async () => {
  await enter(secret);
  await shows('gpu-1', 'Stopped');
  await shows('runner-1', 'nothing needs it.');
  assert.equal(await page.$eval('#door', door => door.checkVisibility()), false);
});

await step('start: the card follows from Starting to Idle', async () => {
  const text = await command('Start', 'gpu-1');
  assert.match(text, /is stopped again once nothing needs it/);
  await shows('gpu-1', 'Starting');
  await shows('gpu-1', 'Idle', 40);
  await until(() => document.querySelector('#said').textContent.includes('gpu-1: Idle'), 2);
});

await step('hold and release', async () => {
  await command('Hold', 'gpu-1');
  await shows('gpu-1', 'Held');
  await shows('gpu-1', 'is not stopped until it is released');
  await button('Release gpu-1');
  await picture('held');
  await command('Release', 'gpu-1');
  await button('Hold gpu-1');
});

await step('a queued job appears with its link, and runs', async () => {
  await play('job?repo=acme/web&labels=self-hosted&seconds=600');
  await shows('runner-1', 'is queued for it', 40);
  const links = await page.$$eval('article a', all => all.map(a => [a.href, a.rel, a.target]));
  assert.equal(links.length, 1);
  assert.match(links[0][0], /^https:\/\/github\.com\/acme\/web\/actions\/runs\/\d+\/job\/\d+$/);
  assert.deepEqual(links[0].slice(1), ['noopener noreferrer', '_blank']);
  await shows('runner-1', 'is running on it', 90);
  await shows('runner-1', 'Working');
});

await step('times tick between two requests', async () => {
  const text = () => page.$eval('#pulse', pulse => pulse.textContent);
  const before = await text();
  await until(before => document.querySelector('#pulse').textContent !== before, 3, before);
});

await step('light, dark and narrow: nothing is wider than the window', async () => {
  await picture('light');
  assert.ok(await overflow() <= 0);
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'dark' }]);
  const paper = await page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
  assert.equal(paper, 'rgb(19, 21, 25)');
  await picture('dark');
  await page.setViewport({ width: 360, height: 740, deviceScaleFactor: 2 });
  assert.ok(await overflow() <= 0, `${await overflow()} px too wide at 360 px`);
  await picture('narrow-dark');
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'light' }]);
  await picture('narrow');
  await press('Stop runner-1');
  await page.waitForSelector('dialog[open]');
  assert.ok(await overflow() <= 0, 'the dialog is too wide at 360 px');
  await page.screenshot({ path: join(pictures, 'narrow-dialog.png') });
  await page.keyboard.press('Escape');
  await page.setViewport({ width: 1280, height: 900 });
});

await step('text has the contrast that WCAG AA asks for, in light and in dark', async () => {
  for (const value of ['light', 'dark']) {
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value }]);
    assert.deepEqual(await page.evaluate(poorContrasts), [], value);
  }
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'light' }]);
});

await step('a stop while a job runs: the page names the job, and the VM stays up', async () => {
  const text = await command('Stop', 'runner-1');
  assert.match(text, /job \d+ of acme\/web is running on it/i);
  assert.match(text, /Stop it all the same\s+The job that runs now is killed/);
  await shows('runner-1', 'It was not stopped: something needs it.');
  await shows('runner-1', 'Working');
});

await step('the keyboard is enough: a hold, its dialog cancelled and confirmed', async () => {
  await page.evaluate(() => document.activeElement.blur());
  const focused = () => page.evaluate(() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.id);
  for (let presses = 0; await focused() !== 'Hold runner-1'; presses += 1) {
    assert.ok(presses < 60, 'the button cannot be reached');
    await page.keyboard.press('Tab');
  }
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, 'solid', 'the focus is not visible');
  await page.keyboard.press('Enter');
  await page.waitForSelector('dialog[open]');
  await page.keyboard.press('Escape');
  await page.waitForSelector('dialog:not([open])');
  assert.equal(await focused(), 'Hold runner-1', 'the focus is lost');
  await page.keyboard.press('Space');
  await page.waitForSelector('dialog[open]');
  while (await focused() !== 'yes') await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  await shows('runner-1', 'Held');
});

await step('a call that is not permitted is shown with its fix', async () => {
  await play('forbid?permission=compute.instances.get');
  await shows('gpu-1', 'grant compute.instances.get');
  await shows('gpu-1', 'Not known');
  await picture('not-asked');
  await play('permit?permission=compute.instances.get');
  await shows('gpu-1', 'Idle');
});

await step('a command that Google refuses says why', async () => {
  await play('forbid?permission=compute.instances.setLabels');
  await command('Release', 'runner-1');
  await shows('runner-1', 'Release failed.');
  await shows('runner-1', 'grant compute.instances.setLabels');
  await play('permit?permission=compute.instances.setLabels');
});

await step('a stop by force', async () => {
  await press('Stop runner-1');
  await page.waitForSelector('dialog[open]');
  await page.click('#force');
  assert.equal(await page.$eval('#yes', yes => yes.textContent), 'Stop by force');
  await picture('force');
  await page.click('#yes');
  await shows('runner-1', 'Stopping');
});

await step('a plain stop: the card follows down to Stopped', async () => {
  await command('Stop', 'gpu-1');
  await shows('gpu-1', 'Stopping');
  await shows('gpu-1', 'Stopped', 60);
});

await step('reconcile: the findings of each VM', async () => {
  const answered = page.waitForResponse(answer => answer.url().endsWith('/runner/reconcile'));
  await press('Reconcile');
  await page.waitForSelector('dialog[open]');
  await page.click('#yes');
  const answer = await answered;
  assert.equal(answer.status(), 200);
  const { vms } = await answer.json();
  const texts = vms.flatMap(vm => [vm.vm_instance_name, ...vm.findings.map(finding => finding.found.slice(1))]);
  assert.ok(texts.includes('gpu-1') && texts.includes('runner-1'), texts);
  await until(texts => texts.every(text => document.querySelector('#findings').innerText.includes(text)), 5, texts);
  await picture('findings');
  await press('Close');
});

await step('the secret is in no URL, and can be forgotten', async () => {
  assert.ok(requested.length > 20);
  const [origin, needle] = [new URL(url).origin, encodeURIComponent(secret)];
  for (const one of requested) {
    assert.ok(!one.includes(needle), one);
    assert.ok(one.startsWith(`${origin}/`) || one.startsWith('data:'), `requested from elsewhere: ${one}`);
  }
  assert.ok(!page.url().includes('?') && !page.url().includes('#'), page.url());
  assert.ok(!(await page.content()).includes(secret), 'the secret is in the document');
  await page.reload();
  await shows('gpu-1', 'Stopped');
  await press('Forget the secret');
  await page.waitForSelector('#secret', { visible: true });
  assert.equal(await page.evaluate(() => sessionStorage.length + localStorage.length), 0);
  assert.deepEqual(await browser.cookies(), []);
});

// The browser logs the refused command's expected 502 as an error.
const unexpected = complaints.filter(text => !/status of 502.*runner\/release/.test(text));
assert.deepEqual(unexpected, [], 'the browser reported errors');
await browser.close();
console.log('the page works');

/** The texts whose contrast with their background is below 4.5, or below 3 if they are large. Runs in the page. */
function poorContrasts() {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  canvas.canvas.width = canvas.canvas.height = 1;
  /** Paints the colours over one another, and returns the browser's result. */
  const paint = colors => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) {
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
    }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = rgb => rgb
    .map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, nth) => sum + value * [0.2126, 0.7152, 0.0722][nth], 0);
  const poor = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.closest('script, style, .unseen')) continue;
    const style = getComputedStyle(element);
    const behind = [];
    for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const [text, ground] = [luminance(paint([...behind, style.color])), luminance(paint(behind))];
    const contrast = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : 4.5)) poor.push(`${contrast.toFixed(2)}: ${texts.currentNode.data.trim()}`);
  }
  return poor;
}
