// Views of the application and navigation between them.

import * as access from "./access.js";
import * as links from "./links.js";
import { element, home, route } from "./paths.js";
import * as traffic from "./traffic.js";

const views = { traffic, links, access };
const titles = { traffic: "Traffic", links: "Links", access: "Access" };

/** Shows the view of the current address. */
function show({ focus }) {
  const path = route(location);
  const [name] = path.slice(1).split("/");
  const view = name in views ? name : "traffic";
  for (const section of document.querySelectorAll(".view")) {
    section.hidden = section.id !== view;
  }
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === view) {
      link.setAttribute("aria-current", "page");
    } else {
      link.removeAttribute("aria-current");
    }
  }
  document.title = `${titles[view]} – kube-bastion demo`;
  for (const [other, { leave }] of Object.entries(views)) {
    if (other !== view) leave?.();
  }
  views[view].enter?.(path);
  if (focus) element(`${view}-title`).focus({ preventScroll: true });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  const plain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
  if (!link || !plain || "load" in link.dataset) return;
  const address = new URL(link.href);
  if (address.hash) {
    // The skip link: focus only, so that the address remains a route.
    event.preventDefault();
    element(address.hash.slice(1)).focus();
    return;
  }
  if (address.origin !== location.origin || !address.pathname.startsWith(home.pathname)) return;
  event.preventDefault();
  const focus = route(address).split("/")[1] !== route(location).split("/")[1];
  if (address.href !== location.href) history.pushState(null, "", address);
  show({ focus });
});
addEventListener("popstate", () => show({ focus: false }));

traffic.start();
show({ focus: false });
