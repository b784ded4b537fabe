//! Typed reading of a tree that goes on after an error, so that all problems of a file are told at once.

use super::problem::{Place, Problems};
use super::tree::{Entry, Node, Value};
use std::cell::RefCell;
use std::str::FromStr;

/// A node on the way of reading, with the path of keys that led to it.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    problems: &'a RefCell<Problems>,
    pub(super) node: &'a Node,
    pub(super) path: String,
    /// Where its key stands; the node's own place for list items and the root.
    key_place: Place,
}

impl<'a> Cursor<'a> {
    pub(super) const fn root(node: &'a Node, problems: &'a RefCell<Problems>) -> Self {
        Self { problems, node, path: String::new(), key_place: node.place }
    }

    /// Records a problem at the value.
    pub(super) fn problem(&self, message: impl AsRef<str>) {
        self.problems.borrow_mut().add(self.node.place, &self.path, message.as_ref(), None);
    }

    /// Records a problem at the value, with what to do.
    pub(super) fn problem_hint(&self, message: impl AsRef<str>, hint: &str) {
        self.problems.borrow_mut().add(self.node.place, &self.path, message.as_ref(), Some(hint));
    }

    /// Records that this key is known in Compose but not supported, and what to do instead.
    pub(super) fn unsupported(&self, hint: &str) {
        self.problems.borrow_mut().add(self.key_place, &self.path, "not supported by Gantry", Some(hint));
    }

    /// Records that no such key exists; suggests the nearest of `known`.
    pub(super) fn unknown(&self, known: &[&str]) {
        let key = self.path.rsplit('.').next().unwrap_or_default();
        let near = known.iter().map(|k| (distance(key, k), *k)).min();
        let hint = match near {
            Some((d, k)) if d <= 2 && d < k.len() => format!("did you mean `{k}`?"),
            _ => format!("known here: {}", known.join(", ")),
        };
        self.problems.borrow_mut().add(self.key_place, &self.path, "unknown key", Some(&hint));
    }

    pub(super) const fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    pub(super) const fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    pub(super) const fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    fn child(&self, entry: &'a Entry) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        let path = format!("{}{dot}{}", self.path, entry.key);
        Self { problems: self.problems, node: &entry.node, path, key_place: entry.place }
    }

    /// The entries of a map, `x-…` extensions left out; an empty value is an empty map.
    pub(super) fn map(&self) -> Vec<(&'a str, Self)> {
        match &self.node.value {
            Value::Map(entries) => {
                let ours = entries.iter().filter(|e| !e.key.starts_with("x-") || e.key == "x-gantry");
                ours.map(|e| (e.key.as_str(), self.child(e))).collect()
            }
            Value::Null => Vec::new(),
            _ => {
                self.problem("a map of `key: value` is expected here");
                Vec::new()
            }
        }
    }

    /// The items of a list; an empty value is an empty list.
    pub(super) fn list(&self) -> Vec<Self> {
        match &self.node.value {
            Value::List(items) => {
                let item = |(i, node): (usize, &'a Node)| Self {
                    problems: self.problems,
                    node,
                    path: format!("{}[{i}]", self.path),
                    key_place: node.place,
                };
                items.iter().enumerate().map(item).collect()
            }
            Value::Null => Vec::new(),
            _ => {
                self.problem("a list is expected here");
                Vec::new()
            }
        }
    }

    /// Any scalar as text.
    pub(super) fn text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, .. } => Some(text),
            _ => {
                self.problem("a plain value is expected here");
                None
            }
        }
    }

    /// Text that must not be empty.
    pub(super) fn word(&self) -> Option<String> {
        let text = self.text()?;
        if text.is_empty() {
            self.problem("must not be empty");
            return None;
        }
        Some(text.to_owned())
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self.text()? {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            other => {
                self.problem(format!("`{other}` is neither true nor false"));
                None
            }
        }
    }

    /// A value whose type says itself what it accepts.
    pub(super) fn parse<T: FromStr<Err: std::fmt::Display>>(&self) -> Option<T> {
        self.text()?.parse().map_err(|error| self.problem(format!("{error}"))).ok()
    }

    /// A whole number from `low` to `high`.
    pub(super) fn number<T>(&self, low: T, high: T) -> Option<T>
    where
        T: FromStr + PartialOrd + Copy + std::fmt::Display,
    {
        let text = self.text()?;
        match text.parse::<T>() {
            Ok(number) if low <= number && number <= high => Some(number),
            _ => {
                self.problem(format!("`{text}` is not a whole number from {low} to {high}"));
                None
            }
        }
    }

    /// Permission bits: `0440`, `"0440"` or `0o440`, always octal.
    pub(super) fn mode(&self) -> Option<u32> {
        let text = self.text()?;
        match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
            Ok(mode) if mode <= 0o7777 => Some(mode),
            _ => {
                self.problem(format!("`{text}` is not an octal mode such as 0440"));
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            self.problem(format!("`{text}` is not one of: {}", words.join(", ")));
        }
        found
    }

    /// A list of texts.
    pub(super) fn texts(&self) -> Vec<String> {
        self.list().iter().filter_map(|item| item.text().map(str::to_owned)).collect()
    }

    /// `{K: V}` or `[K=V]`; a key without value is `None`.
    pub(super) fn pairs(&self, separators: &[char]) -> Vec<(String, Option<String>, Self)> {
        if self.is_map() {
            let value = |item: &Self| if item.is_null() { None } else { item.text().map(str::to_owned) };
            return self.map().into_iter().map(|(key, item)| (key.to_owned(), value(&item), item)).collect();
        }
        let split = |item: Self| {
            let text = item.text()?;
            Some(match text.split_once(separators) {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned()), item),
                None => (text.to_owned(), None, item),
            })
        };
        self.list().into_iter().filter_map(split).collect()
    }
}

/// Edits between two words (insert, delete, replace one character).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_near() {
        for (a, b, want) in [("imgae", "image", 2), ("image", "image", 0), ("port", "ports", 1), ("", "abc", 3)] {
            assert_eq!(distance(a, b), want, "{a} {b}");
        }
    }
}
