//! Colour, where it is wanted.

use std::io::IsTerminal;

/// Whether output is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Text alone: a pipe, a file, `NO_COLOR` or `TERM=dumb`.
    Plain,
    /// ANSI colours.
    Colour,
}

/// The colours we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    /// Removed.
    Red,
    /// Created.
    Green,
    /// Changed.
    Yellow,
    /// The n-th of a row of things that are told apart by colour.
    Nth(usize),
}

/// Cyan, yellow, green, magenta, blue, then their bright forms: red is kept for what went wrong.
const NTH_CODES: [u8; 10] = [36, 33, 32, 35, 34, 96, 93, 92, 95, 94];

impl Style {
    /// For standard output.
    pub(crate) fn stdout() -> Self {
        Self::here(std::io::stdout().is_terminal())
    }

    /// For standard error.
    pub(crate) fn stderr() -> Self {
        Self::here(std::io::stderr().is_terminal())
    }

    fn here(terminal: bool) -> Self {
        Self::of(
            terminal,
            std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()),
            std::env::var_os("TERM").is_some_and(|term| term == "dumb"),
        )
    }

    const fn of(terminal: bool, no_color: bool, dumb: bool) -> Self {
        if terminal && !no_color && !dumb { Self::Colour } else { Self::Plain }
    }

    /// `text` in a colour.
    pub(crate) fn paint(self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Red => 31,
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Nth(n) => NTH_CODES[n % NTH_CODES.len()],
        };
        match self {
            Self::Plain => text.to_owned(),
            Self::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_that_want_it() {
        for (terminal, no_color, dumb, want) in [
            (true, false, false, Style::Colour),
            (false, false, false, Style::Plain),
            (true, true, false, Style::Plain),
            (true, false, true, Style::Plain),
        ] {
            assert_eq!(Style::of(terminal, no_color, dumb), want);
        }
        assert_eq!(Style::Colour.paint(Colour::Red, "x"), "\x1b[31mx\x1b[0m");
        assert_eq!(Style::Colour.paint(Colour::Nth(10), "x"), Style::Colour.paint(Colour::Nth(0), "x"));
        assert_eq!(Style::Plain.paint(Colour::Red, "x"), "x");
    }
}
