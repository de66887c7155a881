//! Precedence of flags, kubeconfig, environment and service account, and their errors.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::kubeconfig;
use crate::kubeconfig::Secret;
use crate::model::error_chain;
use crate::testing::certificate_pem;

const CONFIG: &str = "\
apiVersion: v1
kind: Config
current-context: prod
contexts:
- {name: prod, context: {cluster: prod, user: jane, namespace: shop}}
- {name: dev, context: {cluster: dev, user: joe}}
- {name: empty, context: {}}
- {name: gone, context: {cluster: gone, user: jane}}
clusters:
- name: prod
  cluster: {server: 'https://192.0.2.1:6443/', tls-server-name: api.internal, insecure-skip-tls-verify: true}
- {name: dev, cluster: {server: 'http://127.0.0.1:8080', certificate-authority-data: 'IQ=='}}
- {name: no-server, cluster: {insecure-skip-tls-verify: true}}
users:
- {name: jane, user: {token: t0k3n, as: admin, as-groups: [a]}}
- {name: joe, user: {username: joe, password: s3cr3t}}
";

/// Directory with a home, a kubeconfig in it, and a service account.
struct Fixture {
    folder: TempDir,
    environment: Environment,
}

impl Fixture {
    fn new(config: &str) -> Self {
        crate::tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("home/.kube")).unwrap();
        fs::create_dir(path("account")).unwrap();
        if !config.is_empty() {
            fs::write(path("home/.kube/config"), config).unwrap();
        }
        let environment = Environment {
            files: kubeconfig::Environment {
                home: Some(path("home")),
                ..kubeconfig::Environment::default()
            },
            service_account: path("account"),
            ..Environment::default()
        };
        Self {
            folder,
            environment,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn in_pod(mut self) -> Self {
        for (name, text) in [("token", "account"), ("namespace", "pod-ns\n")] {
            fs::write(self.path("account").join(name), text).unwrap();
        }
        let authority = certificate_pem("ecdsa-ca");
        fs::write(self.path("account/ca.crt"), authority).unwrap();
        self.environment.service = Some(("2001:db8::1".into(), "443".into()));
        self
    }

    fn load(&self, flags: &ConnectionFlags) -> Result<Loaded, String> {
        Loaded::new(flags, &self.environment).map_err(|error| error_chain(&error))
    }

    async fn authorization(&self, flags: &ConnectionFlags) -> Option<String> {
        let credentials = self.load(flags).unwrap().context.credentials;
        let value = credentials.authorization().await.unwrap()?;
        Some(value.to_str().unwrap().to_owned())
    }
}

fn names(loaded: &Loaded) -> Vec<&str> {
    let servers = loaded.context.servers.iter();
    servers.map(|server| &*server.name).collect()
}

#[expect(clippy::unnecessary_wraps, reason = "flags are options")]
fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[tokio::test]
async fn uses_the_current_context_without_flags() {
    let fixture = Fixture::new(CONFIG);
    let flags = ConnectionFlags::default();
    let loaded = fixture.load(&flags).unwrap();
    assert_eq!(names(&loaded), ["192.0.2.1:6443"]);
    let context = &loaded.context;
    assert_eq!((&*context.name, &*context.namespace), ("prod", "shop"));
    let server = &context.servers[0];
    assert_eq!(
        (&*server.path, server.host.as_ref().unwrap().as_bytes()),
        ("", &b"192.0.2.1:6443"[..])
    );
    let impersonation = context.credentials.impersonation();
    assert_eq!(impersonation["impersonate-user"], "admin");
    assert_eq!(
        fixture.authorization(&flags).await.as_deref(),
        Some("Bearer t0k3n")
    );
    assert!(loaded.tls.is_some_and(|tls| tls.has_name()));
    assert!(!format!("{context:?}").contains("t0k3n"));
}

#[tokio::test]
async fn flags_override_the_fields_of_the_kubeconfig() {
    let fixture = Fixture::new(CONFIG);
    let base = ConnectionFlags::default();
    let flags = ConnectionFlags {
        servers: vec![
            "https://a:1/k8s/".into(),
            "https://b".into(),
            "https://a:1".into(),
        ],
        token: Some(Secret::from("other".to_owned())),
        namespace: some("web"),
        impersonate: some("root"),
        impersonate_groups: vec!["b".into(), "c".into()],
        impersonate_extra: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
        ..base.clone()
    };
    let loaded = fixture.load(&flags).unwrap();
    assert_eq!(names(&loaded), ["a:1", "b:443"]);
    assert_eq!(loaded.context.servers[0].path, "/k8s");
    assert_eq!(loaded.context.servers[1].host.as_ref().unwrap(), "b");
    assert_eq!(loaded.context.namespace, "web");
    // --server clears the name of the kubeconfig.
    assert!(!loaded.tls.as_ref().unwrap().has_name());
    let impersonation = loaded.context.credentials.impersonation();
    let all = |name: &str| impersonation.get_all(name).iter().count();
    assert_eq!(impersonation["impersonate-user"], "root");
    assert_eq!(
        (all("impersonate-group"), all("impersonate-extra-k")),
        (2, 2)
    );
    let authorization = fixture.authorization(&flags).await;
    assert_eq!(authorization.as_deref(), Some("Bearer other"));

    let flags = ConnectionFlags {
        user: some("joe"),
        tls_server_name: some("x"),
        ..base.clone()
    };
    assert!(fixture.load(&flags).unwrap().tls.unwrap().has_name());
    let authorization = fixture.authorization(&flags).await;
    assert_eq!(authorization.as_deref(), Some("Basic am9lOnMzY3IzdA=="));

    // A CA of the flags replaces insecure-skip-tls-verify.
    fs::write(fixture.path("ca.crt"), certificate_pem("ecdsa-ca")).unwrap();
    let flags = ConnectionFlags {
        certificate_authority: Some(fixture.path("ca.crt")),
        ..base
    };
    fixture.load(&flags).unwrap();
}

#[tokio::test]
async fn sends_no_credentials_without_tls() {
    let config = CONFIG.replace(
        "certificate-authority-data: 'IQ=='",
        "insecure-skip-tls-verify: false",
    );
    let fixture = Fixture::new(&config);
    let flags = ConnectionFlags {
        context: some("dev"),
        ..ConnectionFlags::default()
    };
    let loaded = fixture.load(&flags).unwrap();
    assert!(loaded.tls.is_none());
    assert_eq!(names(&loaded), ["127.0.0.1:8080"]);
    assert_eq!(loaded.context.namespace, "default");
    assert_eq!(fixture.authorization(&flags).await, None);
}

#[tokio::test]
async fn files_of_the_flag_precede_the_variable_and_the_default() {
    let mut fixture = Fixture::new(CONFIG);
    let with_server = |server: &str| CONFIG.replace("192.0.2.1", server);
    fs::write(fixture.path("variable"), with_server("192.0.2.2")).unwrap();
    fs::write(fixture.path("flag"), with_server("192.0.2.3")).unwrap();
    let missing = fixture.path("missing");
    let list = std::env::join_paths([missing, fixture.path("variable")]).unwrap();
    fixture.environment.files.kubeconfig = Some(list);
    let mut flags = ConnectionFlags::default();
    assert_eq!(names(&fixture.load(&flags).unwrap()), ["192.0.2.2:6443"]);
    flags.kubeconfig = Some(fixture.path("flag"));
    assert_eq!(names(&fixture.load(&flags).unwrap()), ["192.0.2.3:6443"]);
    flags.kubeconfig = Some(PathBuf::new());
    assert_eq!(names(&fixture.load(&flags).unwrap()), ["192.0.2.2:6443"]);
}

#[tokio::test]
async fn uses_the_service_account_only_without_a_kubeconfig_and_a_server() {
    let fixture = Fixture::new("").in_pod();
    let mut flags = ConnectionFlags::default();
    let loaded = fixture.load(&flags).unwrap();
    assert_eq!(names(&loaded), ["[2001:db8::1]:443"]);
    assert_eq!(loaded.context.namespace, "pod-ns");
    let authorization = fixture.authorization(&flags).await;
    assert_eq!(authorization.as_deref(), Some("Bearer account"));
    flags.servers = vec!["http://127.0.0.1:1".into()];
    assert_eq!(names(&fixture.load(&flags).unwrap()), ["127.0.0.1:1"]);
    let fixture = Fixture::new(CONFIG).in_pod();
    let flags = ConnectionFlags::default();
    assert_eq!(names(&fixture.load(&flags).unwrap()), ["192.0.2.1:6443"]);
}

#[test]
fn names_the_fault_and_the_remedy() {
    let fixture = Fixture::new(CONFIG);
    let base = ConnectionFlags::default;
    let cases = [
        (
            ConnectionFlags {
                context: some("prd"),
                ..base()
            },
            "the context \"prd\" (--context) is not in the kubeconfig",
        ),
        (
            ConnectionFlags {
                context: some("prd"),
                ..base()
            },
            "; its contexts are: prod, dev, empty, gone; did you mean \"prod\"?",
        ),
        (
            ConnectionFlags {
                cluster: some("x"),
                ..base()
            },
            "the cluster \"x\" (--cluster) is not in the kubeconfig",
        ),
        (
            ConnectionFlags {
                user: some("jone"),
                ..base()
            },
            "its users are: jane, joe; did you mean \"joe\"?",
        ),
        (
            ConnectionFlags {
                context: some("empty"),
                ..base()
            },
            "the context \"empty\" of the kubeconfig",
        ),
        (
            ConnectionFlags {
                context: some("gone"),
                ..base()
            },
            "the cluster \"gone\" (of the context; choose another with --cluster or --server)",
        ),
        (
            ConnectionFlags {
                cluster: some("no-server"),
                ..base()
            },
            "the cluster \"no-server\" of the kubeconfig",
        ),
        (
            ConnectionFlags {
                context: some("dev"),
                servers: vec!["https://a".into()],
                ..base()
            },
            "the CA certificate-authority-data cannot be used",
        ),
        (
            ConnectionFlags {
                certificate_authority: Some("/nonexistent/ca".into()),
                ..base()
            },
            "cannot read the CA \"/nonexistent/ca\" of the cluster (certificate-authority)",
        ),
        (
            ConnectionFlags {
                kubeconfig: Some("/nonexistent/config".into()),
                ..base()
            },
            "cannot read the kubeconfig \"/nonexistent/config\" (--kubeconfig): No such file",
        ),
        (
            ConnectionFlags {
                servers: vec!["tcp://a".into()],
                ..base()
            },
            "the server \"tcp://a\" cannot be used",
        ),
        (
            ConnectionFlags {
                servers: vec!["https://a".into(), "http://b".into()],
                ..base()
            },
            "use one scheme for all servers",
        ),
        (
            ConnectionFlags {
                client_certificate: Some("/nonexistent/crt".into()),
                ..base()
            },
            "has a client certificate without its key",
        ),
        (
            ConnectionFlags {
                user: some("joe"),
                token: Some(Secret::from("t0k3n".to_owned())),
                ..base()
            },
            "has a token and a password",
        ),
    ];
    for (flags, expected) in cases {
        let error = fixture.load(&flags).unwrap_err();
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        assert!(!error.contains("t0k3n") && !error.contains('\n'), "{error}");
    }
    let without_uid = CONFIG.replace("as: admin, ", "");
    let error = Fixture::new(&without_uid).load(&base()).unwrap_err();
    assert!(error.contains("--as=USER"), "{error}");
    let error = Fixture::new("").load(&base()).unwrap_err();
    assert!(error.starts_with("no cluster: "), "{error}");
    let no_current = CONFIG.replace("current-context: prod", "");
    let error = Fixture::new(&no_current).load(&base()).unwrap_err();
    assert!(
        error.contains("has no current context; set --context=NAME"),
        "{error}"
    );
    let proxy = CONFIG.replace(
        "tls-server-name",
        "proxy-url: 'ftp://u:s3cr3t@x', tls-server-name",
    );
    let error = Fixture::new(&proxy).load(&base()).unwrap_err();
    assert!(
        error.contains("its scheme is not http, https or socks5"),
        "{error}"
    );
    assert!(!error.contains("s3cr3t"), "{error}");
    let both = CONFIG.replace(
        "tls-server-name",
        "certificate-authority-data: 'IQ==', tls-server-name",
    );
    let error = Fixture::new(&both).load(&base()).unwrap_err();
    assert!(error.contains("exclude each other"), "{error}");
}

/// Starts an API server that answers each request with a status and an EndpointSlice. Returns its
/// URL and a thread with the head of the first request.
fn api_server(status: u16) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        let body = "{\"addressType\": \"IPv6\", \"endpoints\": [{\"addresses\": [\"2001:db8::2\"]}, \
                    {\"addresses\": [\"2001:db8::1\"]}], \"ports\": [{\"name\": \"https\", \"port\": 6443}]}";
        let length = body.len();
        let response = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(response.as_bytes()).unwrap();
        String::from_utf8(head).unwrap()
    });
    (url, thread)
}

// In a runtime, as commands may be.
#[tokio::test]
async fn discovers_the_servers_that_the_cluster_publishes() {
    let fixture = Fixture::new(CONFIG);
    let (forbidden, _) = api_server(403);
    let (url, request) = api_server(200);
    let flags = ConnectionFlags {
        servers: vec![forbidden, url.clone() + "/base"],
        ..ConnectionFlags::default()
    };
    let context = discover::discover(fixture.load(&flags).unwrap()).unwrap();
    let servers = context.servers.iter();
    let servers: Vec<_> = servers.map(|server| &*server.name).collect();
    assert_eq!(servers, ["[2001:db8::1]:6443", "[2001:db8::2]:6443"]);
    let host = context.servers[0].host.as_ref().unwrap();
    assert_eq!(host.as_bytes(), b"[2001:db8::1]:6443");
    let head = request.join().unwrap();
    let path =
        "GET /base/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes HTTP/1.1";
    assert!(
        head.starts_with(path) && head.contains("impersonate-user: admin"),
        "{head}"
    );

    let (forbidden, _) = api_server(403);
    let flags = ConnectionFlags {
        servers: vec![forbidden],
        ..ConnectionFlags::default()
    };
    let error = discover::discover(fixture.load(&flags).unwrap()).unwrap_err();
    let error = error_chain(&error);
    assert!(
        error.contains("403 Forbidden") && error.contains("--server"),
        "{error}"
    );
}
