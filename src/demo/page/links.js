// Links as the application sends them and as the browser receives them, and history navigation.

import { create, element, home, route } from "./paths.js";

/** Links of the page, as in its source. Scripts are not rewritten, so these are the originals. */
const LINKS = [
  ["a href", "[data-view=access]", "href", "/access"],
  ["link href", "link[rel=stylesheet]", "href", "/static/style.css"],
  ["script src", "script[type=module]", "src", "/static/app.js"],
  ["img src", "#sample", "src", "/static/icon.svg"],
  ["img srcset", "#sample", "srcset", "/static/icon.svg 1x, /static/icon.svg 2x"],
  ["form action", "#search", "action", "/links/orders/1"],
];
const ORDERS = { 1: "3 × tea", 2: "1 × coffee, 2 × milk", 3: "5 × sugar" };
const opened = new Date();
let entered = false;

export function enter(path) {
  if (!entered) {
    entered = true;
    element("prefix").textContent = home.pathname.slice(0, -1);
    element("loaded").textContent = `once, at ${opened.toLocaleTimeString("en", { hour12: false })}`;
    LINKS.forEach(showLink);
    showRedirect();
  }
  element("route").textContent = path + location.search;
  element("address").textContent = location.pathname + location.search;
  const [, , , order] = path.split("/");
  element("order").textContent = order in ORDERS ? `Order ${order}: ${ORDERS[order]}` : "Select an order.";
  for (const link of document.querySelectorAll(".orders a")) {
    if (route(link) === path) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

async function showLink([name, selector, attribute, source]) {
  const received = document.querySelector(selector).getAttribute(attribute);
  const result = row(name, source, received);
  const [address] = received.split(" ");
  try {
    const response = await fetch(address, { cache: "no-store" });
    finish(result, response.ok && received !== source, `status ${response.status}`);
  } catch (error) {
    finish(result, false, error.message);
  }
}

/** Follows the redirect of /moved, whose Location is a path of the application. */
async function showRedirect() {
  const result = row("Location", "/links", "…");
  try {
    const response = await fetch(new URL("moved", home), { cache: "no-store" });
    const address = new URL(response.url);
    result.previousElementSibling.firstChild.textContent = short(address.pathname);
    finish(result, response.ok && route(address) === "/links", `status 302, ${response.status}`);
  } catch (error) {
    finish(result, false, error.message);
  }
}

function row(name, source, received) {
  const line = create("tr");
  const title = create("th", name);
  title.scope = "row";
  const result = create("td", "…");
  const texts = [source, short(received)].map((text) => {
    const cell = create("td");
    cell.append(create("code", text));
    return cell;
  });
  line.append(title, ...texts, result);
  element("rewritten").append(line);
  return result;
}

/** Abbreviates the prefix. */
function short(text) {
  return text.replaceAll(home.pathname.slice(0, -1), "PREFIX");
}

function finish(cell, good, text) {
  cell.textContent = text;
  cell.className = good ? "good" : "bad";
}
