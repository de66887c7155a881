//! Tunnels to the pods of a `StatefulSet` by their host names.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{account, curl};
use crate::fixture::{Fixture, SHOP};
use crate::support::backend::Backend;
use crate::support::eventually;

const PORT: u16 = 27017;

/// Starts a pod of the headless service `members`, whose backend has the name `serves`.
async fn member(fixture: &Fixture, name: &str, last: u8, serves: &str) -> Result<Backend> {
    let backend = Backend::start(&fixture.namespace, last, PORT, serves, None)?;
    let (labels, address) = (json!({"app": "members"}), fixture.namespace.address(last));
    let fields = json!({"hostname": name, "subdomain": "members"});
    fixture
        .objects
        .pod_with(name, labels, address, json!([]), fields)
        .await?;
    Ok(backend)
}

pub async fn host_name_reaches_its_pod(fixture: &mut Fixture) -> Result<()> {
    let token = account(fixture, "members-user").await?;
    let spec =
        json!({"clusterIP": "None", "selector": {"app": "members"}, "ports": [{"port": PORT}]});
    fixture.objects.service("members", spec).await?;
    let mut backends = Vec::new();
    for (name, last) in [("members-0", 21), ("members-1", 22)] {
        backends.push(member(fixture, name, last, name).await?);
    }
    let get = async |host: &str| {
        let url = format!("http://{host}.{SHOP}.svc:{PORT}/name");
        curl(fixture, &token, &["--proxytunnel", &url]).await
    };
    let reaches = async |host: &str, expected: &str| {
        eventually(&format!("{expected} at {host}"), async || {
            Ok(get(host).await? == expected)
        })
        .await
    };
    for name in ["members-0", "members-1"] {
        reaches(&format!("{name}.members"), name).await?;
    }
    for name in ["members-0", "members-1", "members-1", "members-1"] {
        let output = get(&format!("{name}.members")).await?;
        ensure!(output == name, "{name}: {output}");
    }
    // The service itself has both.
    let both = [get("members").await?, get("members").await?];
    ensure!(
        both[0] != both[1] && both.iter().all(|name| name.starts_with("members-")),
        "{both:?}"
    );
    for (host, code) in [("members-7.members", 404), ("members-0.nobody", 404)] {
        let output = get(host).await?;
        let expected = format!("response {code}");
        ensure!(output.contains(&expected), "{host}: {output}");
    }
    // The pod comes back with another address.
    fixture.objects.delete_pod("members-1").await?;
    drop(backends.pop());
    backends.push(member(fixture, "members-1", 23, "new-members-1").await?);
    reaches("members-1.members", "new-members-1").await?;
    for name in ["members-0", "members-1"] {
        fixture.objects.delete_pod(name).await?;
    }
    Ok(())
}
