//! The rewriter of `Location`. Its result is below the prefix, and rewriting it again changes
//! nothing.
#![no_main]

use kube_bastion::model::{Scheme, ServiceAddress};
use kube_bastion::rewrite::LinkRewriter;
use libfuzzer_sys::fuzz_target;

const PREFIX: &str = "/api/v1/namespaces/ns/services/web/proxy";
const CLIENT: &str = "bastion.example:8443";

fuzz_target!(|link: &str| {
    let links = LinkRewriter {
        prefix: PREFIX.into(),
        client_host: Some(CLIENT.into()),
        endpoint: "10.0.0.1:80".parse().expect("an address"),
        scheme: Scheme::Http,
        service: Some(ServiceAddress {
            namespace: "ns".into(),
            name: "web".into(),
            port: 80,
        }),
        cluster_domain: "cluster.local".into(),
    };
    let Ok(Some(rewritten)) = links.rewrite(link) else {
        return;
    };
    let path = match rewritten.split_once("//") {
        // A host in the result is that of the client, as in the link.
        // A path may contain two slashes, too.
        Some((scheme, rest))
            if scheme.is_empty() || (scheme.ends_with(':') && !scheme.starts_with('/')) =>
        {
            let end = rest.find('/').expect("a path follows");
            let host = rest[..end]
                .rsplit('@')
                .next()
                .expect("split gives one at least");
            assert!(host.eq_ignore_ascii_case(CLIENT), "{link} -> {rewritten}");
            &rest[end..]
        }
        _ => &rewritten,
    };
    let decoded: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
    assert!(
        decoded.starts_with(PREFIX.as_bytes()),
        "{link} -> {rewritten}"
    );
    assert_eq!(links.rewrite(&rewritten), Ok(None), "{link} -> {rewritten}");
});
