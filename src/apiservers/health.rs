//! Health checks: `GET /readyz` of each server.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::{ApiServer, ApiServers, Credential, Health};
use crate::model::error_chain;

/// Interval of the checks of a server that is ready, and of one that is not.
const INTERVAL: Duration = Duration::from_secs(3);
const FAILED_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum time of one check.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Number of consecutive timeouts after which a server is unreachable: one may be the pause of a
/// busy server.
const MAX_TIMEOUTS: u32 = 2;
/// Maximum number of bytes of a response.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// Requests of health checks.
#[derive(Clone, Debug)]
pub struct Probe {
    pub credential: Credential,
    /// `Authorization` of the bastion itself, replaced as its token rotates; that of a user is removed
    /// once it is rejected.
    pub authorization: Arc<ArcSwapOption<HeaderValue>>,
    /// Checks a server that is ready also while it is the only one.
    pub always: bool,
}

/// Checks all servers of a set until the process ends.
pub async fn keep_probing(servers: ApiServers, probe: Probe) {
    loop {
        let changed = servers.0.changed.notified();
        let snapshot = servers.snapshot();
        let is_only = snapshot.len() == 1 && !probe.always;
        let checks = snapshot
            .iter()
            .map(|server| check_repeatedly(server, &probe, is_only, &servers.0.may_probe));
        let checks = async {
            join_all(checks).await;
            // Only those of an empty set end.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = checks => {}
            () = changed => {}
        }
    }
}

/// Result of one check.
enum Checked {
    Ready,
    NotReady(String),
    Failed(io::Error),
    Timeout,
}

/// Checks one server. Never returns.
async fn check_repeatedly(
    server: &ApiServer,
    probe: &Probe,
    is_only: bool,
    may_probe: &AtomicBool,
) {
    let mut connection = None;
    let mut timeouts = 0;
    loop {
        if is_only && server.health() == Health::Ready {
            server.suspected.notified().await;
        }
        let checked = match timeout(TIMEOUT, check(server, probe, &mut connection, may_probe)).await
        {
            Ok(Ok(checked)) => checked,
            Ok(Err(error)) => Checked::Failed(error),
            Err(_) => Checked::Timeout,
        };
        if !matches!(checked, Checked::Ready | Checked::NotReady(_)) {
            connection = None;
        }
        timeouts = match checked {
            Checked::Timeout => timeouts + 1,
            _ => 0,
        };
        match checked {
            Checked::Ready => server.set_health(Health::Ready, ""),
            Checked::NotReady(reason) => server.set_health(Health::NotReady, &reason),
            Checked::Failed(error) => {
                server.set_health(Health::Unreachable, &error_chain(&error));
            }
            Checked::Timeout if timeouts >= MAX_TIMEOUTS => {
                server.set_health(Health::Unreachable, "no answer to GET /readyz in time");
            }
            Checked::Timeout => {}
        }
        let interval = if server.health() == Health::Ready {
            INTERVAL
        } else {
            FAILED_INTERVAL
        };
        // Jitter, so that the checks of many replicas do not coincide.
        let pause = tokio::time::sleep(interval.mul_f32(0.75 + fastrand::f32() / 2.0));
        tokio::select! {
            () = pause => {}
            () = server.suspected.notified() => {}
        }
    }
}

/// Sends one request, on the connection of the previous one if it is still open.
async fn check(
    server: &ApiServer,
    probe: &Probe,
    connection: &mut Option<SendRequest<Empty<Bytes>>>,
    may_probe: &AtomicBool,
) -> io::Result<Checked> {
    if connection.as_ref().is_none_or(SendRequest::is_closed) {
        *connection = Some(connect(server, probe).await?);
    }
    let sender = connection.as_mut().expect("connected above");
    let host = server
        .config
        .host
        .clone()
        .unwrap_or_else(|| HeaderValue::from_static("kubernetes.default.svc"));
    let mut request = Request::get(format!("{}/readyz", server.config.path))
        .header(header::HOST, host)
        .body(Empty::new())
        .map_err(io::Error::other)?;
    let authorization = probe.authorization.load_full();
    if let Some(authorization) = &authorization {
        let authorization = HeaderValue::clone(authorization);
        request
            .headers_mut()
            .insert(header::AUTHORIZATION, authorization);
    }
    sender.ready().await.map_err(io::Error::other)?;
    let response = sender
        .send_request(request)
        .await
        .map_err(io::Error::other)?;
    let status = response.status();
    // Read to its end, so that the connection can be used again.
    let body = http_body_util::Limited::new(response.into_body(), MAX_BODY_BYTES);
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    if status.is_success() {
        may_probe.store(true, Ordering::Relaxed);
    }
    // Checks do not renew the credentials of a user, which may have expired since the last request.
    let is_user = matches!(probe.credential, Credential::Own { .. });
    if is_user && status == StatusCode::UNAUTHORIZED {
        probe.authorization.store(None);
        *connection = None;
        return Ok(Checked::Ready);
    }
    // A server that starts denies what it allows once it knows the roles of the cluster.
    let denies = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        && (authorization.is_some() || !is_user);
    // Any other status is an answer, as a server gives it that always requires credentials, or a
    // gateway that does not know the path.
    Ok(
        if status.is_server_error() || denies && may_probe.load(Ordering::Relaxed) {
            Checked::NotReady(reason(status, &body))
        } else {
            Checked::Ready
        },
    )
}

/// Returns the failed checks that a response of `/readyz` lists.
fn reason(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let failed: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("[-]"))
        .filter_map(|line| line.split_whitespace().next())
        .take(5)
        .collect();
    match failed[..] {
        [] => format!("/readyz responds with {}", status.as_u16()),
        _ => format!("/readyz reports {}", failed.join(", ")),
    }
}

fn connect<'a>(
    server: &'a ApiServer,
    probe: &'a Probe,
) -> BoxFuture<'a, io::Result<SendRequest<Empty<Bytes>>>> {
    Box::pin(async {
        let connector = &server.config.connector;
        let stream = connector.connect(probe.credential, false).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // Ends with its sender, or with the connection.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection of a health check failed");
            }
        });
        Ok(sender)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::atomic::AtomicU16;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::super::{Connect, ServerConfig};
    use crate::http::Stream;

    #[test]
    fn names_failed_checks() {
        let body = b"[+]ping ok\n[-]shutdown failed: reason withheld\n[-]etcd failed: x\nreadyz check failed\n";
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        assert_eq!(reason(status, body), "/readyz reports shutdown, etcd");
        assert_eq!(reason(status, b"no"), "/readyz responds with 500");
    }

    /// Server that responds with a status: 0 refuses connections, 1 never responds.
    #[derive(Debug)]
    struct Scripted(Arc<AtomicU16>);

    impl Connect for Scripted {
        fn connect(&self, _: Credential, http2: bool) -> BoxFuture<'_, io::Result<Stream>> {
            assert!(!http2);
            let status = Arc::clone(&self.0);
            Box::pin(async move {
                if status.load(Ordering::SeqCst) == 0 {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                let (ours, mut theirs) = duplex(4096);
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    while theirs.read(&mut head).await.is_ok_and(|length| length > 0) {
                        let status = match status.load(Ordering::SeqCst) {
                            0 => return,
                            1 => std::future::pending().await,
                            status => status,
                        };
                        let response = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                        let _ = theirs.write_all(response.as_bytes()).await;
                    }
                });
                Ok(Stream::Memory(ours))
            })
        }
    }

    fn servers(status: &Arc<AtomicU16>) -> ApiServers {
        ApiServers::new(vec![ServerConfig {
            name: "a".into(),
            host: None,
            path: String::new(),
            connector: Arc::new(Scripted(Arc::clone(status))),
        }])
    }

    /// The token of a user expires while no request renews it.
    #[tokio::test]
    async fn expired_token_of_a_user_is_no_failure_of_the_server() {
        let status = Arc::new(AtomicU16::new(200));
        let servers = servers(&status);
        let probe = Probe {
            credential: Credential::Own { generation: 0 },
            authorization: Arc::new(ArcSwapOption::from_pointee(HeaderValue::from_static("t"))),
            always: true,
        };
        let may_probe = AtomicBool::new(false);
        let mut connection = None;
        for (code, is_ready, has_token) in [
            (200, true, true),
            (403, false, true),
            (401, true, false),
            // Without credentials.
            (403, true, false),
            (200, true, false),
            (500, false, false),
        ] {
            status.store(code, Ordering::SeqCst);
            let server = &servers.snapshot()[0];
            let checked = check(server, &probe, &mut connection, &may_probe).await;
            assert_eq!(
                matches!(checked.unwrap(), Checked::Ready),
                is_ready,
                "{code}"
            );
            assert_eq!(probe.authorization.load().is_some(), has_token, "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn health_follows_the_responses_of_the_server() {
        let status = Arc::new(AtomicU16::new(200));
        let servers = servers(&status);
        let probe = Probe {
            credential: Credential::Proven,
            authorization: Arc::default(),
            always: true,
        };
        tokio::spawn(keep_probing(servers.clone(), probe));
        let server = Arc::clone(&servers.snapshot()[0]);
        for (code, expected) in [
            (500, Health::NotReady),
            (401, Health::Ready),
            (0, Health::Unreachable),
            (200, Health::Ready),
            (1, Health::Unreachable),
            (404, Health::Ready),
            // It has answered with 200 before.
            (403, Health::NotReady),
            (200, Health::Ready),
        ] {
            status.store(code, Ordering::SeqCst);
            let reached = async {
                while server.health() != expected {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            // Of the paused clock: two timeouts and the pauses between them.
            let limit = 3 * (TIMEOUT + INTERVAL);
            let in_time = timeout(limit, reached).await;
            assert!(in_time.is_ok(), "{code}: {:?}", server.health());
        }
    }
}
