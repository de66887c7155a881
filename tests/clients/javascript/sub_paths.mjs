// Sends requests to sub-paths with the official JavaScript client, and checks what endpoints are asked for.
//
//   node sub_paths.mjs KUBECONFIG NAME
//
// The service and the pod NAME of the namespace shop, and the node NAME, return the line of the request on port 8080,
// which is port 80 of the service.

import assert from "node:assert/strict";
import { ApiException, CoreV1Api, KubeConfig } from "@kubernetes/client-node";

const [kubeconfig, name] = process.argv.slice(2);
const config = new KubeConfig();
config.loadFromFile(kubeconfig);
const api = config.makeApiClient(CoreV1Api);
const namespace = "shop";
const targets = {
  NamespacedService: { name: `${name}:80`, namespace },
  NamespacedPod: { name: `${name}:8080`, namespace },
  Node: { name: `${name}:8080` },
};

// The client encodes the whole path as one segment.
for (const [path, asked] of [
  ["metrics/cadvisor", "/metrics/cadvisor"],
  ["/metrics/cadvisor", "/metrics/cadvisor"],
  ["metrics/", "/metrics/"],
  ["name", "/name"],
  ["a/b c/(d)/é?f#g%2Fh", "/a/b%20c/%28d%29/%C3%A9%3Ff%23g%252Fh"],
]) {
  for (const [kind, target] of Object.entries(targets)) {
    assert.equal(await api[`connectGet${kind}ProxyWithPath`]({ ...target, path }), `GET ${asked}`, `${kind}, ${path}`);
  }
}

for (const method of ["Post", "Put", "Patch", "Delete"]) {
  for (const [kind, target] of Object.entries(targets)) {
    const call = `connect${method}${kind}Proxy`;
    assert.equal(await api[call](target), `${method.toUpperCase()} /`, call);
    const answer = await api[`${call}WithPath`]({ ...target, path: "a/b" });
    assert.equal(answer, `${method.toUpperCase()} /a/b`, `${call}WithPath`);
  }
}

// The parameter "path" of the query does not select a path: the endpoint gets it like any other.
const service = targets.NamespacedService;
assert.equal(
  await api.connectGetNamespacedServiceProxy({ ...service, path: "metrics/cadvisor" }),
  "GET /?path=metrics%2Fcadvisor",
);
assert.equal(
  await api.connectGetNamespacedServiceProxyWithPath({ ...service, path: "a/b", path2: "c/d" }),
  "GET /a/b?path=c%2Fd",
);

await assert.rejects(
  api.connectGetNamespacedPodProxyWithPath({ name: "nobody", namespace, path: "a/b" }),
  (error) => error instanceof ApiException && error.code === 404 && JSON.parse(error.body).reason === "NotFound",
);
