//! The API servers that a cluster publishes.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HOST};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{Context, ContextError, Loaded};
use crate::apiservers::ServerConfig;
use crate::desk::connect::{Connector, ServerTls};
use crate::desk::request;
use crate::model::error_chain;

/// EndpointSlice in which API servers publish their addresses.
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
/// Name that the certificates of all API servers have.
const SERVER_NAME: &str = "kubernetes.default.svc";

/// Replaces the servers of the context by those that the first one of them that answers lists.
/// Blocks the thread for the request.
pub(super) fn discover(mut loaded: Loaded) -> Result<Context, ContextError> {
    let reason = |reason: String| ContextError::Discover { reason };
    // A thread of its own, because the caller may already be in a runtime.
    let found = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            runtime.block_on(published(&loaded))
        });
        thread.join()
    });
    let found = found.unwrap_or_else(|_| Err("the request ended unexpectedly".into()));
    let addresses = found.map_err(reason)?;
    let tls = match &loaded.tls {
        // An address is rarely in a certificate; the name is in those of all servers.
        Some(tls) if !tls.has_name() => Some(Arc::new(tls.with_name(SERVER_NAME)?)),
        tls => tls.clone(),
    };
    loaded.context.servers = addresses
        .into_iter()
        .map(|(host, port)| server(&host, port, tls.as_ref(), &loaded))
        .collect();
    Ok(loaded.context)
}

fn server(host: &str, port: u16, tls: Option<&Arc<ServerTls>>, loaded: &Loaded) -> ServerConfig {
    let connector = Connector::new(host, port, tls.cloned(), Arc::clone(&loaded.proxies));
    ServerConfig {
        name: connector.name().to_owned(),
        host: HeaderValue::from_str(connector.name()).ok(),
        // Without that of the URL, which leads to the API behind another server.
        path: String::new(),
        connector: Arc::new(connector),
    }
}

/// Asks the servers of the context, one after the other.
async fn published(loaded: &Loaded) -> Result<Vec<(String, u16)>, String> {
    let mut failure = String::new();
    for (connector, server) in loaded.connectors.iter().zip(&loaded.context.servers) {
        match request_slice(connector, &server.path, loaded).await {
            Ok((StatusCode::OK, body)) => return addresses(&body),
            Ok((status, _)) => {
                let remedy = if status == StatusCode::UNAUTHORIZED {
                    "log in again"
                } else {
                    "grant get on it"
                };
                failure = format!(
                    "{} returned {status} for the EndpointSlice default/kubernetes; {remedy}, or \
                     list the servers with --server",
                    connector.name()
                );
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn request_slice(
    connector: &Connector,
    path: &str,
    loaded: &Loaded,
) -> Result<(StatusCode, Bytes), String> {
    let credentials = &loaded.context.credentials;
    let authorization = credentials.authorization().await;
    let authorization = authorization.map_err(|error| error_chain(&error))?;
    let mut request = Request::get(format!("{path}{SLICE}"))
        .header(ACCEPT, "application/json")
        .header(HOST, connector.name());
    if let Some(headers) = request.headers_mut() {
        headers.extend(credentials.impersonation().clone());
        headers.extend(authorization.map(|value| (AUTHORIZATION, value)));
    }
    let request = request
        .body(Full::default())
        .map_err(|error| error.to_string())?;
    let sent = request::send(connector, request).await;
    sent.map_err(|error| error_chain(&error))
}

/// Returns the addresses of a slice.
fn addresses(slice: &[u8]) -> Result<Vec<(String, u16)>, String> {
    let slice: EndpointSlice = serde_json::from_slice(slice)
        .map_err(|_| "the response is not an EndpointSlice".to_owned())?;
    let ports = slice.ports.unwrap_or_default();
    let named = ports
        .iter()
        .find(|port| port.name.as_deref() == Some("https"));
    let port = named.or(ports.first()).and_then(|port| port.port);
    let port = port.and_then(|port| u16::try_from(port).ok());
    let mut found: Vec<_> = slice
        .endpoints
        .unwrap_or_default()
        .into_iter()
        .filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|conditions| conditions.ready) != Some(false)
        })
        .flat_map(|endpoint| endpoint.addresses)
        .filter_map(|address| Some((address, port?)))
        .collect();
    found.sort();
    found.dedup();
    if found.is_empty() {
        return Err("the EndpointSlice default/kubernetes has no addresses".to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ready_addresses_with_the_port_of_https() {
        let slice = br#"{"addressType": "IPv4", "metadata": {"name": "kubernetes"},
            "endpoints": [{"addresses": ["192.0.2.2"]}, {"addresses": ["192.0.2.1", "192.0.2.2"],
            "conditions": {"ready": true}}, {"addresses": ["192.0.2.3"], "conditions": {"ready": false}}],
            "ports": [{"name": "other", "port": 1}, {"name": "https", "port": 6443}]}"#;
        let expected = ["192.0.2.1", "192.0.2.2"].map(|address| (address.to_owned(), 6443));
        assert_eq!(addresses(slice).unwrap(), expected);
        let empty = br#"{"addressType": "IPv4", "endpoints": [], "ports": []}"#;
        assert!(addresses(empty).is_err());
        assert!(addresses(b"[]").is_err());
    }
}
