//! Proxy auto-configuration: the names of a cluster through the local proxy, all others directly.

use std::net::SocketAddr;

/// Returns the text of a PAC file. `domain` is the DNS domain of the cluster.
pub fn text(proxy: SocketAddr, domain: &str) -> String {
    let domains = [
        ".svc".to_owned(),
        format!(".svc.{domain}"),
        ".pod".to_owned(),
    ];
    let conditions = domains.map(|domain| format!("dnsDomainIs(host, \"{domain}\")"));
    format!(
        "function FindProxyForURL(url, host) {{
  host = host.toLowerCase().replace(/\\.$/, \"\");
  if ({}) {{
    return \"SOCKS5 {proxy}; PROXY {proxy}\";
  }}
  return \"DIRECT\";
}}
",
        conditions.join(" || ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_cluster_use_the_proxy() {
        let text = text(SocketAddr::from(([127, 0, 0, 1], 1080)), "cluster.example");
        assert_eq!(
            text,
            r#"function FindProxyForURL(url, host) {
  host = host.toLowerCase().replace(/\.$/, "");
  if (dnsDomainIs(host, ".svc") || dnsDomainIs(host, ".svc.cluster.example") || dnsDomainIs(host, ".pod")) {
    return "SOCKS5 127.0.0.1:1080; PROXY 127.0.0.1:1080";
  }
  return "DIRECT";
}
"#
        );
    }
}
