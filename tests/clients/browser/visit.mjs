// Visits the small site in ../site through the proxy subresource, and checks the content of its pages.
//
//   echo '{"chromium": PATH, "base": URL ending in /proxy, "token": TOKEN or null, "pac": TEXT or null}' | node visit.mjs
//
// With a token the browser connects to the bastion; without one, kubectl proxy adds the token. A PAC file names the
// proxy of the browser.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const { chromium: executablePath, base, token, pac } = JSON.parse(readFileSync(0, "utf8"));
const PATIENCE = 60_000;

const proxy = pac
  ? `--proxy-pac-url=data:application/x-ns-proxy-autoconfig;base64,${Buffer.from(pac).toString("base64")}`
  : "--no-proxy-server";

const browser = await chromium.launch({
  executablePath,
  args: [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", proxy,
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
  ],
});
const context = await browser.newContext({
  // The certificate is issued by the CA of the test.
  ignoreHTTPSErrors: true,
  extraHTTPHeaders: token ? { Authorization: `Bearer ${token}` } : {},
  deviceScaleFactor: 2,
});
context.setDefaultTimeout(PATIENCE);
const { hostname, pathname } = new URL(base);
if (pathname !== "/") {
  // As set by a page of another target, or before cookies had the path of their target. The site uses the name, too.
  await context.addCookies([{ name: "user", value: "other", domain: hostname, path: "/" }]);
}
const page = await context.newPage();

// All resources of the site must load, and no request may leave it.
const astray = [];
page.on("response", (response) => {
  if (response.status() >= 400 || !response.url().startsWith(base)) {
    astray.push(`${response.status()} ${response.url()}`);
  }
});
page.on("requestfailed", (request) => {
  // Chromium reports this for requests that a navigation has canceled.
  if (request.failure()?.errorText !== "net::ERR_ABORTED") {
    astray.push(`${request.failure()?.errorText} ${request.url()}`);
  }
});
page.on("pageerror", (error) => astray.push(`in the page: ${error.message}`));

// Status of WebSocket handshakes in DevTools: 101 over HTTP/1.1, 200 over HTTP/2 (RFC 8441).
const handshakes = [];
const devtools = await context.newCDPSession(page);
await devtools.send("Network.enable");
devtools.on("Network.webSocketHandshakeResponseReceived", ({ response }) => handshakes.push(response.status));

const steps = {
  async "the front page, by its address without the slash"() {
    await page.goto(base);
    assert.equal(page.url(), `${base}/`);
    assert.equal(await page.title(), "Front page");
    if (token) {
      const protocol = await page.evaluate(() => performance.getEntriesByType("navigation")[0].nextHopProtocol);
      assert.equal(protocol, "h2");
    }
  },

  async "the stylesheet"() {
    const color = await page.locator("h1").evaluate((element) => getComputedStyle(element).color);
    assert.equal(color, "rgb(1, 2, 3)");
  },

  async "the script"() {
    assert.equal(await page.locator("#script").textContent(), "the script has run on Front page");
  },

  async "the image of srcset for a dense display"() {
    const photo = await page.locator("#photo").evaluate(async (image) => {
      await image.decode();
      return { source: image.currentSrc, width: image.naturalWidth };
    });
    // 20 pixels at double density.
    assert.deepEqual(photo, { source: `${base}/assets/large.svg`, width: 10 });
  },

  async "the drawing of another file"() {
    await page.waitForFunction(() => document.querySelector("#drawing use").getBBox().width === 16);
  },

  async "the frame"() {
    assert.equal(await page.frameLocator("#frame").locator("#message").textContent(), "you see a frame");
  },

  async "a link"() {
    await page.click("#second");
    await shows("/second?from=front&n=1", "you came by from=front&n=1");
    await page.click("#home");
    await page.waitForURL(`${base}/`);
  },

  async "a link in a drawing"() {
    await page.click("#drawn");
    await shows("/second?from=svg", "you came by from=svg");
    await page.goBack();
  },

  async "a redirect"() {
    await page.click("#moved");
    await shows("/elsewhere", "hello, stranger");
    await page.goBack();
  },

  async "a redirect to a whole URL"() {
    // Behind another proxy the application gets the host from that proxy.
    if (token) {
      await page.goto(`${base}/moved/whole`);
      await shows("/elsewhere", "hello, stranger");
      await page.click("#home");
    }
  },

  async "a page that sends on by itself"() {
    await page.click("#refreshed");
    await shows("/elsewhere", "hello, stranger");
    await page.click("#home");
  },

  async "a form that asks"() {
    await page.fill("#search input", "a b&c");
    await page.click("#search button");
    await shows("/search?q=a+b%26c", "you searched for q=a+b%26c");
    await page.click("#home");
  },

  async "a form that sends, and the cookie it brings"() {
    await page.fill("#login input", "jane");
    await page.click("#login button");
    await shows("/elsewhere", "hello, jane");
    await page.reload();
    await shows("/elsewhere", "hello, jane");
    await page.click("#home");
  },

  async "a form's second button"() {
    await page.click("#guest");
    await shows("/elsewhere", "hello, guest");
    await page.click("#home");
    await page.waitForURL(`${base}/`);
  },

  async "an upload of the script"() {
    assert.equal(await page.evaluate(() => window.upload(3_000_000)), 3_000_000);
  },

  async "events as they come"() {
    assert.deepEqual(await page.evaluate(() => window.listen()), ["event 1", "event 2", "event 3"]);
  },

  async "a WebSocket"() {
    // A page cannot set headers on a WebSocket, so the token is in a subprotocol, as in Kubernetes.
    const bearer = token && `base64url.bearer.authorization.k8s.io.${Buffer.from(token).toString("base64url")}`;
    const talk = await page.evaluate((protocols) => window.talk(protocols), token ? ["chat", bearer] : ["chat"]);
    const [hello, ...rest] = talk.messages;
    assert.deepEqual(JSON.parse(hello), { url: "/socket?room=1", authorization: null, protocols: "chat" });
    assert.deepEqual({ ...talk, messages: rest }, { protocol: "chat", messages: ["good day"], code: 4001, wasClean: true });
    assert.deepEqual(handshakes, [token ? 200 : 101]);
  },
};

// Waits for a page of the site and returns its content.
async function shows(path, message) {
  await page.waitForURL(base + path);
  assert.equal(await page.locator("#message").textContent(), message);
}

try {
  for (const [what, step] of Object.entries(steps)) {
    try {
      await step();
      assert.deepEqual(astray, []);
    } catch (error) {
      const shown = await page.content().catch(() => "nothing");
      console.log(`failed: ${what}: ${error.message}\nat ${page.url()}, astray: ${astray.join(", ")}\n${shown}`);
      process.exitCode = 1;
      break;
    }
    console.log(`saw ${what}`);
  }
} finally {
  await browser.close();
}
