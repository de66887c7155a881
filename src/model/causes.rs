//! Text of an error with its causes.

use std::error::Error;

/// Formats an error and its chain of sources, separated by `: `. A source whose text is already
/// part of the message is skipped, because many libraries include their source in `Display`.
pub fn error_chain(error: &dyn Error) -> String {
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
}
