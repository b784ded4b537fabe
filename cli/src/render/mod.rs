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
    fn one_is_singular() {
        assert_eq!(count(1, "node"), "1 node");
        assert_eq!(count(0, "node"), "0 nodes");
    }
}
