//! The end-to-end tests of the proxy subresource of Kubernetes, ported to this harness (CONFORMANCE
//! E1 to E5): `test/e2e/network/proxy.go`, and the proxy tests of `test/e2e/kubectl/kubectl.go`.
//! They also run against the apiserver, so that a failure of the bastion alone is a defect of the
//! bastion.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::clients::KubectlProxy;
use crate::fixture::{Fixture, acceptor, bastion, path};
use crate::support::app::{App, response, status};
use crate::support::client::{Client, Response, get_plain, get_plain_over};
use crate::support::cluster::{HOME, KubeconfigUser};
use crate::support::eventually;
use crate::support::objects::Objects;
use crate::support::pki::Pair;

const ROUNDS: usize = 20;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const METHODS: [Method; 7] = [
    Method::DELETE,
    Method::GET,
    Method::HEAD,
    Method::OPTIONS,
    Method::PATCH,
    Method::POST,
    Method::PUT,
];

/// E1, "should proxy through a service and a pod".
pub async fn serves_sixteen_urls_twenty_times_in_parallel(fixture: &mut Fixture) -> Result<()> {
    const LAST: u8 = 32;
    let objects = Objects::new(&fixture.cluster.client, "proxy-e1").await?;
    let tls = acceptor(&fixture.serving)?;
    let (page, safe_page) = (
        r#"<a href="/rewriteme">test</a>"#,
        r#"<a href="/tlsrewriteme">test</a>"#,
    );
    let mut apps = Vec::new();
    for (port, text) in [(80, page), (1080, page), (160, "foo"), (162, "bar")] {
        apps.push(App::with_text(&fixture.namespace, LAST, port, None, text)?);
    }
    for (port, text) in [(443, safe_page), (460, "tls baz"), (462, "tls qux")] {
        apps.push(App::with_text(
            &fixture.namespace,
            LAST,
            port,
            Some(tls.clone()),
            text,
        )?);
    }
    let ports = json!([
        {"containerPort": 80}, {"containerPort": 1080},
        {"name": "dest1", "containerPort": 160}, {"name": "dest2", "containerPort": 162},
        {"containerPort": 443}, {"name": "tlsdest1", "containerPort": 460}, {"name": "tlsdest2", "containerPort": 462},
    ]);
    objects
        .pod(
            "porter",
            json!({"app": "porter"}),
            fixture.namespace.address(LAST),
            ports,
        )
        .await?;
    let ports = json!([
        {"name": "portname1", "port": 80, "targetPort": "dest1"},
        {"name": "portname2", "port": 81, "targetPort": 162},
        {"name": "tlsportname1", "port": 443, "targetPort": "tlsdest1"},
        {"name": "tlsportname2", "port": 444, "targetPort": 462},
    ]);
    objects
        .service(
            "porter",
            json!({"selector": {"app": "porter"}, "ports": ports}),
        )
        .await?;

    let url = |rest: &str| format!("/api/v1/namespaces/proxy-e1/{rest}/proxy");
    let mut expected: Vec<(String, String)> = Vec::new();
    for (target, text) in [
        ("services/porter:portname1", "foo"),
        ("services/http:porter:portname1", "foo"),
        ("services/porter:portname2", "bar"),
        ("services/http:porter:portname2", "bar"),
        ("services/https:porter:tlsportname1", "tls baz"),
        ("services/https:porter:tlsportname2", "tls qux"),
        ("pods/porter:160", "foo"),
        ("pods/http:porter:160", "foo"),
        ("pods/porter:162", "bar"),
        ("pods/http:porter:162", "bar"),
        ("pods/https:porter:460", "tls baz"),
        ("pods/https:porter:462", "tls qux"),
    ] {
        expected.push((url(target) + "/", text.into()));
    }
    for (target, link) in [
        ("pods/porter", "rewriteme"),
        ("pods/porter:1080", "rewriteme"),
        ("pods/http:porter:1080", "rewriteme"),
        ("pods/https:porter:443", "tlsrewriteme"),
    ] {
        expected.push((
            url(target) + "/",
            format!(r#"<a href="{}/{link}">test</a>"#, url(target)),
        ));
    }

    for server_under_test in servers(fixture)? {
        server_under_test.wait_until_known(&expected[0].0).await?;
        let mut failures = Vec::new();
        for round in 0..ROUNDS {
            let mut tasks = JoinSet::new();
            for (url, body) in expected.clone() {
                let server_under_test = server_under_test.clone();
                tasks.spawn(async move {
                    let response = tokio::time::timeout(
                        REQUEST_TIMEOUT,
                        server_under_test.send(Method::GET, &url),
                    )
                    .await??;
                    ensure!(
                        response.status == 200 && response.body == body,
                        "{url}: expected {body:?}: {response:?}"
                    );
                    Ok(())
                });
            }
            failures.extend(
                tasks
                    .join_all()
                    .await
                    .into_iter()
                    .filter_map(Result::err)
                    .map(|error| format!("{round}: {error:#}")),
            );
        }
        let (name, count) = (server_under_test.name, failures.len());
        ensure!(
            failures.is_empty(),
            "{name}: {count} of 320 failed, the first:\n{}",
            failures[0]
        );
    }
    Ok(())
}

/// E2, "A set of valid responses are returned for both pod and service Proxy".
pub async fn forwards_seven_methods_to_a_path(fixture: &mut Fixture) -> Result<()> {
    let _porter = porter(fixture, "proxy-e2", 33).await?;
    for server_under_test in servers(fixture)? {
        server_under_test
            .wait_until_known(
                "/api/v1/namespaces/proxy-e2/services/test-service/proxy/some/path/with/GET",
            )
            .await?;
        for target in ["pods/agnhost", "services/test-service"] {
            for method in METHODS {
                let url =
                    format!("/api/v1/namespaces/proxy-e2/{target}/proxy/some/path/with/{method}");
                let response = server_under_test.send(method.clone(), &url).await?;
                let body_matches = method == Method::HEAD || echoes(&response, &method);
                ensure!(
                    response.status == 200 && body_matches,
                    "{}: {method} {url}: {response:?}",
                    server_under_test.name
                );
            }
        }
    }
    Ok(())
}

/// E3, "A set of valid responses are returned for both pod and service `ProxyWithPath`", of a proxy
/// without a path.
pub async fn forwards_five_methods_to_bare_proxy_and_redirects_two(
    fixture: &mut Fixture,
) -> Result<()> {
    let _porter = porter(fixture, "proxy-e3", 34).await?;
    for server_under_test in servers(fixture)? {
        server_under_test
            .wait_until_known("/api/v1/namespaces/proxy-e3/services/test-service/proxy/")
            .await?;
        for target in ["pods/agnhost", "services/test-service"] {
            for method in METHODS {
                let url = format!("/api/v1/namespaces/proxy-e3/{target}/proxy?method={method}");
                let response = server_under_test.send(method.clone(), &url).await?;
                let right = if matches!(method, Method::GET | Method::HEAD) {
                    let slashed = url.replace("proxy?", "proxy/?");
                    response.status == 301
                        && response
                            .headers
                            .get(header::LOCATION)
                            .is_some_and(|to| *to == slashed)
                } else {
                    response.status == 200 && echoes(&response, &method)
                };
                ensure!(
                    right,
                    "{}: {method} {url}: {response:?}",
                    server_under_test.name
                );
            }
        }
    }
    Ok(())
}

/// E4, "should proxy logs on node" without and with the kubelet's port in the URL.
pub async fn reads_node_logs_through_the_kubelet(fixture: &mut Fixture) -> Result<()> {
    const LAST: u8 = 35;
    let folder = fixture.cluster.folder.path();
    let kubelet = fixture.cluster.ca.server(
        folder,
        "kubelet",
        &[&fixture.namespace.address(LAST).to_string()],
    )?;
    let credentials = Arc::<Mutex<Vec<Option<String>>>>::default();
    let recorded = Arc::clone(&credentials);
    let _kubelet = App::start(
        &fixture.namespace,
        LAST,
        10250,
        Some(acceptor(&kubelet)?),
        move |request| {
            let credential = request.headers().get(header::AUTHORIZATION);
            let credential =
                credential.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            recorded
                .lock()
                .expect("no thread panics with the list")
                .push(credential);
            let found = request.uri() == "/logs/";
            async move {
                if found {
                    response(
                        "text/html; charset=utf-8",
                        "<pre>\n<a href=\"kubelet.log\">kubelet.log</a>\n</pre>\n",
                    )
                } else {
                    status(
                        StatusCode::NOT_FOUND,
                        header::CONTENT_TYPE,
                        "text/plain",
                        "404 page not found",
                    )
                }
            }
        },
    )?;
    fixture
        .objects
        .node("logging", fixture.namespace.address(LAST))
        .await?;
    // The bastion sends its token to kubelets only if it has their CA. The token is in a file, as
    // in a pod.
    let token = folder.join("kubelets-token");
    std::fs::write(&token, fixture.cluster.token(HOME, HOME, None).await?)?;
    let by = KubeconfigUser::TokenFile(&token);
    let kubeconfig = fixture.cluster.kubeconfig(
        "kubelets",
        &fixture.cluster.server,
        &fixture.cluster.ca.file,
        &by,
    )?;
    let authority = format!(
        "--kubelet-certificate-authority={}",
        fixture.cluster.ca.file.display()
    );
    let knowing = bastion(
        &kubeconfig,
        &fixture.serving,
        &[&authority, "--kubelet-service-account-token"],
    )?;
    knowing.ready().await?;

    let mut server_under_test = servers(fixture)?;
    server_under_test[0].address = knowing.secure;
    for (server_under_test, own_token) in server_under_test.iter().zip([true, false]) {
        server_under_test
            .wait_until_known("/api/v1/nodes/logging/proxy/logs/")
            .await?;
        credentials
            .lock()
            .expect("no thread panics with the list")
            .clear();
        for target in ["logging", "logging:10250"] {
            for attempt in 0..ROUNDS {
                let url = format!("/api/v1/nodes/{target}/proxy/logs/");
                let response = tokio::time::timeout(
                    REQUEST_TIMEOUT,
                    server_under_test.send(Method::GET, &url),
                )
                .await??;
                let listed = response.body.contains(">kubelet.log</a>");
                ensure!(
                    response.status == 200 && listed,
                    "{}, attempt {attempt}, {url}: {response:?}",
                    server_under_test.name
                );
            }
        }
        let credentials = credentials
            .lock()
            .expect("no thread panics with the list")
            .clone();
        let right = credentials.iter().all(|sent| match sent {
            Some(sent) => {
                own_token && sent.starts_with("Bearer ey") && !sent.contains(&fixture.token)
            }
            None => !own_token,
        });
        ensure!(
            credentials.len() == 2 * ROUNDS && right,
            "{}: the kubelet received {credentials:?}",
            server_under_test.name
        );
    }
    Ok(())
}

/// E5, "should support proxy with --port 0" and "should support --unix-socket=/path". Upstream they
/// request `/api/`, which the bastion does not serve: it must return the 404 of an API server.
/// "should support exec using --server" (`kubectl --server=http://127.0.0.1:PORT`) uses exec, which
/// the bastion does not serve either; here it requests a raw path.
pub async fn kubectl_proxy_serves_on_port_and_socket(fixture: &mut Fixture) -> Result<()> {
    let name = path("services/web:80/proxy/name");
    fixture.wait_until_known("services/web:80").await?;
    let server = format!("https://{}", fixture.bastion.secure);
    for (server, api) in [(server, false), (fixture.cluster.server.clone(), true)] {
        let by_port = KubectlProxy::by_port(fixture, &server).await?;
        let (code, body) = get_plain(by_port.address()?, &name).await?;
        ensure!(
            code == 200 && body.starts_with("web-"),
            "{server}, by port: {code} {body}"
        );
        let (code, body) = get_plain(by_port.address()?, "/api/").await?;
        ensure!(
            is_expected(api, code, &body),
            "{server}, by port, /api/: {code} {body}"
        );

        let plain = format!("--server=http://{}", by_port.address()?);
        let output = std::process::Command::new(&fixture.cluster.kubectl)
            .args(["--kubeconfig=/dev/null", &plain, "get", "--raw", &name])
            .output()?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success() && stdout.starts_with("web-"),
            "{server}, kubectl --server: {output:?}"
        );

        let by_socket = KubectlProxy::by_socket(fixture, &server).await?;
        for (path, is_name) in [(name.as_str(), true), ("/api/", false)] {
            let stream = tokio::net::UnixStream::connect(by_socket.socket()).await?;
            let (code, body) = get_plain_over(stream, "localhost", path).await?;
            let right = if is_name {
                code == 200 && body.starts_with("web-")
            } else {
                is_expected(api, code, &body)
            };
            ensure!(right, "{server}, by socket, {path}: {code} {body}");
        }
    }
    Ok(())
}

/// Returns true if a response for `/api/` is right: the versions of an apiserver, or a `Status` of
/// the bastion.
fn is_expected(api: bool, code: u16, body: &str) -> bool {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    if api {
        code == 200
            && body["versions"]
                .as_array()
                .is_some_and(|versions| !versions.is_empty())
    } else {
        code == 404 && body["kind"] == "Status" && body["reason"] == "NotFound"
    }
}

/// Behaves as `porter` of agnhost in E2 and E3: returns the method, or for the bare path that of
/// the query.
async fn porter(fixture: &Fixture, namespace: &str, last: u8) -> Result<App> {
    let objects = Objects::new(&fixture.cluster.client, namespace).await?;
    let app = App::start(&fixture.namespace, last, 80, None, |request| async move {
        let method = request.method().as_str();
        let path = request.uri().path();
        let server_under_test = match request
            .uri()
            .query()
            .and_then(|query| query.strip_prefix("method="))
        {
            Some(server_under_test) if path == "/" => server_under_test,
            _ => path.strip_prefix("/some/path/with/").unwrap_or_default(),
        };
        let body = if server_under_test == method {
            "foo"
        } else {
            "the request of the app differs"
        };
        response(
            "application/json",
            json!({"Method": method, "Body": body}).to_string(),
        )
    })?;
    let ports = json!([{"containerPort": 80}]);
    objects
        .pod(
            "agnhost",
            json!({"test": "response"}),
            fixture.namespace.address(last),
            ports,
        )
        .await?;
    let spec = json!({"selector": {"test": "response"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]});
    objects.service("test-service", spec).await?;
    Ok(app)
}

fn echoes(response: &Response, method: &Method) -> bool {
    let body: Value = serde_json::from_str(&response.body).unwrap_or_default();
    body == json!({"Method": method.as_str(), "Body": "foo"})
}

/// Server of the proxy subresource, with the credentials of an administrator.
#[derive(Clone)]
struct Server {
    name: &'static str,
    address: SocketAddr,
    ca: std::path::PathBuf,
    admin: Pair,
}

impl Server {
    async fn send(&self, method: Method, url: &str) -> Result<Response> {
        let mut client = Client::connect(self.address, &self.ca, None, Some(&self.admin)).await?;
        client.send(method, url, Bytes::new()).await
    }

    /// Waits until the server knows a target.
    async fn wait_until_known(&self, url: &str) -> Result<()> {
        let mut last = None;
        let what = format!("{url} at {}", self.name);
        let known = eventually(&what, async || {
            let response = last.insert(self.send(Method::GET, url).await?);
            Ok(response.status == 200)
        });
        known.await.with_context(|| format!("{last:?}"))
    }
}

/// Returns the bastion and the apiserver.
fn servers(fixture: &Fixture) -> Result<[Server; 2]> {
    // The tests of Kubernetes run as an administrator: only `*` allows the empty verb of OPTIONS.
    let admin = fixture.cluster.ca.client(
        fixture.cluster.folder.path(),
        "conformance",
        "system:masters",
    )?;
    let ca = fixture.cluster.ca.file.clone();
    let apiserver = fixture
        .cluster
        .server
        .trim_start_matches("https://")
        .parse()?;
    Ok([
        Server {
            name: "the bastion",
            address: fixture.bastion.secure,
            ca: ca.clone(),
            admin: admin.clone(),
        },
        Server {
            name: "the apiserver",
            address: apiserver,
            ca,
            admin,
        },
    ])
}
