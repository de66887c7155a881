//! Static tokens in kube-apiserver's `--token-auth-file` format.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::digest;

use crate::model::Identity;
use crate::model::identity::AUTHENTICATED;

/// SHA-256 of a token: the token itself is kept nowhere.
type TokenHash = [u8; digest::SHA256_OUTPUT_LEN];

fn hash(token: &str) -> TokenHash {
    let mut hash = TokenHash::default();
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

/// The tokens of a file in kube-apiserver's format, replaced as a whole when the file changes.
#[derive(Debug, Default)]
pub struct TokenFile(ArcSwap<HashMap<TokenHash, Arc<Identity>>>);

impl TokenFile {
    /// Reads `token,user,uid[,"group1,group2"]`, a line each.
    ///
    /// # Errors
    /// Names the line and what is wrong with it, never the token.
    pub fn parse(text: &str) -> Result<Self, String> {
        let tokens = Self::default();
        tokens.replace(text)?;
        Ok(tokens)
    }

    /// # Errors
    /// As [`Self::parse`]; the old tokens stay.
    pub fn replace(&self, text: &str) -> Result<(), String> {
        let mut tokens = HashMap::new();
        let lines = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .comment(Some(b'#'))
            .trim(csv::Trim::All)
            .from_reader(text.as_bytes())
            .into_records();
        for record in lines {
            let record =
                record.map_err(|error| format!("line {}: not CSV", line_of(error.position())))?;
            let line = line_of(record.position());
            let (Some(token), Some(user), Some(uid)) =
                (record.get(0), record.get(1), record.get(2))
            else {
                return Err(format!(
                    "line {line}: give token,user,uid and, in quotes, groups"
                ));
            };
            if token.is_empty() || user.is_empty() {
                return Err(format!(
                    "line {line}: the token and the user must not be empty"
                ));
            }
            let groups = record
                .get(3)
                .unwrap_or_default()
                .split(',')
                .map(str::trim)
                .filter(|group| !group.is_empty());
            let groups = groups.chain([AUTHENTICATED]).map(str::to_owned).collect();
            let identity = Arc::new(Identity::new(user, uid, groups, Default::default()));
            if tokens.insert(hash(token), identity).is_some() {
                return Err(format!(
                    "line {line}: the token stands in an earlier line too"
                ));
            }
        }
        self.0.store(Arc::new(tokens));
        Ok(())
    }

    /// The identity that `token` stands for.
    pub fn identity(&self, token: &str) -> Option<Arc<Identity>> {
        self.0.load().get(&hash(token)).cloned()
    }
}

fn line_of(position: Option<&csv::Position>) -> u64 {
    position.map_or(0, csv::Position::line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_file_is_the_apiservers() {
        let tokens = TokenFile::parse("# who\nt1,jane,7,\"devs,ops\"\nt2,joe,8\n").unwrap();
        let jane = tokens.identity("t1").unwrap();
        assert_eq!((&*jane.user, &*jane.uid), ("jane", "7"));
        assert_eq!(jane.groups, ["devs", "ops", "system:authenticated"]);
        assert_eq!(
            tokens.identity("t2").unwrap().groups,
            ["system:authenticated"]
        );
        assert!(tokens.identity("t3").is_none());
    }

    #[test]
    fn a_broken_token_file_is_told_by_line_and_keeps_the_old_tokens() {
        let tokens = TokenFile::parse("t1,jane,7\n").unwrap();
        for (text, told) in [
            ("t1,jane\n", "line 1: give token,user,uid"),
            (
                "t1,jane,7\nsecret,,\n",
                "line 2: the token and the user must not be empty",
            ),
            (
                "t1,jane,7\nt1,joe,8\n",
                "line 2: the token stands in an earlier line too",
            ),
        ] {
            let error = tokens.replace(text).unwrap_err();
            assert!(
                error.starts_with(told) && !error.contains("secret"),
                "{error}"
            );
        }
        assert!(tokens.identity("t1").is_some());
    }
}
