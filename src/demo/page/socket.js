// A WebSocket to an endpoint of the service `web`, which is opened again when it breaks.

import { create, element, service } from "./paths.js";

const MAX_MESSAGES = 16;
const RECONNECT_DELAY = 500;

let socket;

export function start() {
  element("talk").addEventListener("submit", (event) => {
    event.preventDefault();
    const input = element("text");
    const text = input.value.trim();
    if (!text || socket.readyState !== WebSocket.OPEN) return;
    socket.send(text);
    add("you", text, "own");
    input.value = "";
  });
  connect();
}

function connect() {
  const url = service("web", "socket");
  url.protocol = url.protocol.replace("http", "ws");
  socket = new WebSocket(url);
  let endpoint;
  socket.addEventListener("message", ({ data }) => {
    const message = JSON.parse(data);
    if (!endpoint) {
      endpoint = message.endpoint;
      state(`connected to ${endpoint}`, true);
    }
    const color = `e${endpoint.split("-").at(-1)}`;
    if ("echo" in message) add(endpoint, `echo: ${message.echo}`, `${color} echo`);
    else add(endpoint, `tick ${message.tick}`, color);
  });
  socket.addEventListener("close", () => {
    if (endpoint) add("", `the connection to ${endpoint} has ended`, "break");
    state("connecting again", false);
    setTimeout(connect, RECONNECT_DELAY);
  });
}

function state(text, connected) {
  const shown = element("socket-state");
  shown.textContent = text;
  shown.classList.toggle("good", connected);
}

function add(from, text, className) {
  const line = create("li", "", className);
  if (from) line.append(create("b", from));
  line.append(create("span", text));
  const list = element("messages");
  list.append(line);
  while (list.children.length > MAX_MESSAGES) list.firstChild.remove();
}
