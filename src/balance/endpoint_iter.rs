//! Order in which the endpoints of a route are tried.

use crate::model::Endpoint;

/// Endpoints in the order in which to try them, each once.
#[derive(Clone, Debug)]
pub struct EndpointIter<'r> {
    endpoints: &'r [Endpoint],
    /// Index of the first endpoint, if none is ejected.
    turn: usize,
    /// Set if some are ejected: the order, the healthy ones first.
    indices: Option<Vec<usize>>,
    taken: usize,
}

impl<'r> EndpointIter<'r> {
    pub(super) fn new(endpoints: &'r [Endpoint], turn: usize, indices: Option<Vec<usize>>) -> Self {
        Self {
            endpoints,
            turn,
            indices,
            taken: 0,
        }
    }

    pub(super) fn peek(&self) -> Option<&'r Endpoint> {
        if self.taken == self.endpoints.len() {
            return None;
        }
        let index = match &self.indices {
            Some(indices) => indices[self.taken],
            None => (self.turn + self.taken) % self.endpoints.len(),
        };
        Some(&self.endpoints[index])
    }
}

impl<'r> Iterator for EndpointIter<'r> {
    type Item = &'r Endpoint;

    fn next(&mut self) -> Option<&'r Endpoint> {
        let next = self.peek()?;
        self.taken += 1;
        Some(next)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let remaining = self.endpoints.len() - self.taken;
        (remaining, Some(remaining))
    }
}

impl ExactSizeIterator for EndpointIter<'_> {}
