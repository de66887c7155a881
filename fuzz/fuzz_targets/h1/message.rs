//! Messages as both parsers report them.

use std::fmt::{Debug, Formatter, Result};

/// Name and value of a field.
pub type Field = (Vec<u8>, Vec<u8>);

/// All messages of an input.
#[derive(Debug, PartialEq, Eq)]
pub struct Transcript {
    pub messages: Vec<Message>,
    pub ending: Ending,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// Bytes behind the last complete message.
    Rest(Vec<u8>),
    /// The head behind the last message is malformed.
    Rejected,
    /// The body of the last message is malformed or incomplete.
    InBody,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    pub head: Head,
    pub body: Body,
}

#[derive(PartialEq, Eq)]
pub struct Head {
    pub line: Line,
    /// Fields that are forwarded.
    pub fields: Vec<Field>,
    pub framing: Framing,
    pub keep_alive: bool,
    pub expects_continue: bool,
    /// Number of lines that were dropped.
    pub dropped: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Request {
        method: Vec<u8>,
        authority: Option<Vec<u8>>,
        /// Path and query.
        target: Vec<u8>,
        http11: bool,
    },
    Response {
        status: u16,
        /// Empty if it is the usual one of the status.
        reason: Vec<u8>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Empty,
    Length(u64),
    Chunked,
    UntilClose,
}

#[derive(Default, PartialEq, Eq)]
pub struct Body {
    pub data: Vec<u8>,
    /// With names in lower case.
    pub trailers: Vec<Field>,
}

impl Framing {
    pub fn of_length(length: u64) -> Self {
        if length == 0 {
            Self::Empty
        } else {
            Self::Length(length)
        }
    }
}

/// Sorts by name. Fields with the same name keep their order.
pub fn by_name(fields: &[Field]) -> Vec<Field> {
    let mut fields: Vec<Field> = fields
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        .collect();
    fields.sort_by(|(left, _), (right, _)| left.cmp(right));
    fields
}

fn text(fields: &[Field]) -> Vec<String> {
    let text = |(name, value): &Field| format!("{}: {}", name.escape_ascii(), value.escape_ascii());
    fields.iter().map(text).collect()
}

impl Debug for Head {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> Result {
        formatter
            .debug_struct("Head")
            .field("line", &self.line)
            .field("fields", &text(&self.fields))
            .field("framing", &self.framing)
            .field("keep_alive", &self.keep_alive)
            .field("expects_continue", &self.expects_continue)
            .field("dropped", &self.dropped)
            .finish()
    }
}

impl Debug for Body {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> Result {
        formatter
            .debug_struct("Body")
            .field("data", &self.data.escape_ascii().to_string())
            .field("trailers", &text(&self.trailers))
            .finish()
    }
}
