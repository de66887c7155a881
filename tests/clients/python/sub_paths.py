"""Sends requests to sub-paths with the official Python client, and checks what endpoints are asked for.

    python3 sub_paths.py KUBECONFIG NAME

The service and the pod NAME of the namespace shop, and the node NAME, return the line of the request on port 8080,
which is port 80 of the service.
"""

import sys

from kubernetes import client, config

kubeconfig, name = sys.argv[1:]
config.load_kube_config(config_file=kubeconfig)
api = client.CoreV1Api()
SHOP = "shop"


def expect(what, got, wanted):
    if got != wanted:
        sys.exit(f"{what}: got {got!r}, not {wanted!r}")


# The client encodes the whole path as one segment.
for path, asked in [
    ("metrics/cadvisor", "/metrics/cadvisor"),
    ("/metrics/cadvisor", "/metrics/cadvisor"),
    ("metrics/", "/metrics/"),
    ("name", "/name"),
    ("a/b c/(d)/é?f#g%2Fh", "/a/b%20c/%28d%29/%C3%A9%3Ff%23g%252Fh"),
]:
    for what, answer in [
        ("service", api.connect_get_namespaced_service_proxy_with_path(f"{name}:80", SHOP, path)),
        ("pod", api.connect_get_namespaced_pod_proxy_with_path(f"{name}:8080", SHOP, path)),
        ("node", api.connect_get_node_proxy_with_path(f"{name}:8080", path)),
    ]:
        expect(f"{what}, {path}", answer, f"GET {asked}")

for method in ["post", "put", "patch", "delete"]:
    for what, arguments in [
        ("namespaced_service", (f"{name}:80", SHOP)),
        ("namespaced_pod", (f"{name}:8080", SHOP)),
        ("node", (f"{name}:8080",)),
    ]:
        call = f"connect_{method}_{what}_proxy"
        expect(call, getattr(api, call)(*arguments), f"{method.upper()} /")
        call += "_with_path"
        expect(call, getattr(api, call)(*arguments, "a/b"), f"{method.upper()} /a/b")

# The parameter "path" of the query does not select a path: the endpoint gets it like any other.
answer = api.connect_get_namespaced_service_proxy(f"{name}:80", SHOP, path="metrics/cadvisor")
expect("path in the query", answer, "GET /?path=metrics/cadvisor")
answer = api.connect_get_namespaced_service_proxy_with_path(f"{name}:80", SHOP, "a/b", path2="c/d")
expect("path and path in the query", answer, "GET /a/b?path=c/d")

_, status, _ = api.connect_head_namespaced_service_proxy_with_path_with_http_info(f"{name}:80", SHOP, "a/b")
expect("HEAD", status, 200)
try:
    api.connect_get_namespaced_pod_proxy_with_path("nobody", SHOP, "a/b")
    sys.exit("a pod that does not exist has answered")
except client.ApiException as error:
    expect("a missing pod", error.status, 404)
    expect("its status", '"reason":"NotFound"' in error.body.replace(" ", ""), True)
