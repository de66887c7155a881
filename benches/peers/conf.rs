//! Configuration files of HAProxy, nginx and Envoy.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use crate::stage::{BODY_BYTES, STALLED_BYTES};
use crate::support::pki::Pair;

/// Module of the Debian package libnginx-mod-stream.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Writes the configuration of the backends: a small response, a large one, one that is larger
/// than all buffers, and one after the complete body of the request.
///
/// # Errors
/// Returns an error if a file cannot be written.
pub fn backend(
    folder: &Path,
    content: &Path,
    backends: &[SocketAddr],
    grown: &str,
) -> Result<PathBuf> {
    fs::write(
        content.join("large"),
        vec![b'x'; usize::try_from(BODY_BYTES)?],
    )?;
    fs::File::create(content.join("stalled"))?.set_len(STALLED_BYTES)?;
    // Workers do not run as root.
    fs::set_permissions(content, fs::Permissions::from_mode(0o755))?;
    let listen: String = backends
        .iter()
        .map(|backend| format!("listen {backend}; "))
        .collect();
    let (folder_name, content_name) = (folder.display(), content.display());
    // nginx answers `return` before it has read a body, but reads it completely before it passes
    // the request on. The body stays in memory.
    let text = format!(
        "daemon off; worker_processes 1; worker_rlimit_nofile 40000;
pid {folder_name}/backend.pid; error_log /dev/null;
events {{ worker_connections 32768; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; send_timeout 5m; client_header_timeout 1h; sendfile on;
  client_max_body_size 0; client_body_buffer_size {BODY_BYTES}; client_body_temp_path {folder_name}/backend-body;
  upstream answers {{ server 127.0.0.1:8079; keepalive 16; }}
  server {{
    {listen} listen {grown};
    location / {{ return 200 \"hello\\n\"; }}
    location = /large {{ root {content_name}; }}
    location = /stalled {{ root {content_name}; }}
    location = /upload {{
      proxy_pass http://answers; proxy_pass_request_body off;
      proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Content-Length \"\";
    }}
  }}
  server {{ listen 127.0.0.1:8079; location / {{ return 200 \"hello\\n\"; }} }}
}}
"
    );
    write(folder, "backend.conf", &text)
}

/// Writes the configuration of the peer nginx. As in the other peers, TLS 1.3 is on and bodies
/// stream, instead of through temporary files.
pub fn nginx(folder: &Path, port: u16, serving: &Pair, backends: &[SocketAddr]) -> Result<PathBuf> {
    let servers: String = backends
        .iter()
        .map(|backend| format!("server {backend}; "))
        .collect();
    let folder_name = folder.display();
    let text = format!(
        "daemon off; worker_processes 2;
pid {folder_name}/nginx-{port}.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; send_timeout 5m; proxy_read_timeout 5m;
  client_max_body_size 0; client_body_temp_path {folder_name}/nginx-body;
  proxy_request_buffering off; proxy_max_temp_file_size 0; proxy_temp_path {folder_name}/nginx-proxy;
  upstream backends {{ {servers} keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} ssl http2; ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {}; ssl_certificate_key {};
    location / {{ proxy_pass http://backends; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}
  }}
}}
",
        serving.certificate.display(),
        serving.key.display()
    );
    write(folder, &format!("nginx-{port}.conf"), &text)
}

/// Writes the configuration of HAProxy in front of the API server: with TLS on both sides, or with
/// the bytes of a connection as they are.
pub fn haproxy_to_api_server(
    folder: &Path,
    port: u16,
    serving: &Pair,
    api_server: &str,
    ca: &Path,
    tcp: bool,
) -> Result<PathBuf> {
    let both = fs::read_to_string(&serving.certificate)? + &fs::read_to_string(&serving.key)?;
    let pem = write(folder, "haproxy.pem", &both)?;
    let (mode, bind, server) = if tcp {
        ("tcp", String::new(), String::new())
    } else {
        (
            "http",
            format!(" ssl crt {} alpn h2,http/1.1", pem.display()),
            format!(
                " ssl verify required ca-file {} alpn h2,http/1.1",
                ca.display()
            ),
        )
    };
    let text = format!(
        "global
  nbthread 2
defaults
  mode {mode}
  timeout connect 5s
  timeout client 5m
  timeout server 5m
frontend f
  bind 127.0.0.1:{port}{bind}
  default_backend b
backend b
  server s {api_server}{server}
"
    );
    write(folder, &format!("haproxy-{port}.cfg"), &text)
}

/// Writes the configuration of HAProxy.
pub fn haproxy(
    folder: &Path,
    port: u16,
    serving: &Pair,
    backends: &[SocketAddr],
) -> Result<PathBuf> {
    let both = fs::read_to_string(&serving.certificate)? + &fs::read_to_string(&serving.key)?;
    let pem = write(folder, "haproxy.pem", &both)?;
    let servers: String = backends
        .iter()
        .enumerate()
        .map(|(i, backend)| format!("  server s{i} {backend}\n"))
        .collect();
    let text = format!(
        "global
  nbthread 2
defaults
  mode http
  timeout connect 5s
  timeout client 5m
  timeout server 5m
frontend f
  bind 127.0.0.1:{port} ssl crt {} alpn h2,http/1.1
  default_backend b
backend b
  balance roundrobin
{servers}",
        pem.display()
    );
    write(folder, &format!("haproxy-{port}.cfg"), &text)
}

/// Writes the configuration of HAProxy for the bytes of connections, with its default buffers.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn haproxy_tcp(folder: &Path, port: u16, backends: &[SocketAddr]) -> Result<PathBuf> {
    let servers: String = backends
        .iter()
        .enumerate()
        .map(|(i, backend)| format!("  server s{i} {backend}\n"))
        .collect();
    let text = format!(
        "global
  nbthread 2
defaults
  mode tcp
  timeout connect 5s
  timeout client 5m
  timeout server 5m
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  balance roundrobin
{servers}"
    );
    write(folder, &format!("haproxy-{port}.cfg"), &text)
}

/// Writes the configuration of nginx for TCP and UDP.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn nginx_stream(
    folder: &Path,
    port: u16,
    tcp: &[SocketAddr],
    udp: &[SocketAddr],
) -> Result<PathBuf> {
    let servers = |backends: &[SocketAddr]| -> String {
        let servers = backends.iter().map(|backend| format!("server {backend}; "));
        servers.collect()
    };
    let (tcp, udp) = (servers(tcp), servers(udp));
    let folder_name = folder.display();
    let text = format!(
        "daemon off; worker_processes 2; load_module {NGINX_STREAM};
pid {folder_name}/nginx-{port}.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
stream {{
  upstream tcp {{ {tcp} }}
  upstream udp {{ {udp} }}
  server {{ listen 127.0.0.1:{port}; proxy_pass tcp; proxy_timeout 5m; }}
  server {{ listen 127.0.0.1:{port} udp reuseport; proxy_pass udp; proxy_timeout 2m; }}
}}
"
    );
    write(folder, &format!("nginx-{port}.conf"), &text)
}

/// Writes the configuration of Envoy for tunnels of CONNECT over HTTP/2.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn envoy_connect(
    folder: &Path,
    port: u16,
    serving: &Pair,
    backends: &[SocketAddr],
) -> Result<PathBuf> {
    const TYPE: &str = "type.googleapis.com/envoy.extensions";
    let address = |address: SocketAddr| {
        let (ip, port) = (address.ip().to_string(), address.port());
        json!({"socket_address": {"address": ip, "port_value": port}})
    };
    let endpoint = |backend: &SocketAddr| json!({"endpoint": {"address": address(*backend)}});
    let endpoints: Vec<Value> = backends.iter().map(endpoint).collect();
    let tls = json!({
        "@type": format!("{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [{
                "certificate_chain": {"filename": serving.certificate},
                "private_key": {"filename": serving.key},
            }],
        },
    });
    let tunnel = json!({
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": "web",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    });
    let router = format!("{TYPE}.filters.http.router.v3.Router");
    let http = json!({
        "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "tunnels",
        "http2_protocol_options": {"allow_connect": true},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "http_filters": [{"name": "router", "typed_config": {"@type": router}}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [tunnel]}]},
    });
    let config = json!({"static_resources": {
        "listeners": [{
            "address": address(([127, 0, 0, 1], port).into()),
            "filter_chains": [{
                "transport_socket": {"name": "tls", "typed_config": tls},
                "filters": [{"name": "http", "typed_config": http}],
            }],
        }],
        "clusters": [{
            "name": "web",
            "load_assignment": {"cluster_name": "web", "endpoints": [{"lb_endpoints": endpoints}]},
        }],
    }});
    write(folder, &format!("envoy-{port}.json"), &config.to_string())
}

/// Writes a file and returns its path.
pub fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text)?;
    Ok(path)
}
