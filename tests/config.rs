//! Every example and manifest that ships is loaded, so that none can rot.

use std::path::{Path, PathBuf};

use kube_bastion::config::{Config, schema};

const SCHEMA: &str = "config/bastionconfiguration.schema.json";

fn examples() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<_> = std::fs::read_dir(root.join("config"))
        .expect("config/ is a folder")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .collect();
    paths.push(root.join("deploy/base/config.yaml"));
    paths
}

#[test]
fn every_example_loads() {
    let examples = examples();
    assert!(examples.len() >= 4, "{examples:?}");
    for path in examples {
        let config = Config::load(&path).unwrap_or_else(|error| panic!("{error}"));
        config
            .validate()
            .unwrap_or_else(|error| panic!("{path:?}: {error}"));
    }
}

/// `make schema` writes it anew.
#[test]
fn the_schema_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(SCHEMA);
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, schema()).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == schema(),
        "{SCHEMA} is stale: run `make schema` and commit it"
    );
}

#[test]
fn every_field_has_a_description() {
    let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
    let described = |of: &serde_json::Value| {
        let target = of["$ref"].as_str().map(|to| {
            schema
                .pointer(to.trim_start_matches('#'))
                .expect("it resolves")
        });
        of["description"].is_string()
            || target.is_some_and(|target| target["description"].is_string())
    };
    let mut bare = Vec::new();
    let root = ("Config".to_owned(), &schema);
    let sections = schema["$defs"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, section)| (name.clone(), section));
    for (name, section) in std::iter::once(root).chain(sections) {
        for (field, of) in section["properties"].as_object().into_iter().flatten() {
            if !described(of) {
                bare.push(format!("{name}.{field}"));
            }
        }
    }
    assert!(bare.is_empty(), "{bare:?}");
}
