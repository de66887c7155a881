// Requests with and without permission.

import { create, element, home, service } from "./paths.js";

const INTERVAL = 3_000;
const api = new URL("../../../../..", home);
const namespace = new URL("../../..", home);
const pod = new URL("pods/web-1/proxy/", namespace);
const node = new URL("nodes/node-a/proxy/healthz", api);

/** Method, address and permission. */
const ATTEMPTS = [
  ["GET", service("web", "name"), "get services/proxy web"],
  ["GET", service("whoami"), "get services/proxy whoami"],
  ["GET", service("https:secure:443"), "get services/proxy https:secure:443"],
  ["POST", service("web", "name"), "create services/proxy web"],
  ["GET", pod, "get pods/proxy web-1"],
  ["GET", node, "get nodes/proxy node-a"],
];

let timer;
let cells;

export function enter() {
  if (!cells) {
    cells = ATTEMPTS.map(row);
    showRules();
  }
  clearInterval(timer);
  timer = setInterval(attempt, INTERVAL);
  attempt();
}

export function leave() {
  clearInterval(timer);
}

function row([method, url, permission]) {
  const line = create("tr");
  const request = create("td");
  const parent = url.href.startsWith(namespace.href) ? namespace : api;
  request.append(create("code", `${method} ${url.href.slice(parent.href.length)}`));
  const needed = create("td", permission);
  const response = create("td", "…");
  response.setAttribute("aria-live", "off");
  line.append(request, needed, response);
  element("attempts").append(line);
  return response;
}

async function attempt() {
  await Promise.all(ATTEMPTS.map(async ([method, url], index) => {
    const cell = cells[index];
    try {
      const response = await fetch(url, { method, cache: "no-store" });
      const text = await response.text();
      cell.textContent = `${response.status} ${response.statusText}`;
      cell.className = response.ok ? "good" : "bad";
      cell.title = response.ok ? "" : JSON.parse(text).message;
      if (url.href === service("whoami").href && response.ok) element("received").textContent = text;
    } catch (error) {
      cell.textContent = error.message;
      cell.className = "bad";
    }
  }));
}

async function showRules() {
  const response = await fetch(new URL("api/permissions", home));
  const { file, rules } = await response.json();
  element("rules-file").textContent = file;
  element("rules").textContent = rules;
}
