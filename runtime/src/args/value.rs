//! The value of an option, read as what it must be.

use super::{Name, UsageError};
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

/// What stood after an option, and the option for the message.
#[derive(Debug)]
pub struct Value {
    option: Name,
    text: Option<OsString>,
}

/// Text, which every value but a path is.
///
/// # Errors
/// It is not UTF-8.
pub fn utf8(text: OsString) -> Result<String, UsageError> {
    text.into_string().map_err(|text| UsageError::new(format!("`{}` is not valid UTF-8", text.to_string_lossy())))
}

impl Value {
    /// What was written after an option.
    pub fn new(option: &Name, text: Option<OsString>) -> Self {
        Self { option: option.clone(), text }
    }

    /// As text.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn text(&self) -> Result<String, UsageError> {
        utf8(self.text.clone().unwrap_or_default())
    }

    /// As a path from here: a supervisor changes its directory.
    ///
    /// # Errors
    /// It is empty.
    pub fn path(&self) -> Result<PathBuf, UsageError> {
        let text = self.text.clone().unwrap_or_default();
        std::path::absolute(&text)
            .map_err(|error| UsageError::new(format!("{}: `{}`: {error}", self.option, text.to_string_lossy())))
    }

    /// As a number.
    ///
    /// # Errors
    /// It is none, or outside of the type.
    pub fn number<T: FromStr>(&self) -> Result<T, UsageError> {
        let text = self.text()?;
        text.parse().map_err(|_| self.wrong("a number", &text))
    }

    /// As a switch: alone it is on, and `=false` turns it off.
    ///
    /// # Errors
    /// Anything else after `=`.
    pub fn on(&self) -> Result<bool, UsageError> {
        if self.text.is_none() {
            return Ok(true);
        }
        let text = self.text()?;
        match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(self.wrong("true or false", &text)),
        }
    }

    /// As one of a few words.
    ///
    /// # Errors
    /// Another word.
    pub fn one_of(&self, words: &'static [&'static str]) -> Result<&'static str, UsageError> {
        let text = self.text()?;
        words.iter().copied().find(|word| *word == text).ok_or_else(|| self.wrong(&words.join(" or "), &text))
    }

    /// As `UID[:GID]`, strictly: a name or a missing number is never taken for root.
    ///
    /// # Errors
    /// Anything else.
    pub fn user(&self) -> Result<(u32, Option<u32>), UsageError> {
        let text = self.text()?;
        let wrong = || self.wrong("UID or UID:GID in numbers", &text);
        let id = |text: &str| -> Result<u32, UsageError> {
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(wrong());
            }
            text.parse::<u32>().ok().filter(|&id| id != u32::MAX).ok_or_else(wrong)
        };
        match text.split_once(':') {
            None => Ok((id(&text)?, None)),
            Some((uid, gid)) => Ok((id(uid)?, Some(id(gid)?))),
        }
    }

    /// The error for a value that is not what the option takes.
    pub fn wrong(&self, takes: &str, text: &str) -> UsageError {
        UsageError::new(format!("{} takes {takes}, not `{text}`", self.option))
    }
}
