//! Manifests of the demo's cluster.

use std::fmt::Write;

use super::backends::{Ports, WEB};

/// Permissions: the group `viewers` has `get` on the proxy of services, pods and nodes, and may open
/// tunnels to services and pods.
pub(super) const RBAC: &str = r#"apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: proxy-viewer}
rules:
- apiGroups: [""]
  resources: [services/proxy, pods/proxy, nodes/proxy]
  verbs: [get]
- apiGroups: [""]
  resources: [pods/portforward]
  verbs: [create]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: viewers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: proxy-viewer}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: viewers}
"#;

/// Permissions of the page, which sends no credentials.
pub(super) const PAGE_RBAC: &str = r#"# Requests of the page have no credentials: they are
# those of system:anonymous. They may read three
# services and, with POST requests to the page's own
# service, switch endpoints. The rest is denied.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: page, namespace: demo}
rules:
- apiGroups: [""]
  resources: [services/proxy]
  resourceNames: [dashboard, web, whoami]
  verbs: [get]
- apiGroups: [""]
  resources: [services/proxy]
  resourceNames: [dashboard]
  verbs: [create]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: page, namespace: demo}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: page}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: system:anonymous}
"#;

/// Returns two nodes, six pods, four services and an EndpointSlice per pod, because each backend
/// has its own port.
pub(super) fn cluster(ports: &Ports) -> String {
    let mut yaml = String::new();
    for (name, port) in ["node-a", "node-b"].into_iter().zip(ports.kubelets) {
        yaml += &node(name, port);
    }
    yaml += &service("web", 80, "http");
    for (name, port) in WEB.into_iter().zip(ports.web) {
        yaml += &pod(name, "web", port);
    }
    yaml += &service("secure", 443, "https");
    yaml += &pod("secure-1", "secure", ports.secure);
    yaml += &service("whoami", 80, "http");
    yaml += &pod("whoami-1", "whoami", ports.whoami);
    yaml += &service("dashboard", 80, "http");
    yaml += &pod("dashboard-1", "dashboard", ports.dashboard);
    yaml
}

fn node(name: &str, kubelet: u16) -> String {
    format!(
        "apiVersion: v1
kind: Node
metadata: {{name: {name}}}
status:
  addresses: [{{type: InternalIP, address: 127.0.0.1}}]
  daemonEndpoints: {{kubeletEndpoint: {{Port: {kubelet}}}}}
---
"
    )
}

fn service(name: &str, port: u16, protocol: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: demo}}
spec:
  ports: [{{name: {protocol}, port: {port}, appProtocol: {protocol}}}]
---
"
    )
}

fn pod(name: &str, service: &str, port: u16) -> String {
    let protocol = if service == "secure" { "https" } else { "http" };
    let mut yaml = format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: demo}}
spec:
  containers: [{{name: {service}, ports: [{{name: {protocol}, containerPort: {port}}}]}}]
status:
  podIPs: [{{ip: 127.0.0.1}}]
---
"
    );
    write!(
        yaml,
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}
  namespace: demo
  labels: {{kubernetes.io/service-name: {service}}}
addressType: IPv4
ports: [{{name: {protocol}, port: {port}}}]
endpoints:
- addresses: [127.0.0.1]
  conditions: {{ready: true}}
  targetRef: {{kind: Pod, namespace: demo, name: {name}}}
---
"
    )
    .expect("writing to a String does not fail");
    yaml
}
