//! `${VAR}` in values, as the Compose Specification has it ("Interpolation").
//!
//! `$VAR`, `${VAR}`, `${VAR:-default}`, `${VAR-default}`, `${VAR:?message}`, `${VAR?message}`, `${VAR:+other}`,
//! `${VAR+other}`; `$$` is one dollar sign; defaults may hold further variables.

/// A variable by name; `None` when it is not set.
pub(super) type Vars<'v> = &'v dyn Fn(&str) -> Option<String>;

/// What came out: the text, and the variables that were used without being set.
#[derive(Debug, PartialEq)]
pub(super) struct Interpolated {
    pub(super) text: String,
    pub(super) unset: Vec<String>,
}

/// Replaces the variables of `text`.
///
/// # Errors
/// Malformed, or a required variable is not set: a message for a person.
pub(super) fn interpolate(text: &str, vars: Vars<'_>) -> Result<Interpolated, String> {
    let mut out = Interpolated { text: String::new(), unset: Vec::new() };
    expand(text, vars, &mut out, 0)?;
    Ok(out)
}

const DEPTH_MAX: usize = 16;

fn expand(text: &str, vars: Vars<'_>, out: &mut Interpolated, depth: usize) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("defaults nested deeper than {DEPTH_MAX} levels"));
    }
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.text.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.text.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing(after).ok_or_else(|| format!("`${{{after}` has no closing brace"))?;
            braced(&after[..end], vars, out, depth)?;
            rest = &after[end + 1..];
        } else {
            let end = name_end(rest);
            if end == 0 {
                return Err(format!("`${rest}` names no variable; write `$$` for a dollar sign"));
            }
            plain(&rest[..end], vars, out);
            rest = &rest[end..];
        }
    }
    out.text.push_str(rest);
    Ok(())
}

/// Where the brace that is already open closes.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    let mut before = '\0';
    for (at, c) in text.char_indices() {
        match c {
            '{' if before == '$' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(at);
        }
        before = c;
    }
    None
}

fn name_end(text: &str) -> usize {
    let letter = |(at, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit());
    text.char_indices().find(|&pair| !letter(pair)).map_or(text.len(), |(at, _)| at)
}

fn plain(name: &str, vars: Vars<'_>, out: &mut Interpolated) {
    match vars(name) {
        Some(value) => out.text.push_str(&value),
        None => out.unset.push(name.to_owned()),
    }
}

fn braced(inner: &str, vars: Vars<'_>, out: &mut Interpolated, depth: usize) -> Result<(), String> {
    let end = name_end(inner);
    let (name, operation) = inner.split_at(end);
    if name.is_empty() {
        return Err(format!("`${{{inner}}}` names no variable"));
    }
    if operation.is_empty() {
        plain(name, vars, out);
        return Ok(());
    }
    let (strict, operation) = match operation.strip_prefix(':') {
        Some(rest) => (true, rest),
        None => (false, operation),
    };
    let value = vars(name).filter(|value| !strict || !value.is_empty());
    let mut symbols = operation.chars();
    match (symbols.next(), value) {
        (Some('-' | '?'), Some(value)) => out.text.push_str(&value),
        (Some('-'), None) | (Some('+'), Some(_)) => expand(symbols.as_str(), vars, out, depth + 1)?,
        (Some('+'), None) => {}
        (Some('?'), None) => {
            let mut why = Interpolated { text: String::new(), unset: Vec::new() };
            expand(symbols.as_str(), vars, &mut why, depth + 1)?;
            let why = if why.text.is_empty() { String::new() } else { format!(": {}", why.text) };
            return Err(format!("required variable `{name}` is not set{why}"));
        }
        _ => return Err(format!("`${{{inner}}}`: after the name only :- - :? ? :+ + may follow")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_as_compose_does() {
        let vars = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, want) in [
            ("no variable", Ok("no variable")),
            ("$A-${A}", Ok("a-a")),
            ("$$A", Ok("$A")),
            ("$A_B.", Ok(".")),
            ("${X:-d}", Ok("d")),
            ("${EMPTY:-d}", Ok("d")),
            ("${EMPTY-d}", Ok("")),
            ("${X-${A}b}", Ok("ab")),
            ("${A:+yes}${X:+no}", Ok("yes")),
            ("${X+x}", Ok("")),
            ("${A:?needed}", Ok("a")),
            ("${X:?set $A}", Err("required variable `X` is not set: set a")),
            ("${X?}", Err("required variable `X` is not set")),
            ("${", Err("`${` has no closing brace")),
            ("${}", Err("`${}` names no variable")),
            ("$1", Err("`$1` names no variable; write `$$` for a dollar sign")),
            ("${A!}", Err("`${A!}`: after the name only :- - :? ? :+ + may follow")),
        ] {
            let got = interpolate(text, &vars).map(|out| out.text);
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{text}");
        }
    }

    #[test]
    fn unset_variables_are_told() {
        let out = interpolate("$X ${Y} ${Z-}", &|_| None).unwrap();
        assert_eq!(out, Interpolated { text: "  ".to_owned(), unset: vec!["X".to_owned(), "Y".to_owned()] });
    }
}
