// Requests to the service `web`, the endpoints that respond to them, and their switches.

import { create, element, home, service } from "./paths.js";
import * as socket from "./socket.js";

const COLUMNS = 48;
const MAX_TIMES = 50;
const MAX_EVENTS = 6;
/** More requests are not sent while this many wait. */
const MAX_IN_FLIGHT = 16;
const TIMEOUT = 15_000;
const REFRESH_INTERVAL = 2_000;

const rows = new Map();
/** Endpoints of the last requests; `null` for a failed one. */
const history = [];
const times = [];
let sent = 0;
let failed = 0;
let inFlight = 0;
let timer;
let paused = false;

export function start() {
  element("balanced-url").textContent = `GET ${service("web", "name").pathname}`;
  element("pause").addEventListener("click", () => {
    paused = !paused;
    element("pause").textContent = paused ? "Continue" : "Pause";
    schedule();
  });
  for (const input of document.querySelectorAll("[name=rate]")) {
    input.addEventListener("change", schedule);
  }
  schedule();
  refresh();
  setInterval(refresh, REFRESH_INTERVAL);
  socket.start();
}

function schedule() {
  clearInterval(timer);
  const rate = Number(document.querySelector("[name=rate]:checked").value);
  if (!paused) timer = setInterval(send, 1000 / rate);
}

async function send() {
  if (inFlight >= MAX_IN_FLIGHT || rows.size === 0) return;
  inFlight += 1;
  const started = performance.now();
  let endpoint = null;
  let problem = "";
  try {
    const response = await fetch(service("web", "name"), { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
    const text = await response.text();
    if (response.ok && rows.has(text)) {
      endpoint = text;
    } else {
      problem = `status ${response.status}`;
    }
    element("outage").hidden = true;
  } catch (error) {
    problem = error.message;
    element("outage").hidden = false;
  }
  inFlight -= 1;
  record(endpoint, performance.now() - started, problem);
}

function record(endpoint, time, problem) {
  sent += 1;
  if (endpoint) {
    times.push(time);
    if (times.length > MAX_TIMES) times.shift();
    answered(rows.get(endpoint));
  } else {
    failed += 1;
    // One line for a series of failures.
    if (history.at(-1) !== null) event(`A request failed: ${problem}.`);
  }
  for (const row of rows.values()) {
    if (!row.on) row.missed += 1;
  }
  history.push(endpoint);
  if (history.length > COLUMNS) history.shift();
  draw();
}

function answered(row) {
  row.count += 1;
  if (row.on && row.waits) {
    const seconds = ((performance.now() - row.changed) / 1000).toFixed(1);
    event(`${row.name} responds again, ${seconds} s after it was switched on.`, row);
    row.waits = false;
    describe(row);
  }
}

function draw() {
  element("sent").textContent = sent.toLocaleString("en");
  element("failed").textContent = failed.toLocaleString("en");
  element("failed").classList.toggle("bad", failed > 0);
  const sorted = [...times].sort((a, b) => a - b);
  element("median").textContent = sorted.length ? `${sorted[sorted.length >> 1].toFixed(1)} ms` : "–";
  const offset = COLUMNS - history.length;
  for (const row of rows.values()) {
    row.counter.textContent = row.count.toLocaleString("en");
    row.cells.forEach((cell, column) => {
      const endpoint = column < offset ? undefined : history[column - offset];
      const lit = endpoint === row.name;
      cell.className = lit ? "lit" : endpoint === null ? "bad" : "";
      if (lit && column === COLUMNS - 1) cell.classList.add("now");
    });
    if (!row.on) describe(row);
  }
}

/** Reads the states of the switches, which other windows change, too. */
async function refresh() {
  try {
    const response = await fetch(new URL("api/endpoints", home), { signal: AbortSignal.timeout(TIMEOUT) });
    if (!response.ok) return;
    for (const { name, on } of await response.json()) {
      const row = rows.get(name) ?? add(name);
      if (!row.busy && row.on !== on) change(row, on);
    }
  } catch {
    // The next request reports the outage.
  }
}

function add(name) {
  const row = { name, on: true, waits: false, count: 0, missed: 0, failedBefore: 0, changed: 0, busy: false, cells: [] };
  const line = create("div", "", `endpoint e${rows.size + 1}`);
  const label = create("div", "", "name");
  label.append(create("b", name));
  row.status = create("span");
  label.append(row.status);
  const cells = create("div", "", "cells");
  cells.setAttribute("aria-hidden", "true");
  for (let column = 0; column < COLUMNS; column += 1) cells.append(create("i"));
  row.cells = [...cells.children];
  row.counter = create("output", "0", "count");
  row.counter.setAttribute("aria-label", `Responses of ${name}`);
  row.counter.setAttribute("aria-live", "off");
  row.switch = create("button", "", "switch");
  row.switch.type = "button";
  row.switch.setAttribute("role", "switch");
  row.switch.setAttribute("aria-label", `${name} accepts connections`);
  row.switch.addEventListener("click", () => press(row));
  line.append(label, cells, row.counter, row.switch);
  element("endpoints").append(line);
  row.line = line;
  rows.set(name, row);
  describe(row);
  return row;
}

async function press(row) {
  if (row.busy) return;
  row.busy = true;
  const on = !row.on;
  try {
    const url = new URL(`api/endpoints/${row.name}/${on ? "on" : "off"}`, home);
    const response = await fetch(url, { method: "POST", signal: AbortSignal.timeout(TIMEOUT) });
    if (response.ok) change(row, on);
    else event(`${row.name} cannot be switched: status ${response.status}.`, row);
  } catch (error) {
    event(`${row.name} cannot be switched: ${error.message}.`, row);
  }
  row.busy = false;
}

function change(row, on) {
  row.on = on;
  row.changed = performance.now();
  if (on) {
    row.waits = true;
    const failures = failed - row.failedBefore;
    event(`${row.name} is on again. Meanwhile: ${row.missed} requests, ${failures} failed.`, row);
  } else {
    row.waits = false;
    row.missed = 0;
    row.failedBefore = failed;
    event(`${row.name} is off: it refuses connections.`, row);
  }
  describe(row);
}

function describe(row) {
  row.switch.setAttribute("aria-checked", String(row.on));
  row.line.classList.toggle("off", !row.on);
  const failures = failed - row.failedBefore;
  row.status.textContent = !row.on
    ? `off for ${row.missed} requests, ${failures} failed`
    : row.waits ? "on: waits for its probe" : "on";
}

function event(text, row) {
  const line = create("li");
  line.append(create("time", new Date().toLocaleTimeString("en", { hour12: false })), create("span", text));
  if (row) line.className = row.line.classList[1];
  const list = element("events");
  list.querySelector(".hint")?.remove();
  list.prepend(line);
  while (list.children.length > MAX_EVENTS) list.lastChild.remove();
}
