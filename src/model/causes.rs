//! Text of an error with its causes.

use std::error::Error;

use kube::client::AuthError;

/// Formats an error and its chain of sources, separated by `: `. A source whose text is already
/// part of the message is skipped, because many libraries include their source in `Display`.
pub fn error_chain(error: &dyn Error) -> String {
    if let Some(failure) = plugin_failure(error) {
        return failure;
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        source = error.source();
    }
    text
}

/// Returns the text for an error that a failed credential plugin of the kubeconfig has caused. The
/// text of the library has the environment and the output of the plugin, which may be secret.
pub fn plugin_failure(error: &dyn Error) -> Option<String> {
    let mut source = error.source();
    while let Some(error) = source {
        match error.downcast_ref() {
            Some(AuthError::AuthExecRun { out, .. }) => {
                return Some(format!(
                    "the credential plugin of the kubeconfig failed with {}",
                    out.status
                ));
            }
            Some(AuthError::AuthExecParse(_) | AuthError::AuthExec(_)) => {
                return Some(
                    "the credential plugin of the kubeconfig printed no valid credentials".into(),
                );
            }
            _ => source = error.source(),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum TestError {
        #[error("invalid file")]
        File(#[source] Box<TestError>),
        #[error("line 3: {0}")]
        Line(#[source] Box<TestError>),
        #[error("missing comma")]
        Comma,
    }

    #[test]
    fn prints_each_cause_once() {
        let error = TestError::File(Box::new(TestError::Line(Box::new(TestError::Comma))));
        assert_eq!(error_chain(&error), "invalid file: line 3: missing comma");
        assert_eq!(error_chain(&TestError::Comma), "missing comma");
    }

    #[test]
    fn hides_environment_and_output_of_a_credential_plugin() {
        let out = std::process::Command::new("sh")
            .args(["-c", "echo SECRET; exit 3"])
            .output()
            .unwrap();
        let cmd = "env PW=SECRET plugin".to_owned();
        let error = AuthError::AuthExecRun {
            cmd,
            out: Box::new(out),
        };
        assert!(error.to_string().contains("SECRET"));
        let error = kube::Error::Auth(error);
        assert_eq!(
            error_chain(&error),
            "the credential plugin of the kubeconfig failed with exit status: 3"
        );
    }
}
