//! Failover and addresses, with servers in memory.

use super::*;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::Request;

use crate::apiservers::{Connect, Probe, ServerConfig, keep_probing};
use crate::forward::TrailerFilter;
use crate::http::{RequestBody, Stream};
use crate::testing::head;

/// Server that accepts connections and never responds.
#[derive(Debug, Default)]
struct Frozen(std::sync::Mutex<Vec<tokio::io::DuplexStream>>);

impl Connect for Frozen {
    fn connect(&self, _: Credential, _: bool) -> BoxFuture<'_, io::Result<Stream>> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        self.0.lock().unwrap().push(theirs);
        async { Ok(Stream::Memory(ours)) }.boxed()
    }
}

fn servers<const N: usize>(configs: [(&str, &str); N]) -> ApiForwarder {
    let servers = configs.map(|(name, path)| ServerConfig {
        name: name.into(),
        host: Some(name.parse().unwrap()),
        path: path.into(),
        connector: Arc::new(Frozen::default()),
    });
    ApiForwarder::new(ApiServers::new(servers.into()))
}

fn request<'a>(head: &'a mut RequestHead, body: &'static str) -> ApiRequest<'a> {
    ApiRequest {
        head,
        body: (!body.is_empty()).then(|| OutgoingBody {
            body: RequestBody::Full(Box::new(body.into())),
            received: Rc::default(),
            trailers: TrailerFilter(Rc::new(|_| {})),
        }),
        credential: Credential::Own { generation: 0 },
        interim: None,
    }
}

fn websocket() -> RequestHead {
    let request = Request::get("/exec").header("connection", "upgrade");
    head(request.header("upgrade", "websocket"))
}

/// Neither a body nor an upgrade may be sent again.
#[tokio::test(start_paused = true)]
async fn request_on_a_frozen_server_fails_once_its_health_checks_do() {
    let create = async |forwarder: &ApiForwarder| {
        let mut head = head(Request::post("/"));
        forwarder.send(request(&mut head, "{}")).await.map(drop)
    };
    let upgrade = async |forwarder: &ApiForwarder| {
        let mut head = websocket();
        let upgrade = Upgrade::from_request(&head, None).unwrap();
        let request = request(&mut head, "");
        forwarder.upgrade(request, &upgrade).await.map(drop)
    };
    let forwarder = servers([("a", "")]);
    let both = async { futures::join!(create(&forwarder), upgrade(&forwarder)) };
    let mut both = Box::pin(both);
    let healthy = timeout(Duration::from_hours(1), &mut both).await;
    assert!(healthy.is_err(), "a healthy server may take its time");
    forwarder.servers.snapshot()[0].set_aside(Health::Unreachable, "frozen");
    let (created, upgraded) = timeout(Duration::from_hours(1), both).await.unwrap();
    for failed in [created, upgraded] {
        assert!(
            matches!(failed, Err(ApiError::Interrupted { .. })),
            "{failed:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn request_on_the_only_server_has_its_health_checked() {
    let forwarder = servers([("a", "")]);
    let probe = Probe {
        credential: Credential::Own { generation: 0 },
        authorization: Arc::default(),
        always: false,
    };
    let mut head = head(Request::post("/"));
    let created = tokio::select! {
        created = forwarder.send(request(&mut head, "{}")) => created,
        () = keep_probing(forwarder.servers.clone(), probe) => unreachable!("it never ends"),
        () = tokio::time::sleep(Duration::from_hours(1)) => panic!("the request still waits"),
    };
    assert!(matches!(created, Err(ApiError::Interrupted { .. })));
}

#[test]
fn each_server_gets_its_own_host_and_path() {
    let servers = servers([("a", "/k8s/a"), ("b", "")]).servers.snapshot();
    let mut origin = head(Request::get("/api?x"));
    let target = origin.target.clone();
    let mut pending = Pending::new(&mut origin, None);
    for (server, expected) in servers.iter().zip(["/k8s/a/api?x", "/api?x"]) {
        readdress(&mut pending, server, &target);
        assert_eq!(pending.head.target.path_and_query(), expected);
        assert_eq!(pending.head.headers["host"], server.config.name);
    }
    let mut absolute = head(Request::get("/").header("host", "web.shop.svc"));
    absolute.target = target.to_absolute_form("web.shop.svc");
    let target = absolute.target.clone();
    let mut pending = Pending::new(&mut absolute, None);
    readdress(&mut pending, &servers[0], &target);
    let url = pending.head.target.path_and_query();
    assert_eq!(url, "http://web.shop.svc/api?x");
    assert_eq!(pending.head.headers["host"], "web.shop.svc");
}

#[tokio::test(start_paused = true)]
async fn frozen_server_fails_a_request_over_http1() {
    let servers = ["a", "b"].map(|name| ServerConfig {
        name: name.into(),
        host: None,
        path: String::new(),
        connector: Arc::new(Frozen::default()),
    });
    let forwarder = ApiForwarder::new(ApiServers::new(servers.into()));
    for (method, repeated) in [("GET", true), ("DELETE", false)] {
        let mut head = head(
            Request::builder()
                .method(method)
                .uri("/")
                .header("host", "a"),
        );
        let request = ApiRequest {
            head: &mut head,
            body: None,
            credential: Credential::Unproven,
            interim: None,
        };
        let error = forwarder.send(request).await.unwrap_err();
        match error {
            ApiError::Failed { .. } => assert!(repeated, "{error}"),
            ApiError::Interrupted { .. } => assert!(!repeated, "{error}"),
            error => panic!("{error}"),
        }
    }
}

/// Server that refuses each request once it has received its body.
#[derive(Debug)]
struct Refusing;

impl crate::http::Transport for tokio::io::DuplexStream {
    fn alpn_protocol(&self) -> Option<&[u8]> {
        Some(b"h2")
    }
}

impl Connect for Refusing {
    fn connect(&self, _: Credential, _: bool) -> BoxFuture<'_, io::Result<Stream>> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            builder.initial_window_size(1 << 20);
            builder.initial_connection_window_size(1 << 20);
            let mut connection = builder.handshake::<_, bytes::Bytes>(theirs).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(_)) = body.data().await {}
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                });
            }
        });
        async { Ok(Stream::Boxed(Box::new(ours))) }.boxed()
    }
}

/// The client may send it again, which the bastion cannot.
#[tokio::test]
async fn refused_request_that_is_too_long_to_repeat_has_no_effect() {
    let forwarder = ApiForwarder::new(ApiServers::new(vec![ServerConfig {
        name: "a".into(),
        host: None,
        path: String::new(),
        connector: Arc::new(Refusing),
    }]));
    let body: &'static str = Box::leak("x".repeat(200_000).into_boxed_str());
    let mut head = head(Request::post("/").header("host", "a"));
    tokio::task::LocalSet::new()
        .run_until(async {
            let error = forwarder.send(request(&mut head, body)).await.unwrap_err();
            assert!(matches!(error, ApiError::Failed { .. }), "{error:?}");
        })
        .await;
}
