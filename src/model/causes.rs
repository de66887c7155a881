//! The text of an error with what it came from.

use std::error::Error;

/// What an error says and what it came from, each cause once: many a library says its cause in its
/// own words too.
pub fn error_chain(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !told.contains(&said) {
            told = format!("{told}: {said}");
        }
        cause = error.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Fault {
        #[error("the file is no good")]
        File(#[source] Box<Fault>),
        #[error("line 3: {0}")]
        Line(#[source] Box<Fault>),
        #[error("a comma is missing")]
        Comma,
    }

    #[test]
    fn each_cause_is_told_once() {
        let error = Fault::File(Box::new(Fault::Line(Box::new(Fault::Comma))));
        assert_eq!(
            error_chain(&error),
            "the file is no good: line 3: a comma is missing"
        );
        assert_eq!(error_chain(&Fault::Comma), "a comma is missing");
    }
}
