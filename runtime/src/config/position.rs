//! Where in a JSON text an error is: from the line and column that the parser gives to a path such as `mounts[3].type`.
//!
//! Only looked at when parsing has failed, so that good input pays nothing for it.

/// The path of the value at a place, as `a.b[2].c`; empty for the whole document.
///
/// - `line`, `column`: from 1, as `serde_json` counts them; the column is in bytes, and 0 means the end of the line before.
pub fn path_at(text: &[u8], line: usize, column: usize) -> String {
    let mut offset = 0;
    for _ in 1..line {
        match text[offset..].iter().position(|&byte| byte == b'\n') {
            Some(at) => offset += at + 1,
            None => break,
        }
    }
    let end = (offset + column).min(text.len());
    path_of(&text[..end])
}

/// An open object or array.
enum Level {
    Object { key: Option<String> },
    Array { index: usize },
}

/// The path of the last value that begins in a text.
fn path_of(text: &[u8]) -> String {
    let mut levels: Vec<Level> = Vec::new();
    let mut at = 0;
    // Inside an object, whether a string is the name of a member.
    let mut expects_key = false;
    while at < text.len() {
        match text[at] {
            b'{' => {
                levels.push(Level::Object { key: None });
                expects_key = true;
            }
            b'[' if at + 1 < text.len() => {
                levels.push(Level::Array { index: 0 });
                expects_key = false;
            }
            // The closing bracket may be where the parser noticed what is wrong with the value it closes.
            b'}' | b']' if at + 1 < text.len() => {
                levels.pop();
                expects_key = false;
            }
            b',' if at + 1 < text.len() => match levels.last_mut() {
                Some(Level::Array { index }) => *index += 1,
                Some(Level::Object { key }) => {
                    *key = None;
                    expects_key = true;
                }
                None => {}
            },
            b'"' => {
                let start = at + 1;
                at = end_of_string(text, start);
                if expects_key && let Some(Level::Object { key }) = levels.last_mut() {
                    *key = Some(String::from_utf8_lossy(&text[start..at]).into_owned());
                    expects_key = false;
                }
            }
            _ => {}
        }
        at += 1;
    }
    let mut path = String::new();
    for level in &levels {
        match level {
            Level::Object { key: Some(key) } => {
                if !path.is_empty() {
                    path.push('.');
                }
                path += key;
            }
            Level::Object { key: None } => {}
            Level::Array { index } => path += &format!("[{index}]"),
        }
    }
    path
}

/// The closing quote of a string, or the end of the text.
fn end_of_string(text: &[u8], mut at: usize) -> usize {
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at.min(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn errors_are_at_the_path_of_their_value() {
        for (text, want) in [
            (r#"{"process": {"args": "sh"}}"#, "process.args"),
            (r#"{"process": {"args": ["sh", 3]}}"#, "process.args[1]"),
            (r#"{"process": {"cwd": "/", "user": {"uid": -1}}, "root": {}}"#, "process.user.uid"),
            (r#"{"process": {"cwd": "/", "user": {"uid": 1.5}}}"#, "process.user.uid"),
            (r#"{"mounts": [{"destination": "/a"}, {"destination": "/b", "options": {"a": 1}}]}"#, "mounts[1].options"),
            (r#"{"mounts": [{"destination": "/a"}, 7]}"#, "mounts[1]"),
            ("{\"linux\": {\n  \"sysctl\": {\"a\\\"b\": \"1\",\n \"c\": 5}}}", "linux.sysctl.c"),
            (r#"{"process": {"consoleSize": {"height": 70000}}}"#, "process.consoleSize.height"),
            (r#"{"root": true}"#, "root"),
            (r#"{"hostname": null, "root": {"readonly": "yes"}}"#, "root.readonly"),
            ("[1]", "[0]"),
            ("", ""),
        ] {
            let error = serde_json::from_slice::<Config>(text.as_bytes()).expect_err(text);
            assert_eq!(path_at(text.as_bytes(), error.line(), error.column()), want, "{text}: {error}");
        }
    }

    #[test]
    fn any_place_in_any_text_is_harmless() {
        let text = br#"{"a": [1, {"b\\\"": "x\\"}, "\"], "c": {}}}]]"#;
        for end in 0..text.len() {
            for line in 0..3 {
                path_at(&text[..end], line, end + 3);
            }
        }
    }
}
