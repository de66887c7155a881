// Visits the page of the demo, without credentials, and checks what it shows.
//
//   echo '{"chromium": PATH, "page": URL, "screenshots": FOLDER}' | node demo.mjs

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const { chromium: executablePath, page: home, screenshots } = JSON.parse(readFileSync(0, "utf8"));
const PATIENCE = 60_000;
const ENDPOINTS = ["web-1", "web-2", "web-3"];
// All services of the page are in one namespace.
const namespace = home.slice(0, home.indexOf("/services/"));

const browser = await chromium.launch({
  executablePath,
  args: [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
  ],
});
const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, colorScheme: "light" });
context.setDefaultTimeout(PATIENCE);
const page = await context.newPage();

const astray = [];
let denialsExpected = false;
const expectsDenial = (response) => denialsExpected && response.status() === 403;
page.on("request", (request) => {
  if (!request.url().startsWith(`${namespace}/`) && !/\/api\/v1\/nodes\//.test(request.url())) astray.push(request.url());
});
page.on("response", (response) => {
  if (response.status() >= 400 && !expectsDenial(response)) astray.push(`${response.status()} ${response.url()}`);
});
page.on("requestfailed", (request) => {
  // Chromium reports this for requests that a navigation has canceled.
  if (request.failure()?.errorText !== "net::ERR_ABORTED") astray.push(`${request.failure()?.errorText} ${request.url()}`);
});
page.on("pageerror", (error) => astray.push(`in the page: ${error.message}`));
page.on("console", (message) => {
  if (message.type() === "error" && /Content Security Policy/.test(message.text())) astray.push(message.text());
});

const number = async (selector) => Number((await page.locator(selector).textContent()).replaceAll(",", ""));
const responses = async () => {
  const counts = await page.locator(".count").allTextContents();
  return counts.map((count) => Number(count.replaceAll(",", "")));
};
const switchOf = (endpoint) => page.getByRole("switch", { name: `${endpoint} accepts connections` });
const connectedEndpoint = async () => {
  await page.waitForFunction(() => /^connected to/.test(document.querySelector("#socket-state").textContent));
  return (await page.locator("#socket-state").textContent()).slice("connected to ".length);
};

// Waits for responses of the endpoints, a count for each.
async function more(counts) {
  const before = await responses();
  await page.waitForFunction(([before, counts]) => {
    const now = [...document.querySelectorAll(".count")].map((count) => Number(count.textContent.replaceAll(",", "")));
    return counts.every((count, index) => now[index] >= before[index] + count);
  }, [before, counts]);
}

// Waits for requests, whichever endpoint responds.
async function requests(count) {
  const before = await number("#sent");
  await page.waitForFunction((least) => {
    return Number(document.querySelector("#sent").textContent.replaceAll(",", "")) >= least;
  }, before + count);
}

// Sends text on the WebSocket, with the keyboard, and waits for the echo of the endpoint.
async function say(text, endpoint) {
  await page.locator("#text").focus();
  await page.keyboard.type(text);
  await page.keyboard.press("Enter");
  await page.locator("#messages li", { hasText: `${endpoint}echo: ${text}` }).waitFor();
}

// Presses a key on the switch of an endpoint.
async function press(endpoint, key) {
  const element = switchOf(endpoint);
  const checked = await element.getAttribute("aria-checked");
  await element.focus();
  await page.keyboard.press(key);
  await page.waitForFunction(([name, checked]) => {
    const element = document.querySelector(`[role=switch][aria-label^="${name} "]`);
    return element.getAttribute("aria-checked") !== checked;
  }, [endpoint, checked]);
}

const steps = {
  async "the page, without credentials"() {
    const response = await page.goto(home);
    assert.equal(response.status(), 200);
    assert.equal(await page.title(), "Traffic – kube-bastion demo");
    const padding = await page.locator(".panel").first().evaluate((element) => getComputedStyle(element).paddingTop);
    assert.equal(padding, "20px");
  },

  async "endpoints that take turns"() {
    await page.waitForFunction(() => document.querySelectorAll(".endpoint").length === 3);
    await page.locator(".rate label", { hasText: "20" }).click();
    await more([8, 8, 8]);
    await page.locator(".rate label", { hasText: "5" }).click();
    const lit = await page.evaluate(() => {
      const rows = [...document.querySelectorAll(".cells")].map((row) => [...row.children]);
      return rows[0].map((_, column) => rows.findIndex((row) => row[column].classList.contains("lit")));
    });
    const shown = lit.filter((row) => row >= 0).slice(-20);
    const repeated = shown.filter((row, index) => row === shown[index - 1]);
    assert.equal(shown.length, 20);
    // Other requests of the page to the service take a turn as well: the WebSocket, and requests that overlap.
    assert.ok(repeated.length <= 4, `rows of the last requests: ${shown}`);
    assert.ok(new Set(shown).size === 3);
  },

  async "a WebSocket that ticks and echoes"() {
    const endpoint = await connectedEndpoint();
    await say("good day", endpoint);
    await page.locator("#messages li", { hasText: /tick 2$/ }).waitFor();
  },

  async "no failed request while an endpoint is off"() {
    const endpoint = await connectedEndpoint();
    await more([4, 4, 4]);
    await press(endpoint, "Space");
    // Responses that were under way have arrived.
    await requests(3);
    const index = ENDPOINTS.indexOf(endpoint);
    const before = (await responses())[index];
    await requests(20);
    assert.equal((await responses())[index], before);
    assert.equal(await number("#failed"), 0);
    await page.locator("#messages li", { hasText: `the connection to ${endpoint} has ended` }).waitFor();
    const other = await connectedEndpoint();
    assert.notEqual(other, endpoint);
    await say("still here", other);

    await press(endpoint, "Enter");
    await page.locator("#events li", { hasText: `${endpoint} responds again` }).waitFor();
    await more([6, 6, 6]);
    assert.equal(await number("#failed"), 0);
  },

  async "no failed request while two endpoints are off"() {
    await press("web-1", "Space");
    await requests(14);
    await say("hello", await connectedEndpoint());
    await requests(2);
    await page.evaluate(() => document.activeElement.blur());
    await page.screenshot({ path: join(screenshots, "demo.png") });
    await press("web-3", "Space");
    await requests(12);
    assert.equal(await number("#failed"), 0);
    assert.equal(await connectedEndpoint(), "web-2");
    await press("web-1", "Space");
    await press("web-3", "Space");
    await more([1, 1, 1]);
    assert.equal(await number("#failed"), 0);
  },

  async "links that were rewritten"() {
    await page.getByRole("navigation", { name: "Views" }).getByRole("link", { name: "Links" }).click();
    assert.equal(page.url(), `${home}links`);
    await page.waitForFunction(() => {
      const results = [...document.querySelectorAll("#rewritten td:last-child")];
      return results.length === 7 && results.every((cell) => cell.textContent !== "…");
    });
    const results = await page.locator("#rewritten td:last-child").evaluateAll((cells) => cells.map((cell) => cell.className));
    assert.deepEqual(results, Array(7).fill("good"));
    const received = await page.locator("#rewritten td:nth-child(3)").allTextContents();
    assert.ok(received.every((link) => link.startsWith("PREFIX/")), received.join());
    await page.screenshot({ path: join(screenshots, "demo-links.png") });
  },

  async "history of the application"() {
    await page.evaluate(() => { window.untouched = true; });
    await page.getByRole("link", { name: "Order 1" }).click();
    await page.getByRole("link", { name: "Order 3" }).click();
    assert.equal(page.url(), `${home}links/orders/3`);
    assert.equal(await page.locator("#order").textContent(), "Order 3: 5 × sugar");
    await page.goBack();
    assert.equal(await page.locator("#order").textContent(), "Order 1: 3 × tea");
    assert.equal(await page.locator("#route").textContent(), "/links/orders/1");
    await page.goForward();
    assert.equal(page.url(), `${home}links/orders/3`);
    assert.ok(await page.evaluate(() => window.untouched), "a page was loaded");
    await page.reload();
    assert.equal(await page.locator("#order").textContent(), "Order 3: 5 × sugar");
    await page.locator("#reload").click();
    await page.waitForURL(`${home}links/orders/2`);
    assert.equal(await page.locator("#order").textContent(), "Order 2: 1 × coffee, 2 × milk");
  },

  async "a form and a redirect"() {
    await page.locator("#search button").click();
    await page.waitForURL(`${home}links/orders/1?note=a+b%26c`);
    assert.equal(await page.locator("#route").textContent(), "/links/orders/1?note=a+b%26c");
    await page.locator("#moved").click();
    await page.waitForURL(`${home}links`);
  },

  async "allowed and denied requests"() {
    denialsExpected = true;
    await page.getByRole("navigation", { name: "Views" }).getByRole("link", { name: "Access" }).click();
    await page.waitForFunction(() => {
      return [...document.querySelectorAll("#attempts td:last-child")].every((cell) => cell.textContent !== "…");
    });
    const statuses = await page.locator("#attempts td:last-child").allTextContents();
    assert.deepEqual(statuses.map((status) => status.slice(0, 3)), ["200", "200", "403", "403", "403", "403"]);
    assert.match(await page.locator("#received").textContent(), /^GET \/\n[^]*x-forwarded-uri: \/api\/v1\//);
    assert.match(await page.locator("#rules").textContent(), /system:anonymous/);
    await page.screenshot({ path: join(screenshots, "demo-access.png") });
    await page.getByRole("navigation", { name: "Views" }).getByRole("link", { name: "Traffic" }).click();
    assert.equal(page.url(), home);
  },

  async "all controls by the Tab key"() {
    await page.goto(home);
    await page.waitForFunction(() => document.querySelectorAll(".endpoint").length === 3);
    const visited = [];
    for (let presses = 0; presses < 16; presses += 1) {
      await page.keyboard.press("Tab");
      visited.push(await page.evaluate(() => {
        const { tagName, id, ariaLabel, textContent } = document.activeElement;
        return id || ariaLabel || textContent.trim() || tagName;
      }));
    }
    for (const control of ["Skip to the content", "Links", "Access", "pause", "text", "Send"]) {
      assert.ok(visited.includes(control), `${control}: ${visited.join(", ")}`);
    }
    assert.equal(visited.filter((control) => control.endsWith("accepts connections")).length, 3);
  },

  async "narrow and dark screens"() {
    await page.emulateMedia({ colorScheme: "dark" });
    await page.screenshot({ path: join(screenshots, "demo-dark.png") });
    await page.setViewportSize({ width: 360, height: 800 });
    for (const view of ["", "links", "access"]) {
      await page.goto(home + view);
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(overflow <= 0, `${view} is ${overflow} pixels too wide`);
      await page.screenshot({ path: join(screenshots, `demo-narrow-${view || "traffic"}.png`), fullPage: true });
    }
  },
};

try {
  for (const [what, step] of Object.entries(steps)) {
    try {
      await step();
      assert.deepEqual(astray, []);
    } catch (error) {
      console.log(`failed: ${what}: ${error.message}\nat ${page.url()}, astray: ${astray.join(", ")}`);
      await page.screenshot({ path: join(screenshots, "demo-failed.png") }).catch(() => {});
      process.exitCode = 1;
      break;
    }
    console.log(`saw ${what}`);
  }
} finally {
  await browser.close();
}
