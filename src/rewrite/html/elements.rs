//! Accounting of the elements of a page.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use super::super::budget::PageLimit;
use super::bounds::{
    DISTINCT_NAME_BYTES, ELEMENT_BYTES, MAX_DEPTH, MAX_GROWTH_BYTES, MAX_GROWTH_FACTOR,
    MAX_SHORT_NAME_BYTES, MAX_TRACKED_NAMES, NAMESPACE_BYTES, TRACKED_NAME_BYTES,
};

/// Counts of the elements that the parser holds, and of the bytes that rewriting may still add. The
/// handlers of the parser share it with [`super::Html`], hence the cells.
pub struct Elements {
    seen: Cell<usize>,
    /// Elements with content.
    opened: Cell<usize>,
    /// Elements with content whose name the parser copies.
    long_names: Cell<usize>,
    /// Length of the longest of these names, in bytes.
    longest_name: Cell<usize>,
    /// Distinct names, up to [`MAX_TRACKED_NAMES`].
    names: RefCell<HashSet<Box<str>>>,
    distinct_names: Cell<usize>,
    /// Upper bound of the namespaces on the parser's stack.
    namespaces: Cell<usize>,
    most_namespaces: Cell<usize>,
    /// Bytes that rewriting may add at `position` of the page.
    growth: Cell<usize>,
    position: Cell<usize>,
}

impl Default for Elements {
    fn default() -> Self {
        Self {
            seen: Cell::default(),
            opened: Cell::default(),
            long_names: Cell::default(),
            longest_name: Cell::default(),
            names: RefCell::default(),
            distinct_names: Cell::default(),
            namespaces: Cell::default(),
            most_namespaces: Cell::default(),
            growth: Cell::new(MAX_GROWTH_BYTES),
            position: Cell::default(),
        }
    }
}

impl Elements {
    /// Number of elements so far.
    pub fn seen(&self) -> usize {
        self.seen.get()
    }

    /// Counts an element.
    pub fn see(&self, name: &str, has_content: bool) {
        add(&self.seen, 1);
        // Void elements are not on the parser's stack.
        if !has_content {
            return;
        }
        add(&self.opened, 1);
        if name.len() > MAX_SHORT_NAME_BYTES
            || !name
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'1'..=b'6'))
        {
            add(&self.long_names, 1);
            self.longest_name
                .set(self.longest_name.get().max(name.len()));
        }
        let mut names = self.names.borrow_mut();
        if !names.contains(name) {
            add(&self.distinct_names, 1);
            if names.len() < MAX_TRACKED_NAMES {
                names.insert(name.into());
            }
        }
    }

    /// Adds the growth allowed for the bytes up to `position` of the page.
    pub fn allow_growth(&self, position: usize) {
        let progress = position.saturating_sub(self.position.replace(position));
        // A token bucket: unused growth accumulates up to `MAX_GROWTH_BYTES`.
        let growth = self
            .growth
            .get()
            .saturating_add(progress.saturating_mul(MAX_GROWTH_FACTOR));
        self.growth.set(growth.min(MAX_GROWTH_BYTES));
    }

    /// Counts bytes that rewriting adds.
    ///
    /// # Errors
    /// [`PageLimit::Growth`] if the page may not grow that much.
    pub fn grow(&self, bytes: usize) -> Result<(), PageLimit> {
        self.growth.set(
            self.growth
                .get()
                .checked_sub(bytes)
                .ok_or(PageLimit::Growth)?,
        );
        Ok(())
    }

    /// Counts an element that changes the namespace. Returns the depth of the stack.
    ///
    /// # Errors
    /// [`PageLimit::Depth`] if the stack is full.
    pub fn enter_namespace(&self) -> Result<usize, PageLimit> {
        let depth = self.namespaces.get() + 1;
        if depth > MAX_DEPTH {
            return Err(PageLimit::Depth);
        }
        self.namespaces.set(depth);
        self.most_namespaces
            .set(self.most_namespaces.get().max(depth));
        Ok(depth)
    }

    /// Counts the end of the element that was entered at `depth`, unless others were entered since.
    pub fn leave_namespace(&self, depth: usize) {
        if self.namespaces.get() == depth {
            self.namespaces.set(depth - 1);
        }
    }

    /// Upper bound of the memory that the elements hold, in bytes.
    pub fn held_bytes(&self) -> usize {
        let open = |count: &Cell<usize>| count.get().min(MAX_DEPTH);
        // A copy for each element and one for its distinct name, each rounded up by the allocator.
        let name_bytes = 2 * (self.longest_name.get().max(MAX_SHORT_NAME_BYTES) + 16);
        open(&self.opened).max(8).next_power_of_two() * ELEMENT_BYTES
            + open(&self.long_names) * name_bytes
            + open(&self.distinct_names) * DISTINCT_NAME_BYTES
            + self.distinct_names.get().min(MAX_TRACKED_NAMES)
                * (TRACKED_NAME_BYTES + name_bytes / 2)
            + self.most_namespaces.get() * NAMESPACE_BYTES
    }
}

fn add(count: &Cell<usize>, more: usize) {
    count.set(count.get() + more);
}
