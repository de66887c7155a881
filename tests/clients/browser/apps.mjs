// Uses an application through the bastion, as a person would in a browser.
//
//   echo '{"chromium": PATH, "base": URL without a slash at its end, "app": NAME, "screenshot": PATH}' | node apps.mjs
//
// kubectl proxy or kube-bastion open adds the credentials of the caller.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const { chromium: executablePath, base, app, screenshot } = JSON.parse(readFileSync(0, "utf8"));
const PATIENCE = 60_000;

const browser = await chromium.launch({
  executablePath,
  args: [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    // Nothing outside of this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE *.localhost",
  ],
});
const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
context.setDefaultTimeout(PATIENCE);
const page = await context.newPage();

// Requests that left the prefix, and requests below it that failed.
const astray = [];
// Failures that the application has without a proxy too, or that do not concern its function.
const tolerated = {
  // Answers of an unused language server, and of a workspace that was never saved.
  jupyterlab: /\/(lsp\/status|lab\/api\/workspaces\/)/,
  // Fonts, which its style sheet requests from the root of the host whatever --path_prefix is.
  tensorboard: /\/font-roboto\//,
  // The page asks before the login whether another form of login is configured.
  rabbitmq: /\/api\/(auth|whoami)$/,
  // Debian's package loads an ECMAScript module as a classic script.
  prometheus: /Unexpected token 'export'/,
}[app];

function report(line) {
  if (!tolerated?.test(line)) astray.push(line);
}

page.on("response", (response) => {
  const url = response.url();
  const local = url.startsWith("data:") || url.startsWith("blob:");
  if (!local && (response.status() >= 400 || !url.startsWith(base))) report(`${response.status()} ${url}`);
});
page.on("requestfailed", (request) => {
  const reason = request.failure()?.errorText;
  // Chromium reports this for requests that a navigation or a script has canceled.
  if (reason !== "net::ERR_ABORTED") report(`${reason} ${request.url()}`);
});
page.on("pageerror", (error) => report(`in the page: ${error.message}`));

// Text of the frames that WebSockets received, by the path below the prefix.
const sockets = [];
page.on("websocket", (socket) => {
  const messages = [];
  const path = socket.url().replace(/^ws/, "http").replace(base, "");
  sockets.push({ path, messages });
  socket.on("framereceived", ({ payload }) => messages.push(payload.toString()));
  socket.on("socketerror", (error) => report(`${error} ${socket.url()}`));
});

// Waits until a WebSocket below `path` has received a message that matches.
async function received(path, pattern) {
  for (const end = Date.now() + PATIENCE; Date.now() < end;) {
    const socket = sockets.find((candidate) => candidate.path.startsWith(path));
    if (socket?.messages.some((message) => pattern.test(message))) return;
    await page.waitForTimeout(100);
  }
  const seen = sockets.map(({ path: at, messages }) => `${at}: ${messages.length} messages`);
  assert.fail(`no message on a WebSocket at ${path} matches ${pattern}; ${seen.join("; ")}`);
}

// Sends a request from the page, with the cookies and the origin of the application.
async function send(method, path, body) {
  const answer = await page.evaluate(
    async ([url, init]) => {
      const response = await fetch(url, init);
      return { status: response.status, text: await response.text() };
    },
    [base + path, { method, body, headers: body && { "content-type": "application/json" } }],
  );
  assert.ok(answer.status < 400, `${method} ${path}: ${answer.status} ${answer.text}`);
  return answer.text;
}

// Waits until an element shows a colored curve. A worker draws it, so it is only in the picture.
async function drawn(element) {
  const reader = await context.newPage();
  for (const end = Date.now() + PATIENCE; Date.now() < end; await page.waitForTimeout(250)) {
    const picture = (await element.screenshot()).toString("base64");
    const colored = await reader.evaluate(async (data) => {
      const image = new Image();
      image.src = `data:image/png;base64,${data}`;
      await image.decode();
      const canvas = new OffscreenCanvas(image.width, image.height);
      const drawing = canvas.getContext("2d");
      drawing.drawImage(image, 0, 0);
      const bytes = drawing.getImageData(0, 0, image.width, image.height).data;
      let count = 0;
      for (let at = 0; at < bytes.length; at += 4) count += bytes[at + 2] > bytes[at] + 20;
      return count;
    }, picture);
    if (colored > 100) return reader.close();
  }
  assert.fail("the curve is not drawn");
}

const apps = {
  async jupyterlab() {
    await page.goto(`${base}/`);
    await page.waitForURL(`${base}/lab`);
    await page.locator('.jp-LauncherCard[data-category="Notebook"]').first().click();
    await page.getByText("Python 3 (ipykernel) | Idle").waitFor();
    const cell = page.locator(".jp-Notebook .jp-Cell .cm-content").first();
    await cell.click();
    await cell.pressSequentially("print(6 * 7, 'is the answer')");
    await page.keyboard.press("Shift+Enter");
    await page.locator(".jp-OutputArea-output", { hasText: "42 is the answer" }).waitFor();
    await received("/api/kernels/", /42 is the answer/);
    const saved = page.waitForResponse((response) => response.request().method() === "PUT");
    await page.keyboard.press("Control+s");
    await page.getByRole("button", { name: "Rename and Save" }).click();
    assert.ok((await saved).ok());
  },

  async tensorboard() {
    const data = page.waitForResponse((response) => response.url().includes("/data/plugin/timeseries/timeSeries"));
    await page.goto(`${base}/`);
    assert.match(await (await data).text(), /"runToSeries":\s*{"first-run"/);
    await page.locator("card-view", { hasText: "loss" }).first().waitFor();
    await page.locator("runs-data-table, runs-selector", { hasText: "first-run" }).first().waitFor();
    await drawn(page.locator("card-view line-chart").first());
  },

  async streamlit() {
    await page.goto(`${base}/`);
    await page.getByText("Square: 4", { exact: true }).waitFor();
    await page.getByRole("slider").focus();
    await page.keyboard.press("ArrowRight");
    await page.getByText("Square: 9", { exact: true }).waitFor();
    await page.getByRole("button", { name: "Say hello" }).click();
    await page.getByText("Hello from the server").waitFor();
    assert.ok(sockets.some(({ path, messages }) => path.startsWith("/_stcore/stream") && messages.length > 3));
  },

  async verdaccio() {
    await page.goto(`${base}/`);
    await page.getByText("No Package Published Yet").waitFor();
    // As npm publishes.
    const [name, version, file] = ["tea-pot", "1.2.3", "tea-pot-1.2.3.tgz"];
    const manifest = {
      name, version, description: "Short and stout", readme: "# The handle and the spout",
      dist: { shasum: createHash("sha1").update("packed").digest("hex"), tarball: `${base}/${name}/-/${file}` },
    };
    const attachment = { content_type: "application/octet-stream", data: btoa("packed"), length: 6 };
    await send("PUT", `/${name}`, JSON.stringify({
      _id: name, name, "dist-tags": { latest: version }, versions: { [version]: manifest },
      _attachments: { [file]: attachment },
    }));
    await page.reload();
    await page.getByText("Short and stout").waitFor();
    const found = page.waitForResponse((response) => response.url().startsWith(`${base}/-/verdaccio/data/search/tea`));
    await page.getByPlaceholder("Search Packages").pressSequentially("tea");
    assert.match(await (await found).text(), /"Short and stout"/);
    await page.keyboard.press("Escape");
    await page.getByText(name, { exact: true }).click();
    await page.waitForURL(`${base}/-/web/detail/tea-pot`);
    await page.getByText("The handle and the spout").waitFor();
    // A deep link.
    await page.reload();
    await page.getByText("The handle and the spout").waitFor();
    // Clients take the address of the tarball from here.
    const { tarball } = JSON.parse(await send("GET", `/${name}`)).versions[version].dist;
    assert.equal(tarball, `${base}/${name}/-/${file}`);
    assert.equal(await send("GET", `/${name}/-/${file}`), "packed");
  },

  async "node-red"() {
    await page.goto(`${base}/`);
    await page.locator("#red-ui-workspace-chart svg").waitFor();
    const flow = [
      { id: "in", type: "http in", url: "/hello", method: "get", x: 100, y: 100, wires: [["text", "log"]] },
      { id: "text", type: "template", template: "hello, {{payload.name}}", x: 300, y: 100, wires: [["out"]] },
      { id: "out", type: "http response", x: 500, y: 100, wires: [] },
      {
        id: "log", type: "debug", active: true, tosidebar: true, complete: "payload.name", targetType: "msg",
        x: 300, y: 200, wires: [],
      },
    ];
    await page.keyboard.press("Control+i");
    const text = page.locator("#red-ui-clipboard-dialog-import-text");
    await text.fill(JSON.stringify(flow));
    // The dialog checks the text when a key is released.
    await text.press("End");
    await page.locator("#red-ui-clipboard-dialog-ok").click();
    // The nodes follow the pointer until a click.
    await page.locator("#red-ui-workspace-chart").click({ position: { x: 300, y: 200 } });
    const deployed = page.waitForResponse((response) => response.request().method() === "POST");
    await page.locator("#red-ui-header-button-deploy").click();
    assert.ok((await deployed).ok());
    await page.getByText("Successfully deployed").waitFor();
    assert.equal(await send("GET", "/hello?name=jane"), "hello, jane");
    await received("/comms", /"debug".*jane/);
  },

  async rabbitmq() {
    await page.goto(`${base}/`);
    await page.locator('input[name="username"]').fill("guest");
    await page.locator('input[name="password"]').fill("guest");
    await page.locator('input[type="submit"]').click();
    await page.getByRole("heading", { name: "Overview" }).waitFor();
    await page.getByRole("link", { name: "Queues", exact: true }).click();
    await page.getByRole("heading", { name: "Add a new queue" }).click();
    await page.locator('form[action="#/queues"] input[name="name"]').fill("orders");
    await page.getByRole("button", { name: "Add queue" }).click();
    await page.getByRole("cell", { name: "orders" }).getByRole("link").click();
    await page.getByRole("heading", { name: "Queue orders" }).waitFor();
  },

  async prometheus() {
    await page.goto(`${base}/`);
    await page.waitForURL(/\/proxy\/classic\/graph/);
    await page.locator("textarea").first().fill("up");
    const row = page.getByText(/up{instance=".*",\s*job="itself"}/).first();
    // There is no result before the first scrape.
    for (const end = Date.now() + PATIENCE; Date.now() < end && !(await row.isVisible());) {
      const answer = page.waitForResponse((response) => response.url().includes("/api/v1/query?"));
      await page.getByRole("button", { name: "Execute" }).click();
      await answer;
      await page.waitForTimeout(500);
    }
    await row.waitFor({ timeout: 1_000 });
  },
};

try {
  await apps[app]();
  assert.deepEqual(astray, []);
} catch (error) {
  const shown = await page.content().catch(() => "nothing");
  console.log(`failed: ${error.message}\nat ${page.url()}, astray: ${astray.join(", ")}\n${shown.slice(0, 4000)}`);
  process.exitCode = 1;
} finally {
  await page.screenshot({ path: screenshot }).catch((error) => console.log(`no screenshot: ${error.message}`));
  await browser.close();
}
