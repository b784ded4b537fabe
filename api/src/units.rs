//! Quantities with their unit in the type, and how people write them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A quantity that could not be read; says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not {wanted}")]
pub struct UnitError {
    /// The text as given.
    pub given: String,
    /// What would have been accepted, with an example.
    pub wanted: &'static str,
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

const BYTES_WANTED: &str = "a size such as `512m`, `1.5g` or `1048576`";

impl FromStr for Bytes {
    type Err = UnitError;

    /// Docker's and Compose's sizes: a number, then `b`, `k`/`kb`, `m`/`mb`, `g`/`gb` or `t`/`tb`, powers of 1024.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError { given: text.to_owned(), wanted: BYTES_WANTED };
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
        let (number, unit) = lower.split_at(digits);
        let shift = match unit.trim() {
            "" | "b" => 0,
            "k" | "kb" | "ki" | "kib" => 10,
            "m" | "mb" | "mi" | "mib" => 20,
            "g" | "gb" | "gi" | "gib" => 30,
            "t" | "tb" | "ti" | "tib" => 40,
            _ => return Err(error()),
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(1 << shift).map(Self).ok_or_else(error);
        }
        let value = number.parse::<f64>().map_err(|_| error())? * (1u64 << shift) as f64;
        if value.is_finite() && (0.0..9.0e18).contains(&value) { Ok(Self(value as u64)) } else { Err(error()) }
    }
}

impl fmt::Display for Bytes {
    /// Largest binary unit with at most one decimal: `1.5GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < units.len() {
            value /= 1024.0;
            unit += 1;
        }
        if unit == 0 || value >= 100.0 || value.fract() < 0.05 {
            write!(f, "{value:.0}{}", units[unit])
        } else {
            write!(f, "{value:.1}{}", units[unit])
        }
    }
}

/// Thousandths of one processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MilliCpu(pub u32);

impl FromStr for MilliCpu {
    type Err = UnitError;

    /// Processors as a decimal number (`0.5`, `2`), as Compose's `cpus`.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError { given: text.to_owned(), wanted: "a number of processors such as `0.5` or `2`" };
        let value: f64 = text.trim().parse().map_err(|_| error())?;
        let milli = (value * 1000.0).round();
        if (0.0..=4_000_000_000.0).contains(&milli) { Ok(Self(milli as u32)) } else { Err(error()) }
    }
}

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 1000.0)
    }
}

/// A span of time in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// The same span for `std`.
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl FromStr for Millis {
    type Err = UnitError;

    /// Compose's durations: `1h30m`, `10s`, `500ms`, `100us`; parts added up, sub-millisecond parts rounded up.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError { given: text.to_owned(), wanted: "a duration such as `30s`, `1m30s` or `500ms`" };
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(Self(0));
        }
        let mut micros = 0f64;
        if rest.is_empty() {
            return Err(error());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
            let number: f64 = rest[..digits].parse().map_err(|_| error())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let scale = match &rest[..letters] {
                "h" => 3.6e9,
                "m" => 6e7,
                "s" => 1e6,
                "ms" => 1e3,
                "us" | "µs" => 1.0,
                _ => return Err(error()),
            };
            micros += number * scale;
            rest = &rest[letters..];
        }
        let millis = (micros / 1000.0).ceil();
        if millis <= 1e15 { Ok(Self(millis as u64)) } else { Err(error()) }
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms @ 0..1000 => write!(f, "{ms}ms"),
            ms if ms < 60_000 && ms % 1000 != 0 => write!(f, "{:.1}s", ms as f64 / 1000.0),
            ms => {
                let s = ms / 1000;
                let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
                if h > 0 {
                    write!(f, "{h}h")?;
                }
                if m > 0 {
                    write!(f, "{m}m")?;
                }
                if s > 0 || (h == 0 && m == 0) {
                    write!(f, "{s}s")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, want) in [
            ("0", Some(0)),
            ("1048576", Some(1 << 20)),
            ("64k", Some(65536)),
            ("512M", Some(512 << 20)),
            ("1.5g", Some(3 << 29)),
            ("2GB", Some(2 << 30)),
            ("100b", Some(100)),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1x", None),
            ("999999999999t", None),
        ] {
            assert_eq!(text.parse::<Bytes>().ok().map(|b| b.0), want, "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        for (bytes, want) in [(0, "0B"), (1023, "1023B"), (1 << 20, "1MiB"), (3 << 29, "1.5GiB"), (150 << 20, "150MiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), want);
        }
    }

    #[test]
    fn durations_are_read_and_shown() {
        for (text, want, shown) in [
            ("30s", Some(30_000), "30s"),
            ("1m30s", Some(90_000), "1m30s"),
            ("500ms", Some(500), "500ms"),
            ("1.5s", Some(1500), "1.5s"),
            ("1h", Some(3_600_000), "1h"),
            ("10us", Some(1), "1ms"),
            ("0", Some(0), "0ms"),
            ("10", None, ""),
            ("s", None, ""),
            ("1d", None, ""),
            ("", None, ""),
        ] {
            let parsed = text.parse::<Millis>().ok();
            assert_eq!(parsed.map(|m| m.0), want, "{text}");
            if let Some(parsed) = parsed {
                assert_eq!(parsed.to_string(), shown, "{text}");
            }
        }
    }

    #[test]
    fn processors_are_thousandths() {
        for (text, want) in [("0.5", Some(500)), ("2", Some(2000)), ("0.001", Some(1)), ("-1", None), ("two", None)] {
            assert_eq!(text.parse::<MilliCpu>().ok().map(|c| c.0), want, "{text}");
        }
    }
}
