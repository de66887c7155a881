//! Checks that involve several fields.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::{
    CertificateCallers, Config, KubernetesSource, LoadBalancer, ManifestsSource, SourceKind,
};

/// Error of a configuration whose fields are valid one by one and contradict each other.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// One of a certificate and its key is missing.
    #[error("{missing}: not set, but {given} is {path:?}; set both or neither")]
    Incomplete {
        missing: &'static str,
        given: &'static str,
        path: PathBuf,
    },
    #[error(
        "serving.selfSignedDir: {directory:?} has no effect, because serving.tlsCertFile is set; \
         remove one of them (--self-signed-dir, --tls-cert-file)"
    )]
    UnusedSelfSignedDir { directory: PathBuf },
    /// The service account token would be sent to kubelets that are not verified.
    #[error(
        "targets.kubeletCertificateAuthority: not set, but targets.kubeletServiceAccountToken \
         is true; set the CA of the kubelets' serving certificates \
         (--kubelet-certificate-authority), because the token is only sent to verified kubelets"
    )]
    UnverifiedKubelets,
    #[error(
        "apiServers.servers: empty, but source.type is \"manifests\", which publishes no API \
         servers; list them, with apiServers.certificateAuthority"
    )]
    NoApiServers,
    /// The headers that the API servers read are only known from the Kubernetes API.
    #[error(
        "apiServers.clientCertificates: \"frontProxy\", but source.type is \"manifests\", which does \
         not publish the names of the headers; use \"impersonation\" or \"reject\""
    )]
    UnknownFrontProxyHeaders,
    /// The certificate and its mode belong together.
    #[error(
        "apiServers.frontProxyClientCertificate: {}; set it (and frontProxyClientKey) if, and only \
         if, apiServers.clientCertificates is \"frontProxy\"",
        if *.is_set { "set without effect" } else { "not set" }
    )]
    FrontProxyCertificate { is_set: bool },
    /// No node could be reached.
    #[error(
        "targets.kubeletPreferredAddressTypes: empty, so that no node can be reached; leave the \
         field out for the default order"
    )]
    NoAddressTypes,
    #[error(
        "loadBalancer.{field}: set, but loadBalancer.class is empty, so that no Service is served; \
         set the class (--load-balancer-class), or leave the field out"
    )]
    UnusedLoadBalancer { field: &'static str },
    #[error(
        "loadBalancer.class: set, but source.type is \"manifests\", which has no status of Services; \
         use source.type \"kubernetes\""
    )]
    LoadBalancerWithoutApi,
    #[error(
        "loadBalancer.addresses: {}; set either addresses (--load-balancer-address) or addressesFrom",
        if *.is_set { "set beside loadBalancer.addressesFrom" } else { "empty, but loadBalancer.class is set" }
    )]
    PublishedAddresses { is_set: bool },
    #[error(
        "loadBalancer.bindAddresses: {}; list addresses of this machine, each once, or the \
         unspecified address of a family alone (--load-balancer-bind-address)",
        match .address {
            Some(address) => format!("{address} overlaps with another address"),
            None => "empty".to_owned(),
        }
    )]
    BindAddresses { address: Option<IpAddr> },
    #[error(
        "source.manifests.directory: not set, but source.type is \"manifests\"; set a directory \
         of YAML files (--manifests-dir), or use source.type \"kubernetes\""
    )]
    NoDirectory,
    #[error(
        "source.manifests.directory: not set, but source.manifests.tokenAuthFile \
         (--token-auth-file) requires it; set a directory of YAML files (--manifests-dir)"
    )]
    TokensWithoutDirectory,
    #[error(
        "source.manifests: set, but source.type is \"kubernetes\"; set source.type to \
         \"manifests\", or leave source.manifests out"
    )]
    UnusedManifests,
    #[error(
        "source.kubernetes: set, but source.type is \"manifests\"; set source.type to \
         \"kubernetes\", or leave source.kubernetes out"
    )]
    UnusedKubernetes,
    /// Two ports have the same address, so that the second one could not be bound.
    #[error("{second}: {address} is already the address of {first}; use another port")]
    SameAddress {
        first: &'static str,
        second: &'static str,
        address: SocketAddr,
    },
}

pub(super) fn validate(config: &Config) -> Result<(), Conflict> {
    let (serving, targets) = (&config.serving, &config.targets);
    require_both(
        ("serving.tlsCertFile", serving.tls_cert_file.as_deref()),
        (
            "serving.tlsPrivateKeyFile",
            serving.tls_private_key_file.as_deref(),
        ),
    )?;
    if let (Some(directory), Some(_)) = (&serving.self_signed_dir, &serving.tls_cert_file) {
        let directory = directory.clone();
        return Err(Conflict::UnusedSelfSignedDir { directory });
    }
    require_both(
        (
            "targets.kubeletClientCertificate",
            targets.kubelet_client_certificate.as_deref(),
        ),
        (
            "targets.kubeletClientKey",
            targets.kubelet_client_key.as_deref(),
        ),
    )?;
    let api_servers = &config.api_servers;
    require_both(
        (
            "apiServers.frontProxyClientCertificate",
            api_servers.front_proxy_client_certificate.as_deref(),
        ),
        (
            "apiServers.frontProxyClientKey",
            api_servers.front_proxy_client_key.as_deref(),
        ),
    )?;
    if api_servers.enabled
        && api_servers.servers.is_empty()
        && config.source.kind == SourceKind::Manifests
    {
        return Err(Conflict::NoApiServers);
    }
    let by_front_proxy = api_servers.client_certificates == CertificateCallers::FrontProxy;
    if by_front_proxy && config.source.kind == SourceKind::Manifests {
        return Err(Conflict::UnknownFrontProxyHeaders);
    }
    let is_set = api_servers.front_proxy_client_certificate.is_some();
    if is_set != by_front_proxy {
        return Err(Conflict::FrontProxyCertificate { is_set });
    }
    load_balancer(&config.load_balancer, config.source.kind)?;
    if targets.kubelet_service_account_token && targets.kubelet_certificate_authority.is_none() {
        return Err(Conflict::UnverifiedKubelets);
    }
    if targets.kubelet_preferred_address_types.is_empty() {
        return Err(Conflict::NoAddressTypes);
    }
    require_different_addresses(config)?;
    let (kubernetes, manifests) = (&config.source.kubernetes, &config.source.manifests);
    match config.source.kind {
        SourceKind::Manifests
            if manifests.directory.is_none() && manifests.token_auth_file.is_some() =>
        {
            Err(Conflict::TokensWithoutDirectory)
        }
        SourceKind::Manifests if manifests.directory.is_none() => Err(Conflict::NoDirectory),
        SourceKind::Manifests if *kubernetes != KubernetesSource::default() => {
            Err(Conflict::UnusedKubernetes)
        }
        SourceKind::Kubernetes if *manifests != ManifestsSource::default() => {
            Err(Conflict::UnusedManifests)
        }
        SourceKind::Kubernetes | SourceKind::Manifests => Ok(()),
    }
}

fn load_balancer(section: &LoadBalancer, source: SourceKind) -> Result<(), Conflict> {
    if !section.is_enabled() {
        let default = LoadBalancer::default();
        let set = [
            ("addresses", section.addresses != default.addresses),
            ("addressesFrom", section.addresses_from.is_some()),
            (
                "bindAddresses",
                section.bind_addresses != default.bind_addresses,
            ),
            ("namespaceSelector", section.namespace_selector.is_some()),
            (
                "allowedPorts",
                section.allowed_ports != default.allowed_ports,
            ),
            ("finalizer", section.finalizer),
            ("lease", section.lease != default.lease),
        ];
        let unused = set.into_iter().find(|(_, is_set)| *is_set);
        return unused.map_or(Ok(()), |(field, _)| {
            Err(Conflict::UnusedLoadBalancer { field })
        });
    }
    if source != SourceKind::Kubernetes {
        return Err(Conflict::LoadBalancerWithoutApi);
    }
    let is_set = !section.addresses.is_empty();
    if is_set == section.addresses_from.is_some() {
        return Err(Conflict::PublishedAddresses { is_set });
    }
    let bind = &section.bind_addresses;
    let overlapping = bind.iter().enumerate().find(|(index, address)| {
        bind[..*index].iter().any(|other| {
            other.is_ipv4() == address.is_ipv4()
                && (other == *address || other.is_unspecified() || address.is_unspecified())
        })
    });
    let address = overlapping.map(|(_, address)| *address);
    if address.is_some() || bind.is_empty() {
        return Err(Conflict::BindAddresses { address });
    }
    Ok(())
}

fn require_different_addresses(config: &Config) -> Result<(), Conflict> {
    const SECURE: &str = "serving.secureListenAddress";
    const ADMIN: &str = "admin.listenAddress";
    const INSECURE: &str = "serving.insecureListenAddress";
    let (secure, admin) = (
        config.serving.secure_listen_address,
        config.admin.listen_address,
    );
    let insecure = config.serving.insecure_listen_address;
    for (first, first_address, second, second_address) in [
        (SECURE, secure, ADMIN, Some(admin)),
        (SECURE, secure, INSECURE, insecure),
        (ADMIN, admin, INSECURE, insecure),
    ] {
        // Port 0 selects a free port for each.
        if second_address == Some(first_address) && first_address.port() != 0 {
            return Err(Conflict::SameAddress {
                first,
                second,
                address: first_address,
            });
        }
    }
    Ok(())
}

fn require_both(
    (first, first_path): (&'static str, Option<&Path>),
    (second, second_path): (&'static str, Option<&Path>),
) -> Result<(), Conflict> {
    let (missing, given, path) = match (first_path, second_path) {
        (Some(path), None) => (second, first, path),
        (None, Some(path)) => (first, second, path),
        (Some(_), Some(_)) | (None, None) => return Ok(()),
    };
    Err(Conflict::Incomplete {
        missing,
        given,
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::new();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn accepts_defaults() {
        assert!(Config::new().validate().is_ok());
    }

    #[test]
    fn requires_consistent_load_balancer() {
        type Change = fn(&mut LoadBalancer);
        let enable: Change = |section| {
            section.class = "kube-bastion.dev/bastion".into();
            section.addresses = vec![super::super::PublishedAddress::Hostname("lb.test".into())];
        };
        let mut valid = Config::new();
        enable(&mut valid.load_balancer);
        assert!(valid.validate().is_ok());
        let changes: [(Change, &str); 6] = [
            (
                |section| section.class.clear(),
                "loadBalancer.addresses: set, but",
            ),
            (|section| section.addresses.clear(), "addresses: empty"),
            (
                |section| section.addresses_from = Some("a/b".into()),
                "set beside loadBalancer.addressesFrom",
            ),
            (
                |section| section.bind_addresses.clear(),
                "bindAddresses: empty",
            ),
            (
                |section| section.bind_addresses.push("192.0.2.1".parse().unwrap()),
                "192.0.2.1 overlaps",
            ),
            (
                |section| section.bind_addresses = vec!["192.0.2.1".parse().unwrap(); 2],
                "192.0.2.1 overlaps",
            ),
        ];
        for (change, part) in changes {
            let error = error(|config| {
                enable(&mut config.load_balancer);
                change(&mut config.load_balancer);
            });
            assert!(error.contains(part), "{error}");
        }
        let error = error(|config| {
            enable(&mut config.load_balancer);
            config.source.kind = SourceKind::Manifests;
        });
        assert!(
            error.starts_with("loadBalancer.class: set, but source.type"),
            "{error}"
        );
    }

    #[test]
    fn requires_certificate_and_key_together() {
        let error_of_serving =
            error(|config| config.serving.tls_cert_file = Some("tls.crt".into()));
        assert!(
            error_of_serving.starts_with("serving.tlsPrivateKeyFile: not set")
                && error_of_serving.contains("tls.crt"),
            "{error_of_serving}"
        );
        let error = error(|config| config.targets.kubelet_client_key = Some("tls.key".into()));
        assert!(
            error.starts_with("targets.kubeletClientCertificate: not set"),
            "{error}"
        );
    }

    #[test]
    fn rejects_directory_for_self_signed_certificate_beside_certificate() {
        let error = error(|config| {
            config.serving.tls_cert_file = Some("tls.crt".into());
            config.serving.tls_private_key_file = Some("tls.key".into());
            config.serving.self_signed_dir = Some("tls".into());
        });
        assert!(
            error.starts_with("serving.selfSignedDir: \"tls\" has no effect"),
            "{error}"
        );
    }

    #[test]
    fn requires_kubelet_ca_for_service_account_token() {
        let mut config = Config::new();
        config.targets.kubelet_service_account_token = true;
        let error = config.validate().unwrap_err().to_string();
        assert!(
            error.starts_with("targets.kubeletCertificateAuthority: not set"),
            "{error}"
        );
        config.targets.kubelet_certificate_authority = Some("ca.crt".into());
        assert!(config.validate().is_ok());
    }

    #[test]
    fn rejects_empty_list_of_address_types() {
        let error = error(|config| config.targets.kubelet_preferred_address_types.clear());
        assert!(
            error.starts_with("targets.kubeletPreferredAddressTypes: empty"),
            "{error}"
        );
    }

    #[test]
    fn rejects_two_ports_with_the_same_address() {
        let address = "127.0.0.1:1".parse().unwrap();
        let error = error(|config| {
            config.serving.secure_listen_address = address;
            config.admin.listen_address = address;
        });
        assert!(
            error.starts_with("admin.listenAddress: 127.0.0.1:1 is already the address of"),
            "{error}"
        );
        let mut config = Config::new();
        config.serving.secure_listen_address = "127.0.0.1:0".parse().unwrap();
        config.admin.listen_address = "127.0.0.1:0".parse().unwrap();
        assert!(config.validate().is_ok());
    }

    #[test]
    fn rejects_settings_of_another_source() {
        let error_of_directory = error(|config| config.source.kind = SourceKind::Manifests);
        assert!(
            error_of_directory.starts_with("source.manifests.directory: not set"),
            "{error_of_directory}"
        );
        let error_of_manifests =
            error(|config| config.source.manifests.directory = Some("m".into()));
        assert!(
            error_of_manifests.starts_with("source.manifests: set"),
            "{error_of_manifests}"
        );
        let error_of_kubernetes = error(|config| {
            config.source.kind = SourceKind::Manifests;
            config.source.manifests.directory = Some("m".into());
            config.source.kubernetes.kubeconfig = Some("k".into());
        });
        assert!(
            error_of_kubernetes.starts_with("source.kubernetes: set"),
            "{error_of_kubernetes}"
        );
        let mut config = Config::new();
        config.source.kubernetes.context = Some("c".into());
        assert!(config.validate().is_ok(), "of the default kubeconfig");
    }
}
