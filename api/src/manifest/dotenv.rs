//! `.env` and `env_file`: one `KEY=VALUE` per line, as the Compose Specification has it.

use super::interpolate::{Vars, interpolate};

/// The pairs of `text` in order; a later one of the same name wins.
///
/// Single quotes keep a value as it is; double quotes allow `\n \t \r \" \\` and variables; without quotes a ` #`
/// begins a comment and variables are replaced. `export ` before a name is skipped. A name without `=` takes the
/// variable of that name from `vars`, when set.
///
/// # Errors
/// Line from 1 and what is wrong with it.
pub(super) fn parse(text: &str, vars: Vars<'_>) -> Result<Vec<(String, String)>, (usize, String)> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fail = |what: String| (index + 1, what);
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(value.trim())),
            None => (line, None),
        };
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '"' || c == '\'') {
            return Err(fail(format!("`{line}` is not KEY=VALUE")));
        }
        let Some(value) = value else {
            pairs.extend(vars(name).map(|value| (name.to_owned(), value)));
            continue;
        };
        let known = |wanted: &str| {
            vars(wanted).or_else(|| pairs.iter().rev().find(|(name, _)| name == wanted).map(|(_, v)| v.clone()))
        };
        let value = unquote(value, &known).map_err(fail)?;
        pairs.push((name.to_owned(), value));
    }
    Ok(pairs)
}

fn unquote(value: &str, vars: Vars<'_>) -> Result<String, String> {
    if let Some(rest) = value.strip_prefix('\'') {
        let (inner, after) = rest.split_once('\'').ok_or("a quote is not closed")?;
        return comment_only(after).map(|()| inner.to_owned());
    }
    if let Some(rest) = value.strip_prefix('"') {
        let end = double_end(rest).ok_or("a quote is not closed")?;
        comment_only(&rest[end + 1..])?;
        return Ok(unescape(&interpolate(&rest[..end], vars)?.text));
    }
    let end = value.find(" #").unwrap_or(value.len());
    Ok(interpolate(value[..end].trim_end(), vars)?.text)
}

fn comment_only(after: &str) -> Result<(), String> {
    let after = after.trim_start();
    if after.is_empty() || after.starts_with('#') { Ok(()) } else { Err(format!("`{after}` follows a closed quote")) }
}

fn double_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some(other) => out.push(other),
                None => out.push('\\'),
            },
            (c, false) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_compose_does() {
        let vars = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        for (text, want) in [
            ("A=1\n# c\n\nB = two ", Ok(vec![("A", "1"), ("B", "two")])),
            ("A=x # c\nB='x # $HOME'\nC=\"a\\n$HOME\"", Ok(vec![("A", "x"), ("B", "x # $HOME"), ("C", "a\n/root")])),
            ("export A=1\nB=$A", Ok(vec![("A", "1"), ("B", "1")])),
            ("HOME\nNOPE", Ok(vec![("HOME", "/root")])),
            ("A=\"x", Err((1, "a quote is not closed".to_owned()))),
            ("X=1\n=1", Err((2, "`=1` is not KEY=VALUE".to_owned()))),
            ("A='x'y", Err((1, "`y` follows a closed quote".to_owned()))),
        ] {
            let want = want.map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
            assert_eq!(parse(text, &vars), want, "{text}");
        }
    }
}
