//! For which machines an image is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ImageError;

/// Operating system, processor and variant, in the words of the OCI image specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Such as `linux`.
    pub os: String,
    /// Such as `amd64` or `arm64`.
    pub architecture: String,
    /// Such as `v8` of `arm64`; `v2` and `v3` of `amd64` are levels of the instruction set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", Some(format!("v{}", x86_level()))),
            "aarch64" => ("arm64", Some("v8".to_owned())),
            "arm" => ("arm", Some("v7".to_owned())),
            "x86" => ("386", None),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant }
    }

    /// How well an image for `self` runs on `host`: `None` is not at all, more is better.
    pub(crate) fn fits(&self, host: &Self) -> Option<u32> {
        if self.os != host.os || self.architecture != host.architecture {
            return None;
        }
        // An image that does not say needs the least; a wish that does not say means what is common.
        let (least, common) = match self.architecture.as_str() {
            "arm64" => (8, 8),
            "arm" => (5, 7),
            _ => (1, 1),
        };
        let level = self.level().unwrap_or(least);
        (level <= host.level().unwrap_or(common)).then_some(level)
    }

    /// Variants in order: `v2` needs more of the processor than `v1`.
    fn level(&self) -> Option<u32> {
        self.variant.as_deref()?.strip_prefix('v')?.split('.').next()?.parse().ok()
    }
}

/// The level of the x86-64 psABI that this processor has; the features checked are those that set it apart.
#[cfg(target_arch = "x86_64")]
fn x86_level() -> u32 {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("cmpxchg16b") && has!("popcnt") && has!("sse4.2") && has!("ssse3");
    let v3 = v2 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("fma") && has!("lzcnt") && has!("movbe");
    let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    1 + u32::from(v2) + u32::from(v3) + u32::from(v4)
}

#[cfg(not(target_arch = "x86_64"))]
fn x86_level() -> u32 {
    1
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let mut parts = text.split('/').map(str::to_owned);
        let (os, architecture, variant, rest) = (parts.next(), parts.next(), parts.next(), parts.next());
        match (os, architecture, variant, rest) {
            (Some(os), Some(architecture), variant, None)
                if !os.is_empty() && !architecture.is_empty() && variant.as_deref() != Some("") =>
            {
                let architecture = match architecture.as_str() {
                    "x86_64" => "amd64".to_owned(),
                    "aarch64" => "arm64".to_owned(),
                    _ => architecture,
                };
                Ok(Self { os, architecture, variant })
            }
            _ => Err(ImageError::BadOption {
                field: "platform",
                value: text.to_owned(),
                why: "write OS/ARCHITECTURE[/VARIANT], for instance linux/arm64".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn a_lower_variant_runs_a_higher_one_does_not() {
        for (image, host, fits) in [
            ("linux/amd64", "linux/amd64/v3", Some(1)),
            ("linux/amd64/v3", "linux/amd64/v3", Some(3)),
            ("linux/amd64/v4", "linux/amd64/v3", None),
            ("linux/arm64", "linux/arm64/v8", Some(8)),
            ("linux/arm64/v8", "linux/arm64", Some(8)),
            ("linux/arm/v6", "linux/arm/v7", Some(6)),
            ("linux/arm/v7", "linux/arm/v6", None),
            ("linux/arm/v7", "linux/arm", Some(7)),
            ("linux/arm", "linux/arm/v6", Some(5)),
            ("linux/arm64", "linux/amd64", None),
            ("windows/amd64", "linux/amd64", None),
        ] {
            assert_eq!(platform(image).fits(&platform(host)), fits, "{image} on {host}");
        }
        assert!(Platform::host().fits(&Platform::host()).is_some());
    }

    #[test]
    fn a_platform_is_two_or_three_words() {
        assert_eq!(platform("linux/aarch64").to_string(), "linux/arm64");
        for bad in ["", "linux", "linux/", "/amd64", "linux/arm/", "linux/arm/v7/x"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
