//! `version`, `completion`, `man`, and the names of the binary.

use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::Value;

use crate::{assert_contains, failure, run};

/// Runs a command that must succeed, and returns its standard output.
fn output(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

#[test]
fn version_has_three_formats() {
    let text = output(&["version"]);
    let json: Value = serde_json::from_str(&output(&["version", "-o", "json"])).expect("JSON");
    let yaml = output(&["version", "--client", "--output=yaml"]);
    let yaml: Value = serde_saphyr::from_str(&yaml).expect("YAML");
    assert_eq!(json, yaml);
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    for field in ["version", "commit", "platform", "rustc"] {
        let value = json[field].as_str().unwrap_or_default();
        assert!(!value.is_empty(), "{json}");
        assert!(text.contains(value), "{text}");
    }
    assert!(
        json["rustc"]
            .as_str()
            .is_some_and(|it| it.starts_with("rustc "))
    );
    let short = output(&["--version"]);
    assert_eq!(
        short.trim(),
        format!("kube-bastion {}", env!("CARGO_PKG_VERSION"))
    );
    assert_contains(
        &failure(&["version", "-o", "xml"]),
        &["xml", "text, json, yaml"],
    );
}

#[test]
fn bash_completes_commands_and_values() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("script");
    std::fs::write(&script, output(&["completion", "bash"])).expect("it is writable");
    let complete = |words: &str, index: usize| {
        let program = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD={index}; \
             _kube__bastion kube-bastion \"${{COMP_WORDS[{index}]}}\" \"${{COMP_WORDS[{}]}}\"; \
             echo \"${{COMPREPLY[@]}}\"",
            script.display(),
            index - 1,
        );
        let output = Command::new("bash").args(["-c", &program]).output();
        let output = output.expect("bash runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(complete("kube-bastion ver", 1), "version");
    assert_eq!(complete("kube-bastion completion z", 2), "zsh");
    assert_eq!(
        complete("kube-bastion serve --tls-min", 2),
        "--tls-min-version"
    );
}

#[test]
fn every_shell_has_a_script() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert_contains(
            &output(&["completion", shell]),
            &["kube-bastion", "tls-min-version"],
        );
    }
    assert_contains(&failure(&["completion", "csh"]), &["csh", "bash"]);
}

#[test]
fn man_writes_a_page_per_command() {
    let directory = tempfile::tempdir().expect("a directory");
    let pages = directory.path().join("pages");
    output(&["man", pages.to_str().expect("the path is UTF-8")]);
    for (page, parts) in [
        (
            "kube-bastion.1",
            &[".TH KUBE-BASTION 1", "kube\\-bastion\\-serve(1)"][..],
        ),
        (
            "kube-bastion-serve.1",
            &[
                ".TH KUBE-BASTION-SERVE 1",
                "\\-\\-tls\\-cert\\-file",
                ".nf\n",
            ],
        ),
        ("kube-bastion-man.1", &[".TH KUBE-BASTION-MAN 1"]),
    ] {
        let text = std::fs::read_to_string(pages.join(page)).expect("the page exists");
        assert_contains(&text, parts);
    }
    assert!(!pages.join("kube-bastion-help.1").exists());
    assert_contains(&output(&["man"]), &[".TH KUBE-BASTION 1"]);
    assert_contains(&failure(&["man", "/proc/pages"]), &["/proc/pages"]);
}

#[test]
fn plugin_has_its_own_name_in_its_usage() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |name: &str, arguments: &[&str]| {
        let path = directory.path().join(name);
        symlink(env!("CARGO_BIN_EXE_kube-bastion"), &path).expect("it is writable");
        let output = Command::new(&path).args(arguments).output();
        let output = output.expect("the binary runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    assert_contains(
        &run(
            "kubectl-bastion",
            &["serve", "--manifests-dir=m", "--kubeconfig=k"],
        ),
        &["Usage: kubectl bastion serve"],
    );
    let candidates = run("kubectl_complete-bastion", &["completion", "z"]);
    assert_eq!(candidates, "zsh\t\n:4\n");
}
