//! Static token file in kube-apiserver's `--token-auth-file` format.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::digest;

use crate::model::Identity;
use crate::model::identity::AUTHENTICATED;

/// SHA-256 of a token; the token itself is not stored.
type TokenHash = [u8; digest::SHA256_OUTPUT_LEN];

fn hash(token: &str) -> TokenHash {
    let mut hash = TokenHash::default();
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

/// Reason why a token file is rejected. Names the line, never its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFileError {
    #[error("line {line}: not valid CSV")]
    Csv { line: u64 },
    #[error("line {line}: expected token,user,uid and, in quotes, groups")]
    MissingColumns { line: u64 },
    #[error("line {line}: the token and the user must not be empty")]
    EmptyColumn { line: u64 },
    #[error("line {line}: the token is already used in an earlier line; remove one of them")]
    DuplicateToken { line: u64 },
}

/// Tokens of a file in kube-apiserver's format, replaced as a whole when the file changes.
#[derive(Debug, Default)]
pub struct TokenFile(ArcSwap<HashMap<TokenHash, Arc<Identity>>>);

impl TokenFile {
    /// Parses lines of `token,user,uid[,"group1,group2"]`.
    ///
    /// # Errors
    /// [`TokenFileError`].
    pub fn parse(text: &str) -> Result<Self, TokenFileError> {
        let tokens = Self::default();
        tokens.replace(text)?;
        Ok(tokens)
    }

    /// Replaces all tokens.
    ///
    /// # Errors
    /// As [`Self::parse`]; the old tokens stay in use.
    pub fn replace(&self, text: &str) -> Result<(), TokenFileError> {
        let mut tokens = HashMap::new();
        let records = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .comment(Some(b'#'))
            .trim(csv::Trim::All)
            .from_reader(text.as_bytes())
            .into_records();
        for record in records {
            let record = record.map_err(|error| TokenFileError::Csv {
                line: line_number(error.position()),
            })?;
            let line = line_number(record.position());
            let (Some(token), Some(user), Some(uid)) =
                (record.get(0), record.get(1), record.get(2))
            else {
                return Err(TokenFileError::MissingColumns { line });
            };
            if token.is_empty() || user.is_empty() {
                return Err(TokenFileError::EmptyColumn { line });
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
                return Err(TokenFileError::DuplicateToken { line });
            }
        }
        self.0.store(Arc::new(tokens));
        Ok(())
    }

    /// Returns the identity of `token`. The lookup compares hashes, so its timing reveals nothing
    /// about the tokens.
    pub fn identity(&self, token: &str) -> Option<Arc<Identity>> {
        self.0.load().get(&hash(token)).cloned()
    }
}

fn line_number(position: Option<&csv::Position>) -> u64 {
    position.map_or(0, csv::Position::line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_format_of_kube_apiserver() {
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
    fn keeps_old_tokens_if_file_is_invalid() {
        let tokens = TokenFile::parse("t1,jane,7\n").unwrap();
        for (text, expected) in [
            ("t1,jane\n", TokenFileError::MissingColumns { line: 1 }),
            (
                "t1,jane,7\nsecret,,\n",
                TokenFileError::EmptyColumn { line: 2 },
            ),
            (
                "t1,jane,7\nt1,joe,8\n",
                TokenFileError::DuplicateToken { line: 2 },
            ),
        ] {
            assert_eq!(tokens.replace(text), Err(expected));
        }
        assert!(tokens.identity("t1").is_some());
    }
}
