//! Requests to kube-apiserver.

use super::{ADMIN, AS, Short, TOKEN};
use crate::desk::side_by_side::compare::Expected::{Forbidden, Same};

pub const API_ROWS: &[Short] = &[
    (ADMIN, "GET /version", "", Same),
    (ADMIN, "HEAD /version", "", Same),
    (ADMIN, "GET /api", "", Same),
    (ADMIN, "GET /api/", "", Same),
    (ADMIN, "GET /apis", "", Same),
    (ADMIN, "GET /apis/apps/v1", "", Same),
    (ADMIN, "GET /api/v1/namespaces/shop", "", Same),
    (ADMIN, "GET /api/v1/namespaces/shop/services/web", "", Same),
    (
        ADMIN,
        "GET /api/v1/namespaces/shop/services/web?pretty=true",
        "",
        Same,
    ),
    (
        ADMIN,
        "GET /api/v1/namespaces/shop/services/web",
        "Accept: application/yaml",
        Same,
    ),
    (
        ADMIN,
        "GET /api/v1/namespaces/shop/services/web",
        "Accept: application/json;as=Table;v=v1;g=meta.k8s.io",
        Same,
    ),
    (
        ADMIN,
        "GET /api/v1/namespaces/shop/services/web",
        "Accept: application/vnd.kubernetes.protobuf",
        Same,
    ),
    (ADMIN, "GET /api/v1/namespaces/shop/pods/web-1", "", Same),
    (ADMIN, "GET /api/v1/nodes/node-1", "", Same),
    (ADMIN, "GET /healthz", "", Same),
    (ADMIN, "GET /livez/ping", "", Same),
    (ADMIN, "GET /nonexistent", "", Same),
    (
        ADMIN,
        "GET /api/v1/namespaces/shop/services/missing",
        "",
        Same,
    ),
    (
        ADMIN,
        "DELETE /api/v1/namespaces/shop/services/missing",
        "",
        Same,
    ),
    (
        ADMIN,
        "GET /api/v1/namespaces/shop/pods/web-1/proxy",
        "",
        Same,
    ),
    (
        ADMIN,
        "GET /api/v1/namespaces/shop/pods/web-1/proxy/name",
        "",
        Same,
    ),
    (
        ADMIN,
        "GET /api/v1/namespaces/shop/services/https:safe:443/proxy/name",
        "",
        Same,
    ),
    (
        ADMIN,
        "GET /api/v1/namespaces/shop/services?watch=1&resourceVersion=0&timeoutSeconds=1\
         &fieldSelector=metadata.name%3Dweb",
        "",
        Same,
    ),
    (
        ADMIN,
        "GET /api/v1/namespaces/shop/services/web",
        "Authorization: Bearer invalid",
        Same,
    ),
    (ADMIN, "TRACE /version", "", Same),
    (
        ADMIN,
        "GET /api/v1/namespaces/shop/pods/web-1/exec?command=ls",
        "",
        Forbidden("--reject-paths"),
    ),
    (
        TOKEN,
        "GET /api/v1/namespaces/shop/pods/web-1/proxy/name",
        "",
        Same,
    ),
    (TOKEN, "GET /api/v1/namespaces/shop/secrets", "", Same),
    (
        TOKEN,
        "GET /api/v1/namespaces/shop/pods/web-1/proxy/name",
        "Authorization: Bearer invalid",
        Same,
    ),
    (TOKEN, "GET /version", "Authorization:", Same),
    (AS, "GET /api/v1/namespaces/shop/services/web", "", Same),
    (
        AS,
        "GET /api/v1/namespaces/shop/services/web",
        "Impersonate-User: bob\nImpersonate-Group: others",
        Same,
    ),
];
