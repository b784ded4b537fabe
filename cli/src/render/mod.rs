//! What people read. Functions from values to text; only `out` and `progress` touch a terminal.

pub(crate) mod apps;
pub(crate) mod events;
pub(crate) mod logs;
pub(crate) mod nodes;
pub(crate) mod out;
pub(crate) mod plan;
pub(crate) mod progress;
pub(crate) mod replicas;
pub(crate) mod style;
pub(crate) mod table;
pub(crate) mod time;

#[cfg(test)]
pub(crate) mod samples;

/// Text of others (a health check's output, an image's error) as one line that cannot steer the terminal.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

/// Characters of a status in a table: all of it would push the columns behind it off the screen.
const STATUS_SHOWN: usize = 60;

/// A status as a table has room for it, with `…` for the rest; JSON and `inspect` tell all of it.
pub(crate) fn brief(text: &str) -> String {
    match text.char_indices().nth(STATUS_SHOWN) {
        None => text.to_owned(),
        Some(_) => text.chars().take(STATUS_SHOWN - 1).chain(['…']).collect(),
    }
}

/// `1 service`, `2 services`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_cannot_steer_the_terminal() {
        assert_eq!(one_line("two\nlines\r\n \x1b[2Jgone\u{9b}x"), "two lines [2Jgone x");
        assert_eq!(one_line(""), "");
    }

    #[test]
    fn a_long_status_is_cut_at_a_character() {
        assert_eq!(brief("Up 2 minutes"), "Up 2 minutes");
        assert_eq!(brief(&"é".repeat(60)), "é".repeat(60));
        assert_eq!(brief(&"é".repeat(61)), format!("{}…", "é".repeat(59)));
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(count(1, "node"), "1 node");
        assert_eq!(count(0, "node"), "0 nodes");
    }
}
