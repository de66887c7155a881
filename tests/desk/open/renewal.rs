//! Credentials that a server rejects.

use anyhow::{Result, ensure};

use super::Open;
use crate::api::{Desk, ok, response};
use crate::support::raw::Head;

const SERVICE: &str = r#"{"spec": {"ports": [{"port": 80}]}}"#;
const REJECTION: &str = r#"{"kind": "Status", "code": 401, "reason": "Unauthorized"}"#;
/// Authority of the service in absolute form.
const AUTHORITY: &str = "http://web.default.svc/";
const SUBRESOURCE: &str = "/services/web/proxy/";

/// Request that rejects credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rejecting {
    LookUp,
    Subresource,
    Bastion,
}

impl Rejecting {
    /// Returns the kind of a request, and its credentials. `None` for the probe for a bastion.
    fn parse(head: &Head) -> Option<(Self, &str)> {
        let authorization = |name| head.value(name).unwrap_or_default();
        if head.line.starts_with("OPTIONS ") {
            None
        } else if head.line.contains(AUTHORITY) {
            Some((Self::Bastion, authorization("proxy-authorization")))
        } else if head.line.contains(SUBRESOURCE) {
            Some((Self::Subresource, authorization("authorization")))
        } else {
            Some((Self::LookUp, authorization("authorization")))
        }
    }
}

/// Response of a server that rejects some credentials. That of the application has the credentials
/// and the body of the request.
fn respond(head: &Head, body: &[u8], is_rejected: impl Fn(Rejecting, &str) -> bool) -> Vec<u8> {
    let authenticate = || response("407 Proxy Authentication Required", "");
    let Some((kind, authorization)) = Rejecting::parse(head) else {
        return authenticate();
    };
    match kind {
        Rejecting::Bastion if is_rejected(kind, authorization) => authenticate(),
        _ if is_rejected(kind, authorization) => response("401 Unauthorized", REJECTION),
        Rejecting::LookUp => ok(SERVICE),
        Rejecting::Bastion | Rejecting::Subresource => {
            ok(&format!("{authorization} {}", body.escape_ascii()))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_token_of_a_plugin_is_renewed_once_on_every_way() -> Result<()> {
    for (rejecting, via) in [
        (Rejecting::LookUp, "--via=proxy"),
        (Rejecting::LookUp, "--via=bastion"),
        (Rejecting::Subresource, "--via=proxy"),
        (Rejecting::Bastion, "--via=bastion"),
    ] {
        let desk = Desk::new()?;
        let api = desk.api(move |head, body| {
            respond(head, body, |kind, authorization| {
                kind == rejecting && authorization == "Bearer token-1"
            })
        });
        let api = api.await?;
        desk.kubeconfig(&format!("https://{}", api.address), &desk.plugin()?)?;
        let open = Open::start(&desk.path("kubeconfig"), &["svc/web", via])?;
        for _ in 0..2 {
            let response = open.post("/form", "a=b").await?;
            ensure!(
                response.starts_with("HTTP/1.1 200 ") && response.ends_with("Bearer token-2 a=b"),
                "{rejecting:?} {via}: {response}"
            );
        }
        let runs = desk.plugin_runs()?;
        ensure!(runs == 2, "{rejecting:?} {via}: {runs} runs");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_renewed_no_more_than_once_for_a_request() -> Result<()> {
    for (rejecting, via, expected) in [
        (Rejecting::Subresource, "--via=proxy", "HTTP/1.1 401 "),
        (Rejecting::Bastion, "--via=bastion", "HTTP/1.1 502 "),
    ] {
        let desk = Desk::new()?;
        let api = desk.api(move |head, body| respond(head, body, |kind, _| kind == rejecting));
        let api = api.await?;
        desk.kubeconfig(&format!("https://{}", api.address), &desk.plugin()?)?;
        let open = Open::start(&desk.path("kubeconfig"), &["svc/web", via])?;
        let response = open.post("/form", "a=b").await?;
        ensure!(response.starts_with(expected), "{via}: {response}");
        let is_sent =
            |head: &&Head| matches!(Rejecting::parse(head), Some((kind, _)) if kind == rejecting);
        let sent = api.requests().iter().filter(is_sent).count();
        ensure!((sent, desk.plugin_runs()?) == (2, 2), "{via}: {sent}");
    }
    Ok(())
}
