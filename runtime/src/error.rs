//! What every failure of the runtime becomes at the edge: a step, what it tried, the cause, and a remedy.
//!
//! It holds text and not a source error, because most failures happen in the container's first process and reach the
//! user through a socket. Modules that can be wrong in a few known ways (configuration, options, the seccomp compiler)
//! have enums of their own, which convert into this.

use std::borrow::Cow;
use std::fmt;
use std::io;

/// A failed step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Name of the step, as in the lists of steps.
    pub step: Cow<'static, str>,
    /// Operation and object.
    pub what: String,
    /// What the kernel or a deeper layer said.
    pub cause: Option<String>,
    /// What the operator can do next.
    pub hint: Option<String>,
    /// Exit code of the command that failed so.
    pub code: u8,
}

/// Exit code for a failure that has none of its own.
pub const FAILED: u8 = 1;
/// Exit code for a program that is there but cannot be executed, as a shell's.
pub const NOT_EXECUTABLE: u8 = 126;
/// Exit code for a program that is not there, as a shell's.
pub const NOT_FOUND: u8 = 127;

/// Result of a step.
pub type Outcome<T> = Result<T, Failure>;

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.step.is_empty() {
            write!(f, "{}: ", self.step)?;
        }
        f.write_str(&on_one_line(&self.what))?;
        match &self.cause {
            Some(cause) => write!(f, ": {}", on_one_line(cause)),
            None => Ok(()),
        }
    }
}

/// An error is one line, whatever a bundle has in its names: nothing in it may look like another message, or move the
/// cursor of a terminal.
pub fn on_one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escape = |letter: char| if letter.is_control() { letter.escape_default().to_string() } else { letter.into() };
    Cow::Owned(text.chars().map(escape).collect())
}

impl Failure {
    /// A failure without a deeper cause.
    pub fn new(what: impl Into<String>) -> Self {
        Self { step: Cow::Borrowed(""), what: what.into(), cause: None, hint: None, code: FAILED }
    }

    /// Name the step, unless a deeper layer did.
    pub fn in_step(mut self, step: &'static str) -> Self {
        if self.step.is_empty() {
            self.step = Cow::Borrowed(step);
        }
        self
    }

    /// Add a remedy.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// End with another exit code.
    pub const fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Bytes for a message to another process of ours.
    pub fn encode(&self) -> Vec<u8> {
        let cause = self.cause.as_deref().unwrap_or("");
        let hint = self.hint.as_deref().unwrap_or("");
        let mut bytes = Vec::with_capacity(self.what.len() + cause.len() + hint.len() + 64);
        for part in [self.step.as_ref(), &self.what, cause, hint] {
            bytes.extend(part.bytes().filter(|&byte| byte != 0));
            bytes.push(0);
        }
        bytes.extend(self.code.to_string().bytes());
        bytes
    }

    /// The reverse of [`Failure::encode`]; parts that are missing are empty.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut parts = bytes.split(|&byte| byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
        let mut next = || parts.next().unwrap_or_default();
        let (step, what, cause, hint) = (next(), next(), next(), next());
        let code = next().parse().unwrap_or(FAILED);
        let some = |text: String| (!text.is_empty()).then_some(text);
        Self { step: Cow::Owned(step), what, cause: some(cause), hint: some(hint), code }
    }
}

/// Say what failed, keeping the cause.
pub trait Because<T> {
    /// Turn the error into a [`Failure`] whose cause it is.
    ///
    /// # Errors
    /// The error it was called on, described.
    fn because(self, what: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: fmt::Display> Because<T> for Result<T, E> {
    fn because(self, what: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|cause| Failure {
            step: Cow::Borrowed(""),
            what: what(),
            cause: Some(in_words(cause.to_string())),
            hint: None,
            code: FAILED,
        })
    }
}

/// The kernel's word as runc and the clients that look for it write it: `no such file or directory`, not
/// `No such file or directory (os error 2)`.
pub fn in_words(mut cause: String) -> String {
    let Some(end) = cause.rfind(" (os error ").filter(|_| cause.ends_with(')')) else { return cause };
    cause.truncate(end);
    let word = cause.rfind(": ").map_or(0, |colon| colon + 2);
    let second = cause[word..].chars().nth(1);
    if second.is_some_and(|letter| !letter.is_uppercase())
        && let Some(first) = cause.get_mut(word..word + 1)
    {
        first.make_ascii_lowercase(); // but not the first of an abbreviation
    }
    cause
}

/// Name the step of a failure on its way up.
pub trait InStep<T> {
    /// See [`Failure::in_step`].
    ///
    /// # Errors
    /// The same failure with its step named.
    fn in_step(self, step: &'static str) -> Outcome<T>;
    /// See [`Failure::hint`].
    ///
    /// # Errors
    /// The same failure with a remedy.
    fn or_hint(self, hint: &str) -> Outcome<T>;
}

impl<T> InStep<T> for Outcome<T> {
    fn in_step(self, step: &'static str) -> Self {
        self.map_err(|failure| failure.in_step(step))
    }

    fn or_hint(self, hint: &str) -> Self {
        self.map_err(|failure| failure.hint(hint))
    }
}

/// Whether an I/O error says that the object is not there.
pub fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_speaks_in_small_letters() {
        for (said, words) in [
            ("No such file or directory (os error 2)", "no such file or directory"),
            ("step: Permission denied (os error 13)", "step: permission denied"),
            ("RFS specific error (os error 77)", "RFS specific error"),
            ("Other (os error 1", "Other (os error 1"),
            ("é (os error 1)", "é"),
            ("X", "X"),
        ] {
            assert_eq!(in_words(said.into()), words);
        }
        let failed: Outcome<()> = Err(io::Error::from_raw_os_error(2)).because(|| "cannot open `/x`".into());
        assert_eq!(failed.unwrap_err().to_string(), "cannot open `/x`: no such file or directory");
    }

    #[test]
    fn a_failure_survives_the_socket() {
        let failure = Failure {
            step: Cow::Borrowed("mounts"),
            what: "cannot mount `/proc`".into(),
            cause: Some("denied".into()),
            hint: Some("run as root".into()),
            code: NOT_FOUND,
        };
        assert_eq!(Failure::decode(&failure.encode()), failure);
        assert_eq!(failure.to_string(), "mounts: cannot mount `/proc`: denied");
        let bare = Failure::new("x");
        assert_eq!(Failure::decode(&bare.encode()), bare);
        assert_eq!(Failure::decode(b""), Failure::new(""));
    }
}
