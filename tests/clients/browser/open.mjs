// Uses the site in ../site at two hosts at once, as kube-bastion open serves it.
//
//   echo '{"chromium": PATH, "bases": [URL, URL]}' | node open.mjs

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const { chromium: executablePath, bases } = JSON.parse(readFileSync(0, "utf8"));
const PATIENCE = 60_000;

const browser = await chromium.launch({
  executablePath,
  args: [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
  ],
});
const context = await browser.newContext();
context.setDefaultTimeout(PATIENCE);
const [first, second] = [await context.newPage(), await context.newPage()];
const message = (page) => page.locator("#message").textContent();

async function login(page, base, user) {
  await page.goto(base);
  await page.fill("#login input", user);
  await page.click("#login button");
  await page.waitForURL(`${base}/elsewhere`);
}

const steps = {
  async "two applications with the same cookie name"() {
    await login(first, bases[0], "jane");
    await login(second, bases[1], "john");
    await first.reload();
    assert.equal(await message(first), "hello, jane");
    await second.reload();
    assert.equal(await message(second), "hello, john");
  },

  async "a module and a request of a script, from the root of the host"() {
    await first.goto(bases[0]);
    await first.evaluate(() => import("/assets/app.js"));
    const size = await first.evaluate(async () => (await fetch("/assets/tile.svg")).headers.get("content-type"));
    assert.equal(size, "image/svg+xml");
  },

  async "an image of a style sheet"() {
    const loaded = await first.evaluate(() => performance.getEntriesByType("resource").map(({ name }) => name));
    assert.ok(loaded.includes(`${bases[0]}/assets/tile.svg`), loaded.join(", "));
  },

  async "an encoded slash and a query"() {
    const seen = await first.evaluate(async () => (await fetch("/search?q=a%2Fb%20c")).text());
    assert.ok(seen.includes("you searched for q=a%2Fb%20c"), seen);
  },

  async "thirty WebSockets of one page"() {
    const talks = await first.evaluate(() => Promise.all(Array.from({ length: 30 }, () => window.talk(["chat"]))));
    for (const { messages, code } of talks) assert.deepEqual([messages[1], code], ["good day", 4001]);
  },

  async "no request of another site"() {
    // The page of one application is another site for the other one.
    const status = (base) => second.evaluate(async (url) => {
      const opened = await new Promise((resolve) => {
        const socket = new WebSocket(`${url.replace("http", "ws")}/socket`);
        socket.onopen = () => resolve(true);
        socket.onerror = () => resolve(false);
      });
      const posted = await fetch(`${url}/upload`, { method: "POST", body: "x" }).then(() => true, () => false);
      return { opened, posted };
    }, base);
    assert.deepEqual(await status(bases[1]), { opened: true, posted: true });
    assert.deepEqual(await status(bases[0]), { opened: false, posted: false });
  },
};

try {
  for (const [what, step] of Object.entries(steps)) {
    try {
      await step();
    } catch (error) {
      console.log(`failed: ${what}: ${error.message}\nat ${first.url()} and ${second.url()}`);
      process.exitCode = 1;
      break;
    }
    console.log(`saw ${what}`);
  }
} finally {
  await browser.close();
}
