// Paths of the page and of other services, derived from the address of this file: the application does not know the prefix
// under which the bastion serves it.

/** Address of the application, with a slash at its end. */
export const home = new URL("..", import.meta.url);

/** Returns the address of a path of another service in the same namespace. */
export function service(id, path = "") {
  return new URL(`../../${id}/proxy/${path}`, home);
}

/** Returns the path of the application in an address, from its root. */
export function route(address) {
  return "/" + address.pathname.slice(home.pathname.length);
}

/** Returns an element by its id. */
export const element = (id) => document.getElementById(id);

/** Creates an element with text. */
export function create(tag, text = "", className = "") {
  const created = document.createElement(tag);
  created.textContent = text;
  created.className = className;
  return created;
}
