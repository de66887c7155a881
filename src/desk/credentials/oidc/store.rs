//! Tokens in the kubeconfig.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use serde_saphyr::DuplicateKeyPolicy;

use super::Tokens;
use crate::kubeconfig::{Lock, Origin, Secret, Sections, WriteError, replace};
use crate::model::yaml;

/// Reason why tokens are not stored.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("cannot read the kubeconfig {path:?}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the kubeconfig {path:?} has changed and does not have the user with oidc anymore")]
    NoUser { path: PathBuf },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Returns the configuration of the user's auth-provider. `None` if the file does not have it.
pub(super) fn read(file: &Path, user: &str) -> Option<BTreeMap<String, Secret>> {
    let sections = Sections::read(vec![file.to_owned()], Origin::Default).ok()?;
    let entry = sections.users.find(user)?.to_user().ok()?;
    let provider = entry.auth_provider?;
    (provider.name == "oidc").then_some(provider.config)
}

/// Replaces the tokens of a user. The rest of the file stays as it is, with comments, if the tokens
/// can be replaced as text; else its contents are written anew.
pub(super) fn write(file: &Path, user: &str, old: &Tokens, new: &Tokens) -> Result<(), StoreError> {
    let _lock = Lock::acquire(file)?;
    let text = std::fs::read_to_string(file).map_err(|source| StoreError::Read {
        path: file.into(),
        source,
    })?;
    let updated =
        update(&text, user, old, new).ok_or_else(|| StoreError::NoUser { path: file.into() })?;
    Ok(replace(file, &updated)?)
}

/// Returns the text of the file with the new tokens.
fn update(text: &str, user: &str, old: &Tokens, new: &Tokens) -> Option<String> {
    let mut expected = parse(text)?;
    let config = config_of(&mut expected, user)?;
    for (field, token) in [("id-token", &new.id), ("refresh-token", &new.refresh)] {
        if let Some(token) = token {
            config[field] = json!(token.expose());
        }
    }
    let mut replaced = text.to_owned();
    for (old, new) in [(&old.id, &new.id), (&old.refresh, &new.refresh)] {
        if let (Some(old), Some(new)) = (old, new) {
            replaced = replaced.replace(old.expose(), new.expose());
        }
    }
    if parse(&replaced).as_ref() == Some(&expected) {
        return Some(replaced);
    }
    serde_saphyr::to_string(&expected).ok()
}

fn parse(text: &str) -> Option<Value> {
    let documents = yaml::parse(text, DuplicateKeyPolicy::LastWins).ok()?;
    let mut documents = documents.into_iter();
    let document = documents.next()?;
    // Only one of several documents would be written.
    documents.next().is_none().then_some(document.value)
}

/// Returns the configuration of the user's auth-provider.
fn config_of<'a>(document: &'a mut Value, user: &str) -> Option<&'a mut Value> {
    let users = document.get_mut("users")?.as_array_mut()?;
    let entry = users.iter_mut().find(|entry| entry["name"] == user)?;
    let config = entry.pointer_mut("/user/auth-provider/config")?;
    config.is_object().then_some(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# My clusters.
apiVersion: v1
kind: Config
users:
- name: other
  user: {token: refresh-1} # not a token of jane
- name: jane # Jane
  user:
    auth-provider:
      name: oidc
      config:
        client-id: kubernetes
        id-token: aaa.bbb.ccc
        refresh-token: 'refresh-1'
unknown: {field: [1, null]}
";

    fn tokens(id: &str, refresh: &str) -> Tokens {
        Tokens {
            id: Some(id.to_owned().into()),
            refresh: Some(refresh.to_owned().into()),
        }
    }

    #[test]
    fn replaces_only_the_tokens_of_the_user() {
        let file = FILE.replace("token: refresh-1", "token: other");
        let old = tokens("aaa.bbb.ccc", "refresh-1");
        let updated = update(&file, "jane", &old, &tokens("ddd.eee.fff", "refresh-2")).unwrap();
        let expected = file
            .replace("aaa.bbb.ccc", "ddd.eee.fff")
            .replace("refresh-1", "refresh-2");
        assert_eq!(updated, expected);
    }

    #[test]
    fn keeps_all_fields_if_a_token_cannot_be_replaced_as_text() {
        let old = tokens("aaa.bbb.ccc", "refresh-1");
        for refresh in ["refresh-2", "it's: #new", "multi\nline"] {
            let updated = update(FILE, "jane", &old, &tokens("ddd.eee.fff", refresh)).unwrap();
            let mut expected = parse(FILE).unwrap();
            let config = config_of(&mut expected, "jane").unwrap();
            config["id-token"] = json!("ddd.eee.fff");
            config["refresh-token"] = json!(refresh);
            assert_eq!(parse(&updated).unwrap(), expected, "{updated}");
        }
        assert!(update(FILE, "nobody", &old, &old).is_none());
    }

    #[test]
    fn stores_tokens_that_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, FILE).unwrap();
        let old = tokens("aaa.bbb.ccc", "refresh-1");
        write(&path, "jane", &old, &tokens("ddd.eee.fff", "refresh-2")).unwrap();
        let config = read(&path, "jane").unwrap();
        assert_eq!(config["id-token"].expose(), "ddd.eee.fff");
        assert_eq!(config["refresh-token"].expose(), "refresh-2");
        assert!(!folder.path().join("config.lock").exists());
        assert!(read(&path, "other").is_none());
        std::fs::write(folder.path().join("config.lock"), "").unwrap();
        let error = write(&path, "jane", &old, &old).unwrap_err().to_string();
        assert!(error.contains("is locked"), "{error}");
    }
}
