//! OpenSSH through a tunnel that proxytunnel opens, a client of CONNECT.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::account;
use super::servers::publish;
use crate::fixture::{Fixture, SHOP};
use crate::support::eventually;
use crate::support::program::{Program, command_in_namespace, find_program};

/// Last octet of the pod's address.
const LAST: u8 = 51;
const PORT: u16 = 2222;
const INSTALL: &str = "on Debian, apt-get install openssh-server openssh-client proxytunnel";

/// Creates a key without a passphrase.
async fn key(file: &Path) -> Result<()> {
    let mut command = Command::new(find_program(&["ssh-keygen"], INSTALL)?);
    command
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(file);
    Program::start(&mut command)?.finish().await
}

pub async fn ssh_works_through_connect(fixture: &mut Fixture) -> Result<()> {
    let token = account(fixture, "ssh-user").await?;
    let folder = tempfile::tempdir()?;
    let (host, own) = (folder.path().join("host"), folder.path().join("own"));
    key(&host).await?;
    key(&own).await?;
    let public = own.with_extension("pub");
    let address = fixture.namespace.address(LAST);
    let sshd = find_program(&["sshd"], INSTALL)?;
    let mut command = command_in_namespace(&fixture.namespace, &sshd);
    command
        .args(["-D", "-e", "-f", "/dev/null", "-h"])
        .arg(&host)
        .args(["-o", &format!("ListenAddress={address}:{PORT}")])
        .args(["-o", &format!("AuthorizedKeysFile={}", public.display())])
        .args([
            "-o",
            "StrictModes=no",
            "-o",
            "UsePAM=no",
            "-o",
            "PidFile=none",
        ])
        .args(["-o", "PermitRootLogin=yes"]);
    // Its folder of privilege separation, which its package creates at boot.
    std::fs::create_dir_all("/run/sshd")?;
    let mut server = Program::start(&mut command)?;
    server.wait_for_line("Server listening").await?;
    publish(fixture, "shell", (PORT, "TCP"), &[address]).await?;

    let tunnel = find_program(&["proxytunnel"], INSTALL)?;
    let name = format!("shell.{SHOP}.svc");
    let known = folder.path().join("known_hosts");
    let key = std::fs::read_to_string(host.with_extension("pub"))?;
    std::fs::write(&known, format!("[{name}]:{PORT} {key}"))?;
    let through = format!(
        "{} --quiet --encrypt-proxy --cacert={} --header='Proxy-Authorization: Bearer {token}' \
         --proxy=localhost:{} --dest=%h:%p",
        tunnel.display(),
        fixture.cluster.ca.file.display(),
        fixture.bastion.secure.port(),
    );
    let ssh = find_program(&["ssh"], INSTALL)?;
    let run = async |command: &str| -> Result<String> {
        let mut ssh = Command::new(&ssh);
        ssh.args(["-F", "none", "-i"])
            .arg(&own)
            .args(["-o", &format!("ProxyCommand={through}")])
            .args(["-o", &format!("UserKnownHostsFile={}", known.display())])
            .args([
                "-o",
                "StrictHostKeyChecking=yes",
                "-o",
                "BatchMode=yes",
                "-o",
                "IdentitiesOnly=yes",
            ])
            .args(["-p", &PORT.to_string()])
            .args([&format!("root@{name}"), command]);
        let mut ssh = Program::start(&mut ssh)?;
        let ended = ssh.finish().await;
        let output = ssh.output().join("\n");
        ended.with_context(|| output.clone())?;
        Ok(output)
    };
    let mut last = String::new();
    let answered = eventually("an answer by SSH", async || {
        let answer = run("echo $((6 * 7))").await;
        last = format!("{answer:?}");
        Ok(answer.is_ok_and(|answer| answer == "42"))
    });
    answered
        .await
        .with_context(|| format!("{last}\n{}", server.output().join("\n")))?;
    let long = run("head -c 3000000 /dev/zero | tr '\\0' x").await?;
    ensure!(long.len() == 3_000_000, "{} bytes", long.len());
    Ok(())
}
