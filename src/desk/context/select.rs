//! Selection of context, cluster and user, and the fields that flags override.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ContextError;
use crate::desk::ConnectionFlags;
use crate::desk::connect::ProxyEnvironment;
use crate::kubeconfig::{
    self, ClusterEntry, ContextEntry, Fault, NamedEntry, Origin, Section, Sections, UserEntry,
};

/// Extension of a cluster with the configuration of a credential plugin.
const EXEC_EXTENSION: &str = "client.authentication.k8s.io/exec";
/// Directory of a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Environment of the process, as far as kubectl reads it.
#[derive(Debug, Default)]
pub(super) struct Environment {
    pub files: kubeconfig::Environment,
    /// `$KUBERNETES_MASTER`: server without a kubeconfig.
    pub master: Option<String>,
    /// `$KUBERNETES_SERVICE_HOST` and `$KUBERNETES_SERVICE_PORT`.
    pub service: Option<(String, String)>,
    /// Directory of the service account.
    pub service_account: PathBuf,
    /// `$POD_NAMESPACE`
    pub pod_namespace: Option<String>,
    pub proxies: ProxyEnvironment,
}

impl Environment {
    pub fn of_process() -> Self {
        let text = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            files: kubeconfig::Environment::of_process(),
            master: text("KUBERNETES_MASTER"),
            service: text("KUBERNETES_SERVICE_HOST").zip(text("KUBERNETES_SERVICE_PORT")),
            service_account: SERVICE_ACCOUNT.into(),
            pod_namespace: text("POD_NAMESPACE"),
            proxies: ProxyEnvironment::of_process(),
        }
    }
}

/// Cluster, user and namespace, with the overrides of the flags.
#[derive(Debug, Default)]
pub(super) struct Selected {
    pub name: String,
    pub namespace: String,
    pub cluster_name: String,
    pub cluster: ClusterEntry,
    pub user_name: String,
    pub user: UserEntry,
    /// File that defines the user.
    pub user_file: Option<PathBuf>,
    /// Configuration of the cluster for a credential plugin.
    pub exec_config: Option<Value>,
}

impl Selected {
    /// Returns the URL of the server, the first one of several.
    pub fn server(&self) -> &str {
        self.cluster.server.as_deref().unwrap_or_default()
    }
}

/// Selects what the flags and the kubeconfig name.
pub(super) fn select(
    flags: &ConnectionFlags,
    environment: &Environment,
) -> Result<Selected, ContextError> {
    let sections = read(flags, environment)?;
    let context = find_context(flags, &sections)?;
    let mut selected = Selected::default();
    let mut entry = ContextEntry::default();
    if let Some(context) = context {
        selected.name.clone_from(&context.name);
        entry = context
            .to_context()
            .map_err(|fault| fault_of("context", context, &sections, fault))?;
    }
    select_cluster(flags, &sections, &entry, &mut selected)?;
    select_user(flags, &sections, &entry, &mut selected)?;
    override_cluster(flags, &mut selected.cluster);
    override_user(flags, &mut selected.user);
    if selected.cluster.server.is_none() && selected.name.is_empty() {
        selected.cluster.server.clone_from(&environment.master);
    }
    if selected.cluster.server.is_none() {
        without_server(flags, &sections, environment, &mut selected)?;
    }
    let namespace = non_empty(flags.namespace.as_ref()).or(non_empty(Some(&entry.namespace)));
    selected.namespace = match namespace {
        Some(namespace) => namespace,
        None if in_cluster(environment) => pod_namespace(environment),
        None => "default".into(),
    };
    Ok(selected)
}

/// Reads the file of `--kubeconfig`, else those of `$KUBECONFIG`, else `~/.kube/config`. As with
/// kubectl, only the first has to exist.
fn read(flags: &ConnectionFlags, environment: &Environment) -> Result<Sections, ContextError> {
    let (paths, origin) = match non_empty_path(flags.kubeconfig.as_ref()) {
        Some(path) => (vec![path.to_owned()], Origin::Flag),
        None => environment.files.default_files(),
    };
    if origin != Origin::Flag && !paths.iter().any(|path| path.exists()) {
        return Ok(Sections::default());
    }
    Ok(Sections::read(paths, origin)?)
}

fn find_context<'a>(
    flags: &ConnectionFlags,
    sections: &'a Sections,
) -> Result<Option<&'a NamedEntry>, ContextError> {
    let requested = non_empty(flags.context.as_ref());
    let Some(name) = requested.as_ref().or(sections.current_context.as_ref()) else {
        return Ok(None);
    };
    let origin = if requested.is_some() {
        "--context"
    } else {
        "current-context; choose another with --context"
    };
    find(&sections.contexts, "context", name, origin, sections).map(Some)
}

fn select_cluster(
    flags: &ConnectionFlags,
    sections: &Sections,
    context: &ContextEntry,
    selected: &mut Selected,
) -> Result<(), ContextError> {
    let requested = non_empty(flags.cluster.as_ref());
    let found = match &requested {
        Some(name) => find(&sections.clusters, "cluster", name, "--cluster", sections)?,
        None if context.cluster.is_empty() => return Ok(()),
        // A flag replaces a cluster that is missing.
        None if flagged_server(flags).is_some()
            && sections.clusters.find(&context.cluster).is_none() =>
        {
            return Ok(());
        }
        None => find(
            &sections.clusters,
            "cluster",
            &context.cluster,
            "of the context; choose another with --cluster or --server",
            sections,
        )?,
    };
    selected.cluster_name.clone_from(&found.name);
    selected.cluster = found
        .to_cluster()
        .map_err(|fault| fault_of("cluster", found, sections, fault))?;
    selected.exec_config = found.extension(EXEC_EXTENSION).cloned();
    Ok(())
}

fn select_user(
    flags: &ConnectionFlags,
    sections: &Sections,
    context: &ContextEntry,
    selected: &mut Selected,
) -> Result<(), ContextError> {
    let requested = non_empty(flags.user.as_ref());
    let found = match &requested {
        Some(name) => find(&sections.users, "user", name, "--user", sections)?,
        None if context.user.is_empty() => return Ok(()),
        None => {
            let Some(user) = sections.users.find(&context.user) else {
                // As with kubectl, which sends requests without credentials then.
                crate::desk::warn(format_args!(
                    "the user {:?} of the context {:?} is not in the kubeconfig; using no \
                     credentials",
                    context.user, selected.name
                ));
                return Ok(());
            };
            user
        }
    };
    selected.user_name.clone_from(&found.name);
    selected.user_file = Some(found.file.clone());
    selected.user = found
        .to_user()
        .map_err(|fault| fault_of("user", found, sections, fault))?;
    Ok(())
}

fn override_cluster(flags: &ConnectionFlags, cluster: &mut ClusterEntry) {
    let server = flagged_server(flags);
    let name = non_empty(flags.tls_server_name.as_ref());
    // The name of the kubeconfig belongs to its server.
    if server.is_some() || name.is_some() {
        cluster.tls_server_name = name;
    }
    if let Some(server) = server {
        cluster.server = Some(server.clone());
    }
    let authority = non_empty_path(flags.certificate_authority.as_ref());
    if flags.insecure_skip_tls_verify || authority.is_some() {
        cluster.insecure_skip_tls_verify = flags.insecure_skip_tls_verify;
        cluster.certificate_authority = authority.map(Path::to_owned);
        cluster.certificate_authority_data = None;
    }
    cluster.disable_compression |= flags.disable_compression;
}

fn override_user(flags: &ConnectionFlags, user: &mut UserEntry) {
    let token = flags.token.as_ref();
    if let Some(token) = token.filter(|token| !token.expose().is_empty()) {
        user.token = Some(token.clone());
        user.token_file = None;
    }
    if let Some(certificate) = non_empty_path(flags.client_certificate.as_ref()) {
        user.client_certificate = Some(certificate.to_owned());
        user.client_certificate_data = None;
    }
    if let Some(key) = non_empty_path(flags.client_key.as_ref()) {
        user.client_key = Some(key.to_owned());
        user.client_key_data = None;
    }
    if let Some(name) = non_empty(flags.impersonate.as_ref()) {
        user.impersonate = Some(name);
    }
    if let Some(uid) = non_empty(flags.impersonate_uid.as_ref()) {
        user.impersonate_uid = Some(uid);
    }
    if !flags.impersonate_groups.is_empty() {
        user.impersonate_groups
            .clone_from(&flags.impersonate_groups);
    }
    // The values of a key replace those of the kubeconfig.
    for (key, _) in &flags.impersonate_extra {
        user.impersonate_extra.remove(key);
    }
    for (key, value) in &flags.impersonate_extra {
        let values = user.impersonate_extra.entry(key.clone()).or_default();
        values.push(value.clone());
    }
}

/// Uses the service account of the pod, the last resort.
fn without_server(
    flags: &ConnectionFlags,
    sections: &Sections,
    environment: &Environment,
    selected: &mut Selected,
) -> Result<(), ContextError> {
    let files = || sections.files.clone();
    if !selected.cluster_name.is_empty() {
        return Err(ContextError::Entry {
            kind: "cluster",
            name: selected.cluster_name.clone(),
            files: files(),
            fault: Box::new(Fault::NoServer),
        });
    }
    if !selected.name.is_empty() {
        return Err(ContextError::ContextWithoutCluster {
            context: selected.name.clone(),
            files: files(),
            names: sections.clusters.names(),
        });
    }
    let Some((host, port)) = environment
        .service
        .as_ref()
        .filter(|_| in_cluster(environment))
    else {
        return Err(if sections.files.is_empty() {
            ContextError::NoCluster
        } else {
            ContextError::NoCurrentContext {
                files: files(),
                names: sections.contexts.names(),
            }
        });
    };
    let (open, close) = if host.contains(':') {
        ("[", "]")
    } else {
        ("", "")
    };
    selected.cluster.server = Some(format!("https://{open}{host}{close}:{port}"));
    let file = |name| environment.service_account.join(name);
    if selected.cluster.certificate_authority.is_none() && !flags.insecure_skip_tls_verify {
        selected.cluster.certificate_authority = Some(file("ca.crt"));
    }
    if selected.user.token.is_none() {
        selected.user.token_file = Some(file("token"));
    }
    Ok(())
}

/// Returns true in a pod with a service account.
fn in_cluster(environment: &Environment) -> bool {
    environment.service.is_some() && environment.service_account.join("token").is_file()
}

fn pod_namespace(environment: &Environment) -> String {
    let file = environment.service_account.join("namespace");
    let of_file = || std::fs::read_to_string(file).ok();
    let namespace = environment.pod_namespace.clone().or_else(of_file);
    let namespace = namespace.map(|name| name.trim().to_owned());
    namespace
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "default".into())
}

fn find<'a>(
    section: &'a Section,
    kind: &'static str,
    name: &str,
    origin: &'static str,
    sections: &Sections,
) -> Result<&'a NamedEntry, ContextError> {
    section.find(name).ok_or_else(|| ContextError::NotFound {
        kind,
        name: name.to_owned(),
        origin,
        files: sections.files.clone(),
        names: section.names(),
    })
}

fn fault_of(
    kind: &'static str,
    entry: &NamedEntry,
    sections: &Sections,
    fault: Fault,
) -> ContextError {
    ContextError::Entry {
        kind,
        name: entry.name.clone(),
        files: sections.files.clone(),
        fault: Box::new(fault),
    }
}

/// Returns the first server of the flags.
fn flagged_server(flags: &ConnectionFlags) -> Option<&String> {
    flags.servers.iter().find(|url| !url.is_empty())
}

fn non_empty(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

fn non_empty_path(path: Option<&PathBuf>) -> Option<&Path> {
    path.filter(|path| !path.as_os_str().is_empty())
        .map(PathBuf::as_path)
}
