//! Bastions with the manifests source and indexes of different sizes, on the same backends.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::conf;
use crate::peer::{Peer, free_port};
use crate::process::Process;
use crate::stage::Stage;
use crate::support::bastion::Bastion;
use crate::workloads::{Growth, MANY_ENDPOINTS, MANY_SERVICES, SMALL_INDEX};

/// Network for benchmarks (RFC 2544), all of whose addresses are the namespace's, for the many
/// endpoints of one service.
pub const GROWN_NETWORK: &str = "198.18.0.0/19";
/// Port of the backends on all of these addresses.
pub const GROWN_PORT: u16 = 8081;
const SERVICES: usize = 10;
const GROWN_SERVICES: usize = 10_000;
const GROWN_ENDPOINTS: u16 = 5000;
const TOKEN: &str = "bench";

/// Starts the bastion with the small index and the one of `growth`.
///
/// # Errors
/// Returns an error if one of them does not start.
pub async fn peers(stage: &Stage, growth: Growth) -> Result<Vec<Peer>> {
    let few: Vec<SocketAddr> = stage.backends.clone();
    let (name, services, first) = match growth {
        Growth::Services => (MANY_SERVICES, GROWN_SERVICES, few.clone()),
        Growth::Endpoints => (MANY_ENDPOINTS, SERVICES, grown_endpoints()),
    };
    Ok(vec![
        start(stage, SMALL_INDEX, SERVICES, &few).await?,
        start(stage, name, services, &first).await?,
    ])
}

/// Token of the caller of these bastions.
pub fn token() -> &'static str {
    TOKEN
}

/// Returns the script for wrk that requests all services of a peer in turn, or only the first one,
/// whose endpoints differ.
///
/// # Errors
/// Returns an error if the script cannot be written.
pub fn script(stage: &Stage, peer: &Peer, growth: Growth) -> Result<PathBuf> {
    let count = match growth {
        Growth::Services if peer.name == MANY_SERVICES => GROWN_SERVICES,
        Growth::Services => SERVICES,
        Growth::Endpoints => 1,
    };
    let text = format!(
        "local requests, last = {{}}, 0
init = function(args)
  for i = 1, {count} do
    requests[i] = wrk.format(\"GET\", \"/api/v1/namespaces/default/services/s-\" .. i .. \"/proxy/\")
  end
end
request = function()
  last = last % {count} + 1
  return requests[last]
end
"
    );
    conf::write(stage.folder(), &format!("services-{count}.lua"), &text)
}

fn grown_endpoints() -> Vec<SocketAddr> {
    let endpoint = |index: u16| {
        let [high, low] = (index + 1).to_be_bytes();
        SocketAddr::from((Ipv4Addr::new(198, 18, high, low), GROWN_PORT))
    };
    (0..GROWN_ENDPOINTS).map(endpoint).collect()
}

async fn start(
    stage: &Stage,
    name: &'static str,
    services: usize,
    first: &[SocketAddr],
) -> Result<Peer> {
    let folder = stage.folder().join(format!("index-{}", free_port()?));
    let manifests = folder.join("manifests");
    fs::create_dir_all(&manifests)?;
    for (index, text) in (0..).zip(objects(services, first, &stage.backends)) {
        conf::write(&manifests, &format!("{index}.yaml"), &text)?;
    }
    let tokens = conf::write(&folder, "tokens", &format!("{TOKEN},caller,1\n"))?;
    let config = format!(
        "apiVersion: kube-bastion.dev/v1alpha1
kind: BastionConfiguration
serving: {{tlsCertFile: {}, tlsPrivateKeyFile: {}}}
source: {{type: manifests, manifests: {{directory: {}, tokenAuthFile: {}}}}}
targets: {{podLessEndpoints: true}}
",
        stage.serving.certificate.display(),
        stage.serving.key.display(),
        manifests.display(),
        tokens.display()
    );
    let config = conf::write(&folder, "config.yaml", &config)?;
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_kube-bastion")));
    command.arg("serve").arg("--config").arg(config);
    let bastion = Bastion::run(command)?;
    bastion.ready().await?;
    Ok(Peer {
        name,
        address: bastion.secure,
        prefix: "/api/v1/namespaces/default/services/s-1/proxy".into(),
        process: Process::Bastion(Box::new(bastion)),
    })
}

/// Returns services, of which the first has endpoints of its own, and the permission of the
/// caller, as texts of files within the limits of the YAML parser.
fn objects(services: usize, first: &[SocketAddr], others: &[SocketAddr]) -> Vec<String> {
    /// Maximum number of endpoints of a slice, and of services of a file.
    const CHUNK: usize = 100;
    const RULES: &str = "kind: ClusterRole
metadata: {name: caller}
rules: [{apiGroups: [''], resources: [services/proxy], verbs: [get]}]
---
kind: ClusterRoleBinding
metadata: {name: caller}
roleRef: {kind: ClusterRole, name: caller}
subjects: [{kind: User, name: caller}]
";
    let mut files = vec![RULES.to_owned()];
    let slices = first.chunks(CHUNK).enumerate();
    files.extend(slices.map(|(index, endpoints)| slice(1, index, endpoints)));
    let numbers: Vec<usize> = (1..=services).collect();
    for numbers in numbers.chunks(CHUNK) {
        let objects = numbers.iter().map(|&number| {
            let service = format!(
                "---\nkind: Service\nmetadata: {{name: s-{number}}}\nspec: {{ports: [{{port: 80}}]}}\n"
            );
            let slice = (number > 1).then(|| slice(number, 0, others));
            service + &slice.unwrap_or_default()
        });
        files.push(objects.collect());
    }
    files
}

fn slice(service: usize, index: usize, endpoints: &[SocketAddr]) -> String {
    let port = endpoints.first().map_or(0, SocketAddr::port);
    let addresses: Vec<String> = endpoints
        .iter()
        .map(|endpoint| format!("{{addresses: [{}]}}", endpoint.ip()))
        .collect();
    format!(
        "---
kind: EndpointSlice
metadata: {{name: s-{service}-{index}, labels: {{kubernetes.io/service-name: s-{service}}}}}
addressType: IPv4
ports: [{{name: '', port: {port}}}]
endpoints: [{}]
",
        addresses.join(", ")
    )
}
