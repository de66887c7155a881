//! Kubernetes' own end-to-end tests of the proxy subresource, said again on this harness:
//! `test/e2e/network/proxy.go`, and of `test/e2e/kubectl/kubectl.go` what is about a proxy
//! (CONFORMANCE E1 to E5). The apiserver's own proxy is asked the same, so that what fails for the
//! bastion alone is the bastion's fault.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::clients::KubectlProxy;
use crate::support::app::{App, answer, status};
use crate::support::client::{Answer, Client, get_plain, get_plain_by};
use crate::support::cluster::{By, HOME};
use crate::support::eventually;
use crate::support::objects::Objects;
use crate::support::pki::Pair;
use crate::world::{World, acceptor, bastion, path};

const ROUNDS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(30);
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
pub async fn sixteen_urls_answer_twenty_times_at_once(world: &mut World) -> Result<()> {
    const LAST: u8 = 32;
    let objects = Objects::new(&world.cluster.client, "proxy-e1").await?;
    let tls = acceptor(&world.serving)?;
    let (page, safe_page) = (
        r#"<a href="/rewriteme">test</a>"#,
        r#"<a href="/tlsrewriteme">test</a>"#,
    );
    let mut apps = Vec::new();
    for (port, said) in [(80, page), (1080, page), (160, "foo"), (162, "bar")] {
        apps.push(App::says(&world.namespace, LAST, port, None, said)?);
    }
    for (port, said) in [(443, safe_page), (460, "tls baz"), (462, "tls qux")] {
        apps.push(App::says(
            &world.namespace,
            LAST,
            port,
            Some(tls.clone()),
            said,
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
            world.namespace.address(LAST),
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
    for (target, said) in [
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
        expected.push((url(target) + "/", said.into()));
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

    for asked in everyone(world)? {
        asked.answers(&expected[0].0).await?;
        let mut failures = Vec::new();
        for round in 0..ROUNDS {
            let mut tasks = JoinSet::new();
            for (url, body) in expected.clone() {
                let asked = asked.clone();
                tasks.spawn(async move {
                    let answer =
                        tokio::time::timeout(PATIENCE, asked.send(Method::GET, &url)).await??;
                    ensure!(
                        answer.status == 200 && answer.body == body,
                        "{url}: expected {body:?}: {answer:?}"
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
        let (name, count) = (asked.name, failures.len());
        ensure!(
            failures.is_empty(),
            "{name}: {count} of 320 failed, the first:\n{}",
            failures[0]
        );
    }
    Ok(())
}

/// E2, "A set of valid responses are returned for both pod and service Proxy".
pub async fn seven_methods_reach_a_path(world: &mut World) -> Result<()> {
    let _porter = porter(world, "proxy-e2", 33).await?;
    for asked in everyone(world)? {
        asked
            .answers("/api/v1/namespaces/proxy-e2/services/test-service/proxy/some/path/with/GET")
            .await?;
        for target in ["pods/agnhost", "services/test-service"] {
            for method in METHODS {
                let url =
                    format!("/api/v1/namespaces/proxy-e2/{target}/proxy/some/path/with/{method}");
                let answer = asked.send(method.clone(), &url).await?;
                let told = method == Method::HEAD || echoes(&answer, &method);
                ensure!(
                    answer.status == 200 && told,
                    "{}: {method} {url}: {answer:?}",
                    asked.name
                );
            }
        }
    }
    Ok(())
}

/// E3, "A set of valid responses are returned for both pod and service `ProxyWithPath`", of a proxy
/// without a path.
pub async fn five_methods_reach_the_bare_proxy_and_two_are_redirected(
    world: &mut World,
) -> Result<()> {
    let _porter = porter(world, "proxy-e3", 34).await?;
    for asked in everyone(world)? {
        asked
            .answers("/api/v1/namespaces/proxy-e3/services/test-service/proxy/")
            .await?;
        for target in ["pods/agnhost", "services/test-service"] {
            for method in METHODS {
                let url = format!("/api/v1/namespaces/proxy-e3/{target}/proxy?method={method}");
                let answer = asked.send(method.clone(), &url).await?;
                let right = if matches!(method, Method::GET | Method::HEAD) {
                    let slashed = url.replace("proxy?", "proxy/?");
                    answer.status == 301
                        && answer
                            .headers
                            .get(header::LOCATION)
                            .is_some_and(|to| *to == slashed)
                } else {
                    answer.status == 200 && echoes(&answer, &method)
                };
                ensure!(right, "{}: {method} {url}: {answer:?}", asked.name);
            }
        }
    }
    Ok(())
}

/// E4, "should proxy logs on node" without and with the kubelet's port in the URL.
pub async fn node_logs_are_read_through_the_kubelet(world: &mut World) -> Result<()> {
    const LAST: u8 = 35;
    let folder = world.cluster.folder.path();
    let kubelet = world.cluster.ca.server(
        folder,
        "kubelet",
        &[&world.namespace.address(LAST).to_string()],
    )?;
    let credentials = Arc::<Mutex<Vec<Option<String>>>>::default();
    let shown = Arc::clone(&credentials);
    let _kubelet = App::start(
        &world.namespace,
        LAST,
        10250,
        Some(acceptor(&kubelet)?),
        move |request| {
            let credential = request.headers().get(header::AUTHORIZATION);
            let credential =
                credential.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            shown
                .lock()
                .expect("nobody panics with the list")
                .push(credential);
            let found = request.uri() == "/logs/";
            async move {
                if found {
                    answer(
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
    world
        .objects
        .node("logging", world.namespace.address(LAST))
        .await?;
    // Without the kubelets' CA the bastion shows them no credential. With it, its own token.
    // It stands in a file, as a pod's does.
    let token = folder.join("kubelets-token");
    std::fs::write(&token, world.cluster.token(HOME, HOME, None).await?)?;
    let by = By::TokenFile(&token);
    let kubeconfig = world.cluster.kubeconfig(
        "kubelets",
        &world.cluster.server,
        &world.cluster.ca.file,
        &by,
    )?;
    let authority = format!(
        "--kubelet-certificate-authority={}",
        world.cluster.ca.file.display()
    );
    let knowing = bastion(
        &kubeconfig,
        &world.serving,
        &[&authority, "--kubelet-service-account-token"],
    )?;
    knowing.ready().await?;

    let mut asked = everyone(world)?;
    asked[0].address = knowing.secure;
    for (asked, own_token) in asked.iter().zip([true, false]) {
        asked.answers("/api/v1/nodes/logging/proxy/logs/").await?;
        credentials
            .lock()
            .expect("nobody panics with the list")
            .clear();
        for target in ["logging", "logging:10250"] {
            for attempt in 0..ROUNDS {
                let url = format!("/api/v1/nodes/{target}/proxy/logs/");
                let answer =
                    tokio::time::timeout(PATIENCE, asked.send(Method::GET, &url)).await??;
                let listed = answer.body.contains(">kubelet.log</a>");
                ensure!(
                    answer.status == 200 && listed,
                    "{}, attempt {attempt}, {url}: {answer:?}",
                    asked.name
                );
            }
        }
        let credentials = credentials
            .lock()
            .expect("nobody panics with the list")
            .clone();
        let right = credentials.iter().all(|shown| match shown {
            Some(shown) => {
                own_token && shown.starts_with("Bearer ey") && !shown.contains(&world.token)
            }
            None => !own_token,
        });
        ensure!(
            credentials.len() == 2 * ROUNDS && right,
            "{}: the kubelet was shown {credentials:?}",
            asked.name
        );
    }
    Ok(())
}

/// E5, "should support proxy with --port 0" and "should support --unix-socket=/path". What these
/// ask upstream, `/api/`, is not the bastion's to serve; what it must do is to say so as an API
/// does. Through the apiserver the same ways lead to it. "should support exec using --server"
/// (`kubectl --server=http://127.0.0.1:PORT`) asks for exec, which is not the bastion's either: it
/// gets a raw path.
pub async fn kubectl_proxy_serves_by_port_and_by_socket(world: &mut World) -> Result<()> {
    let name = path("services/web:80/proxy/name");
    world.known("services/web:80").await?;
    let server = format!("https://{}", world.bastion.secure);
    for (server, api) in [(server, false), (world.cluster.server.clone(), true)] {
        let by_port = KubectlProxy::by_port(world, &server).await?;
        let (code, body) = get_plain(by_port.address()?, &name).await?;
        ensure!(
            code == 200 && body.starts_with("web-"),
            "{server}, by port: {code} {body}"
        );
        let (code, body) = get_plain(by_port.address()?, "/api/").await?;
        ensure!(
            is_right(api, code, &body),
            "{server}, by port, /api/: {code} {body}"
        );

        let plain = format!("--server=http://{}", by_port.address()?);
        let said = std::process::Command::new(&world.cluster.kubectl)
            .args(["--kubeconfig=/dev/null", &plain, "get", "--raw", &name])
            .output()?;
        let stdout = String::from_utf8_lossy(&said.stdout);
        ensure!(
            said.status.success() && stdout.starts_with("web-"),
            "{server}, kubectl --server: {said:?}"
        );

        let by_socket = KubectlProxy::by_socket(world, &server).await?;
        for (path, is_name) in [(name.as_str(), true), ("/api/", false)] {
            let stream = tokio::net::UnixStream::connect(by_socket.socket()).await?;
            let (code, body) = get_plain_by(stream, "localhost", path).await?;
            let right = if is_name {
                code == 200 && body.starts_with("web-")
            } else {
                is_right(api, code, &body)
            };
            ensure!(right, "{server}, by socket, {path}: {code} {body}");
        }
    }
    Ok(())
}

/// An apiserver lists its versions under `/api/`; the bastion has a `Status` there.
fn is_right(api: bool, code: u16, body: &str) -> bool {
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

/// Agnhost's `porter`, as E2 and E3 use it: it tells the method, and for the bare path the one in
/// the query as well.
async fn porter(world: &World, namespace: &str, last: u8) -> Result<App> {
    let objects = Objects::new(&world.cluster.client, namespace).await?;
    let app = App::start(&world.namespace, last, 80, None, |request| async move {
        let method = request.method().as_str();
        let path = request.uri().path();
        let asked = match request
            .uri()
            .query()
            .and_then(|query| query.strip_prefix("method="))
        {
            Some(asked) if path == "/" => asked,
            _ => path.strip_prefix("/some/path/with/").unwrap_or_default(),
        };
        let body = if asked == method {
            "foo"
        } else {
            "what reached the app is not what was asked"
        };
        answer(
            "application/json",
            json!({"Method": method, "Body": body}).to_string(),
        )
    })?;
    let ports = json!([{"containerPort": 80}]);
    objects
        .pod(
            "agnhost",
            json!({"test": "response"}),
            world.namespace.address(last),
            ports,
        )
        .await?;
    let spec = json!({"selector": {"test": "response"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]});
    objects.service("test-service", spec).await?;
    Ok(app)
}

fn echoes(answer: &Answer, method: &Method) -> bool {
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    body == json!({"Method": method.as_str(), "Body": "foo"})
}

/// Somebody who serves the proxy subresource, and who may ask for all of it.
#[derive(Clone)]
struct Asked {
    name: &'static str,
    address: SocketAddr,
    ca: std::path::PathBuf,
    admin: Pair,
}

impl Asked {
    async fn send(&self, method: Method, url: &str) -> Result<Answer> {
        let mut client = Client::connect(self.address, &self.ca, None, Some(&self.admin)).await?;
        client.send(method, url, Bytes::new()).await
    }

    /// Waits until what a scenario has just made is known there.
    async fn answers(&self, url: &str) -> Result<()> {
        let mut last = None;
        let what = format!("{url} to be known to {}", self.name);
        let known = eventually(&what, async || {
            let answer = last.insert(self.send(Method::GET, url).await?);
            Ok(answer.status == 200)
        });
        known.await.with_context(|| format!("{last:?}"))
    }
}

/// The bastion, then the apiserver.
fn everyone(world: &World) -> Result<[Asked; 2]> {
    // Upstream's tests run as an admin: OPTIONS has the empty verb, which only `*` grants.
    let admin =
        world
            .cluster
            .ca
            .client(world.cluster.folder.path(), "conformance", "system:masters")?;
    let ca = world.cluster.ca.file.clone();
    let apiserver = world
        .cluster
        .server
        .trim_start_matches("https://")
        .parse()?;
    Ok([
        Asked {
            name: "the bastion",
            address: world.bastion.secure,
            ca: ca.clone(),
            admin: admin.clone(),
        },
        Asked {
            name: "the apiserver",
            address: apiserver,
            ca,
            admin,
        },
    ])
}
