//! From text to structures, with errors that name the place as a JSON path.
//!
//! serde knows where in the text it stopped, but not what is there; the way to that place is read again, after a failure
//! only, so that a good configuration pays nothing for it.

use crate::error::{Failure, Outcome};
use serde::Deserializer;
use serde::de::{DeserializeOwned, Error, Visitor};
use std::fmt::Write;

/// Read JSON.
///
/// - `name`: of the file, for the error.
///
/// # Errors
/// It is not JSON, or a value is of another type than the specification gives it; named by its path.
pub fn read<T: DeserializeOwned>(text: &[u8], name: &str) -> Outcome<T> {
    serde_json::from_slice(text).map_err(|error| {
        let words = error.to_string();
        // An array or object is looked at and left, other values are read.
        let left = words.starts_with("invalid type: sequence") || words.starts_with("invalid type: map");
        let path = path_at(text, error.line(), error.column() + usize::from(left));
        Failure {
            cause: Some(format!("{path}: {}", in_plain_words(&words))),
            ..Failure::new(format!("cannot understand `{name}`"))
        }
        .hint("it must be JSON as the OCI runtime specification defines it")
    })
}

/// One step of a path.
enum Step {
    Key(String),
    /// `None` before the first entry.
    Index(Option<usize>),
}

/// The path of what stands at the end of the first `column` bytes of a line.
fn path_at(text: &[u8], line: usize, column: usize) -> String {
    let start = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let start = std::iter::once(0).chain(start).nth(line.saturating_sub(1)).unwrap_or(0);
    let end = text.len().min(start + column);
    let mut steps: Vec<Step> = Vec::new();
    let (mut at, mut key_comes) = (0, false);
    while at < end {
        let byte = text[at];
        at += 1;
        if byte.is_ascii_whitespace() {
            continue;
        }
        if let Some(Step::Index(index @ None)) = steps.last_mut()
            && byte != b']'
        {
            *index = Some(0);
        }
        match byte {
            b'{' => {
                steps.push(Step::Key(String::new()));
                key_comes = true;
            }
            b'[' => steps.push(Step::Index(None)),
            b'}' | b']' => drop(steps.pop()),
            b',' => match steps.last_mut() {
                Some(Step::Index(index)) => *index = index.map(|index| index + 1),
                Some(Step::Key(key)) => {
                    key.clear();
                    key_comes = true;
                }
                None => {}
            },
            b'"' => {
                let begin = at;
                while at < end && text[at] != b'"' {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
                let word = String::from_utf8_lossy(&text[begin..at.min(end)]).into_owned();
                at += 1;
                if let (Some(Step::Key(key)), true) = (steps.last_mut(), key_comes) {
                    *key = word;
                    key_comes = false;
                }
            }
            _ => {}
        }
    }
    steps.iter().fold("$".to_owned(), |mut path, step| {
        let _ = match step {
            Step::Key(key) if !key.is_empty() => write!(path, ".{}", key.escape_debug()),
            Step::Index(Some(index)) => write!(path, "[{index}]"),
            _ => Ok(()),
        };
        path
    })
}

/// serde's words, less those that only mean something in this program.
fn in_plain_words(text: &str) -> String {
    const TYPES: [(&str, &str); 12] = [
        ("expected u8", "expected a whole number from 0 to 255"),
        ("expected u16", "expected a whole number from 0 to 65535"),
        ("expected u32", "expected a whole number from 0 to 4294967295"),
        ("expected u64", "expected a whole number from 0 to 18446744073709551615"),
        ("expected i32", "expected a whole number from -2147483648 to 2147483647"),
        ("expected i64", "expected a whole number from -9223372036854775808 to 9223372036854775807"),
        ("expected usize", "expected a whole number from 0 up"),
        ("expected a sequence", "expected an array"),
        ("expected a map", "expected an object"),
        ("expected a boolean", "expected true or false"),
        ("invalid type: sequence", "invalid type: an array"),
        ("invalid type: map", "invalid type: an object"),
    ];
    let mut text = text.to_owned();
    if let Some((before, after)) = text.split_once("expected struct ") {
        let rest = after.find(|letter: char| !letter.is_alphanumeric()).map_or("", |end| &after[end..]);
        text = format!("{before}expected an object{rest}");
    }
    for (theirs, ours) in TYPES {
        // Whole words: `expected u8` is not the beginning of another.
        if let Some((before, after)) = text.rsplit_once(theirs)
            && !after.starts_with(|letter: char| letter.is_alphanumeric())
        {
            text = format!("{before}{ours}{after}");
        }
    }
    text
}

/// For structures, which serde would also read from an array, value by value.
pub(super) struct ObjectOnly<D>(pub(super) D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for ObjectOnly<D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_map(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("not a structure"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_wrong_type_is_named_by_its_path() {
        for (text, wanted) in [
            (r#"{"process": {"args": "sh"}}"#, r#"$.process.args: invalid type: string "sh", expected an array"#),
            (r#"{"process": {"args": ["a", 5]}}"#, "$.process.args[1]: invalid type: integer `5`, expected a string"),
            (r#"{"process": {"args": [[]]}}"#, "$.process.args[0]: invalid type: an array, expected a string"),
            ("{\n\"mounts\": [{}, {\"destination\":\n {}}]}", "$.mounts[1].destination: invalid type: an object"),
            (r#"{"root": []}"#, "$.root: invalid type: an array, expected an object"),
            (r#"{"linux": {"resources": [1]}}"#, "$.linux.resources: invalid type: an array, expected an object"),
            (r#"{"mounts": [[]]}"#, "$.mounts[0]: invalid type: an array, expected an object"),
            (
                r#"{"process": {"user": {"uid": -1}}}"#,
                "$.process.user.uid: invalid value: integer `-1`, expected a whole",
            ),
            (r#"{"process": {"user": {"uid": 4294967296}}}"#, "from 0 to 4294967295"),
            (r#"{"process": {"user": {"uid": 1.5}}}"#, "$.process.user.uid: invalid type: floating point `1.5`"),
            (
                r#"{"process": {"terminal": "yes"}}"#,
                r#"$.process.terminal: invalid type: string "yes", expected true or"#,
            ),
            (r#"{"annotations": {"a.b": 1}}"#, "$.annotations.a.b: invalid type: integer `1`, expected a string"),
            (r#"{"root": {}, "root": {}}"#, "$.root: duplicate field `root`"),
            (r#"{"hostname": "a", "process": {"args": ["x\"]", }"#, "$.process.args"),
            (r#"{"hostname": "a\nb", "mounts": {}}"#, "$.mounts: invalid type: an object, expected an array"),
            ("[]", "$: invalid type: an array, expected an object"),
            ("", "$: EOF while parsing a value"),
            ("{", "$: EOF while parsing an object"),
        ] {
            let error = read::<Config>(text.as_bytes(), "config.json").expect_err(text).to_string();
            assert!(
                error.starts_with("cannot understand `config.json`: $") && error.contains(wanted),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn deep_nesting_and_broken_bytes_are_errors() {
        let deep = "[".repeat(100_000);
        for text in [deep.as_bytes(), b"{\"hostname\": \"\xff\"}", b"{\"\xff\xfe", b"\"\\", b"\xef\xbb\xbf{}"] {
            let error = read::<Config>(text, "x").expect_err("not JSON").to_string();
            assert!(error.contains("`x`: $"), "{error}");
        }
    }
}
