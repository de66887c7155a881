//! Settings that have a flag and an environment variable. The file of `--config` has more.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::source::{SourceFlags, path_parser, set_if_some};
use crate::config::{
    CertificateCallers, Config, LogFormat, PublishedAddress, TlsVersion, parse_address, parse_bool,
    parse_class, parse_duration, parse_ip, parse_log_level, parse_published_address, parse_workers,
};

/// Flags of `serve` and `check`. They are named as in kube-apiserver and kube-rbac-proxy; the
/// environment variables are named after the flags.
///
/// No flag has a default of its own, because it would override the file.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Settings {
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_CONFIG",
        help = "Configuration file (kind: BastionConfiguration) [default: none]"
    )]
    #[arg(value_parser = path_parser())]
    config: Option<PathBuf>,

    #[command(flatten)]
    source: SourceFlags,

    /// Address of the HTTPS port, IP:port [default: 0.0.0.0:8443]
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "KUBE_BASTION_SECURE_LISTEN_ADDRESS",
        help_heading = "Serving"
    )]
    #[arg(value_parser = parse_address)]
    secure_listen_address: Option<SocketAddr>,

    /// Address of a plain HTTP port, IP:port; tokens cross it in clear text [default: none]
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "KUBE_BASTION_INSECURE_LISTEN_ADDRESS",
        help_heading = "Serving"
    )]
    #[arg(value_parser = parse_address)]
    insecure_listen_address: Option<SocketAddr>,

    /// Address of /livez, /readyz and /metrics, IP:port [default: 0.0.0.0:8080]
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "KUBE_BASTION_ADMIN_LISTEN_ADDRESS",
        help_heading = "Serving"
    )]
    #[arg(value_parser = parse_address)]
    admin_listen_address: Option<SocketAddr>,

    /// PEM file with the serving certificate [default: a self-signed certificate]
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_TLS_CERT_FILE",
        help_heading = "Serving"
    )]
    #[arg(value_parser = path_parser())]
    tls_cert_file: Option<PathBuf>,

    /// PEM file with the private key of the serving certificate
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_TLS_PRIVATE_KEY_FILE",
        help_heading = "Serving"
    )]
    #[arg(value_parser = path_parser())]
    tls_private_key_file: Option<PathBuf>,

    /// Directory for the self-signed certificate: ca.crt for clients (curl --cacert), tls.crt and
    /// tls.key, used again at the next start [default: none]
    #[arg(
        long,
        value_name = "DIR",
        env = "KUBE_BASTION_SELF_SIGNED_DIR",
        help_heading = "Serving"
    )]
    #[arg(value_parser = path_parser())]
    self_signed_dir: Option<PathBuf>,

    #[arg(
        long,
        value_name = "VERSION",
        env = "KUBE_BASTION_TLS_MIN_VERSION",
        help_heading = "Serving",
        help = "Minimum TLS version [default: VersionTLS12]"
    )]
    tls_min_version: Option<TlsVersion>,

    /// Number of worker threads; 0 starts one per core of the CPU quota [default: 0]
    #[arg(
        long,
        value_name = "COUNT",
        env = "KUBE_BASTION_WORKERS",
        help_heading = "Serving"
    )]
    // The parser rejects `-1` with the accepted range.
    #[arg(value_parser = parse_workers, allow_hyphen_values = true)]
    workers: Option<usize>,

    /// Time for open requests and tunnels to finish after SIGTERM [default: 30s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "KUBE_BASTION_DRAIN_TIMEOUT",
        help_heading = "Serving"
    )]
    #[arg(value_parser = parse_duration, allow_hyphen_values = true)]
    drain_timeout: Option<Duration>,

    /// PEM file with the CAs of client certificates [default: the cluster's client CA]
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_CLIENT_CA_FILE",
        help_heading = "Authentication and authorization"
    )]
    #[arg(value_parser = path_parser())]
    client_ca_file: Option<PathBuf>,

    /// Accept requests without credentials as system:anonymous [default: false]
    #[arg(
        long,
        value_name = "BOOL",
        env = "KUBE_BASTION_ANONYMOUS_AUTH",
        help_heading = "Authentication and authorization"
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    anonymous_auth: Option<bool>,

    /// Time for which valid tokens are cached [default: 10s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "KUBE_BASTION_AUTHENTICATION_TOKEN_WEBHOOK_CACHE_TTL",
        help_heading = "Authentication and authorization"
    )]
    #[arg(value_parser = parse_duration, allow_hyphen_values = true)]
    authentication_token_webhook_cache_ttl: Option<Duration>,

    /// Time for which 'allowed' authorization results are cached [default: 10s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "KUBE_BASTION_AUTHORIZATION_WEBHOOK_CACHE_AUTHORIZED_TTL",
        help_heading = "Authentication and authorization"
    )]
    #[arg(value_parser = parse_duration, allow_hyphen_values = true)]
    authorization_webhook_cache_authorized_ttl: Option<Duration>,

    /// Time for which 'denied' authorization results are cached [default: 10s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "KUBE_BASTION_AUTHORIZATION_WEBHOOK_CACHE_UNAUTHORIZED_TTL",
        help_heading = "Authentication and authorization"
    )]
    #[arg(value_parser = parse_duration, allow_hyphen_values = true)]
    authorization_webhook_cache_unauthorized_ttl: Option<Duration>,

    /// PEM file with the CAs of kubelet serving certificates [default: kubelets are not verified]
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_KUBELET_CERTIFICATE_AUTHORITY",
        help_heading = "Kubelets"
    )]
    #[arg(value_parser = path_parser())]
    kubelet_certificate_authority: Option<PathBuf>,

    /// PEM file with the client certificate for kubelets
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_KUBELET_CLIENT_CERTIFICATE",
        help_heading = "Kubelets"
    )]
    #[arg(value_parser = path_parser())]
    kubelet_client_certificate: Option<PathBuf>,

    /// PEM file with the private key of the client certificate for kubelets
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_BASTION_KUBELET_CLIENT_KEY",
        help_heading = "Kubelets"
    )]
    #[arg(value_parser = path_parser())]
    kubelet_client_key: Option<PathBuf>,

    /// Send the service account token to verified kubelets; a compromised node can collect it
    /// [default: false]
    #[arg(
        long,
        value_name = "BOOL",
        env = "KUBE_BASTION_KUBELET_SERVICE_ACCOUNT_TOKEN",
        help_heading = "Kubelets"
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    kubelet_service_account_token: Option<bool>,

    /// Pass all other paths to the API servers, so that kubectl works with the bastion as its server
    /// [default: false]
    #[arg(
        long,
        value_name = "BOOL",
        env = "KUBE_BASTION_API_SERVERS",
        help_heading = "API servers"
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    api_servers: Option<bool>,

    /// Means by which API servers get to know callers with client certificates [default: reject]
    #[arg(
        long,
        value_name = "MODE",
        env = "KUBE_BASTION_API_SERVER_CLIENT_CERTIFICATES",
        help_heading = "API servers"
    )]
    api_server_client_certificates: Option<CertificateCallers>,

    #[arg(
        long,
        value_name = "CLASS",
        env = "KUBE_BASTION_LOAD_BALANCER_CLASS",
        help_heading = "Load balancer",
        help = "Class of the Services of type LoadBalancer that are served [default: none]"
    )]
    #[arg(value_parser = parse_class)]
    load_balancer_class: Option<String>,

    /// Address that clients of these Services use, IP or DNS name; repeat it, or separate several by
    /// commas
    #[arg(
        long = "load-balancer-address",
        value_name = "HOST",
        env = "KUBE_BASTION_LOAD_BALANCER_ADDRESS",
        help_heading = "Load balancer"
    )]
    #[arg(value_parser = parse_published_address, value_delimiter = ',')]
    load_balancer_addresses: Vec<PublishedAddress>,

    #[arg(
        long = "load-balancer-bind-address",
        value_name = "IP",
        env = "KUBE_BASTION_LOAD_BALANCER_BIND_ADDRESS",
        help_heading = "Load balancer",
        help = "Address of this machine for their listeners; repeat it, or separate several by \
                commas [default: 0.0.0.0,::]"
    )]
    #[arg(value_parser = parse_ip, value_delimiter = ',')]
    load_balancer_bind_addresses: Vec<IpAddr>,

    /// Name of the node of this replica [default: none]
    #[arg(
        long,
        value_name = "NAME",
        env = "KUBE_BASTION_NODE_NAME",
        help_heading = "Load balancer"
    )]
    node_name: Option<String>,

    /// Level of events: off, error, warn, info, debug, trace, or directives [default: info]
    #[arg(
        long,
        value_name = "LEVEL",
        env = "KUBE_BASTION_LOG_LEVEL",
        help_heading = "Logs"
    )]
    #[arg(value_parser = parse_log_level)]
    log_level: Option<String>,

    /// Format of events and of the access log [default: text]
    #[arg(
        long,
        value_name = "FORMAT",
        env = "KUBE_BASTION_LOGGING_FORMAT",
        help_heading = "Logs"
    )]
    logging_format: Option<LogFormat>,

    /// Write one line per request to standard output [default: true]
    #[arg(
        long,
        value_name = "BOOL",
        env = "KUBE_BASTION_ACCESS_LOG",
        help_heading = "Logs"
    )]
    #[arg(num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    access_log: Option<bool>,
}

impl Settings {
    /// Returns the effective configuration: the file, or the defaults, with environment variables
    /// and flags applied, validated.
    ///
    /// # Errors
    /// A file that cannot be read, an invalid value, or fields that contradict each other.
    pub fn into_config(self) -> Result<Config> {
        let mut config = self
            .config
            .as_deref()
            .map_or_else(|| Ok(Config::new()), Config::load)?;
        self.apply(&mut config);
        config.validate()?;
        Ok(config)
    }

    fn apply(self, config: &mut Config) {
        let Config {
            serving,
            admin,
            source,
            authentication,
            authorization,
            targets,
            api_servers,
            load_balancer,
            log,
            drain,
            ..
        } = config;
        self.source.apply(source);

        set_if_some(
            &mut serving.secure_listen_address,
            self.secure_listen_address,
        );
        set_if_some(
            &mut serving.insecure_listen_address,
            self.insecure_listen_address.map(Some),
        );
        set_if_some(&mut admin.listen_address, self.admin_listen_address);
        set_if_some(&mut serving.tls_cert_file, self.tls_cert_file.map(Some));
        set_if_some(
            &mut serving.tls_private_key_file,
            self.tls_private_key_file.map(Some),
        );
        set_if_some(&mut serving.self_signed_dir, self.self_signed_dir.map(Some));
        set_if_some(&mut serving.tls_min_version, self.tls_min_version);
        set_if_some(&mut serving.workers, self.workers);
        set_if_some(&mut drain.timeout, self.drain_timeout);

        set_if_some(&mut serving.client_ca_file, self.client_ca_file.map(Some));
        set_if_some(&mut authentication.anonymous, self.anonymous_auth);
        set_if_some(
            &mut authentication.token_review.cache_ttl,
            self.authentication_token_webhook_cache_ttl,
        );
        set_if_some(
            &mut authorization.allowed_cache_ttl,
            self.authorization_webhook_cache_authorized_ttl,
        );
        set_if_some(
            &mut authorization.denied_cache_ttl,
            self.authorization_webhook_cache_unauthorized_ttl,
        );

        set_if_some(
            &mut targets.kubelet_certificate_authority,
            self.kubelet_certificate_authority.map(Some),
        );
        set_if_some(
            &mut targets.kubelet_client_certificate,
            self.kubelet_client_certificate.map(Some),
        );
        set_if_some(
            &mut targets.kubelet_client_key,
            self.kubelet_client_key.map(Some),
        );
        set_if_some(
            &mut targets.kubelet_service_account_token,
            self.kubelet_service_account_token,
        );

        set_if_some(&mut api_servers.enabled, self.api_servers);
        set_if_some(
            &mut api_servers.client_certificates,
            self.api_server_client_certificates,
        );

        set_if_some(&mut load_balancer.class, self.load_balancer_class);
        let addresses = self.load_balancer_addresses;
        set_if_some(
            &mut load_balancer.addresses,
            (!addresses.is_empty()).then_some(addresses),
        );
        let bind_addresses = self.load_balancer_bind_addresses;
        set_if_some(
            &mut load_balancer.bind_addresses,
            (!bind_addresses.is_empty()).then_some(bind_addresses),
        );
        set_if_some(&mut load_balancer.node_name, self.node_name.map(Some));

        set_if_some(&mut log.level, self.log_level);
        set_if_some(&mut log.format, self.logging_format);
        set_if_some(&mut log.access, self.access_log);
    }
}
