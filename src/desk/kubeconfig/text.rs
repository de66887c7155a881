//! Text of a kubeconfig. Entries are replaced and added by lines, so that comments, order and
//! format of all other lines stay.

use serde_json::{Value, json};
use serde_saphyr::DuplicateKeyPolicy;

use super::entries::Section;
use crate::model::yaml;

/// Lines of a kubeconfig in block style.
#[derive(Clone, Debug)]
pub(super) struct Text {
    /// With their line ends.
    lines: Vec<String>,
}

/// Lines of a list and its items, as indices.
#[derive(Debug)]
struct List {
    /// Ranges of lines, without blank lines and comments at their ends.
    items: Vec<std::ops::Range<usize>>,
    /// Spaces before the dash of each item.
    indent: usize,
    /// Index of the line behind the last item.
    end: usize,
}

impl Text {
    pub fn new(text: &str) -> Self {
        let mut lines: Vec<_> = text.split_inclusive('\n').map(str::to_owned).collect();
        if let Some(last) = lines.last_mut()
            && !last.ends_with('\n')
        {
            last.push('\n');
        }
        Self { lines }
    }

    /// Replaces the entry of this name, or adds it. `None` if the list is not in block style.
    pub fn put(&mut self, section: Section, name: &str, fields: &Value) -> Option<()> {
        let key = section.key();
        let list = if let Some(line) = self.find(key) {
            self.list(line, key)?
        } else {
            self.lines.push(format!("{key}:\n"));
            List {
                items: Vec::new(),
                indent: 0,
                end: self.lines.len(),
            }
        };
        let entry = json!({"name": name, section.field(): fields});
        let entry = item(&entry, list.indent)?;
        let existing = list.items.iter().find(|item| self.name(item) == *name);
        let replaced = existing.map_or(list.end..list.end, Clone::clone);
        self.lines.splice(replaced, entry);
        Some(())
    }

    pub fn set_current_context(&mut self, name: &str) -> Option<()> {
        let line = format!("current-context: {}\n", scalar(name)?);
        match self.find("current-context") {
            Some(index) => self.lines[index] = line,
            None => self.lines.push(line),
        }
        Some(())
    }

    /// Finds the line of a field of the document.
    fn find(&self, key: &str) -> Option<usize> {
        let is_key = |line: &String| line.strip_prefix(key)?.starts_with(':').then_some(());
        self.lines.iter().position(|line| is_key(line).is_some())
    }

    /// Returns the list of a field. A list without items becomes one in block style.
    fn list(&mut self, line: usize, key: &str) -> Option<List> {
        let value = self.lines[line].strip_prefix(key)?.strip_prefix(':')?;
        let value = value.split(" #").next().unwrap_or_default().trim();
        match value {
            "" => {}
            "[]" | "null" | "~" => self.lines[line] = format!("{key}:\n"),
            _ => return None,
        }
        let mut list = List {
            items: Vec::new(),
            indent: 0,
            end: line + 1,
        };
        for (index, text) in self.lines.iter().enumerate().skip(line + 1) {
            let content = text.trim_start_matches(' ').trim_end();
            let indent = text.len() - text.trim_start_matches(' ').len();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let is_item = content == "-" || content.starts_with("- ");
            if is_item && (list.items.is_empty() || indent == list.indent) {
                list.indent = indent;
                list.items.push(index..index + 1);
            } else if indent > list.indent {
                list.items.last_mut()?.end = index + 1;
            } else {
                break;
            }
            list.end = index + 1;
        }
        Some(list)
    }

    /// Returns the name of the entry in these lines; null if there is none.
    fn name(&self, lines: &std::ops::Range<usize>) -> Value {
        let text = self.lines[lines.clone()].concat();
        let documents = yaml::parse(&text, DuplicateKeyPolicy::LastWins).unwrap_or_default();
        let first = documents.into_iter().next();
        first.map_or(Value::Null, |document| document.value[0]["name"].clone())
    }

    pub fn into_string(self) -> String {
        self.lines.concat()
    }
}

/// Returns the lines of a list item.
fn item(value: &Value, indent: usize) -> Option<Vec<String>> {
    let text = to_yaml(value)?;
    let lines = text.lines().enumerate().map(|(index, line)| {
        let dash = if index == 0 { "- " } else { "  " };
        format!("{:indent$}{dash}{line}\n", "")
    });
    Some(lines.collect())
}

fn scalar(text: &str) -> Option<String> {
    Some(to_yaml(&text.into())?.trim_end().to_owned())
}

/// Formats a value for readers of YAML 1.1 and 1.2, without block scalars, whose indentation would
/// be part of the entry's.
pub(super) fn to_yaml(value: &Value) -> Option<String> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(value, options).ok()
}
