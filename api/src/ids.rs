//! Names and identities, checked once where they enter.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::str::FromStr;

/// A name that breaks its rule; says which rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a valid {kind} name: {rule}")]
pub struct NameError {
    /// The text as given.
    pub given: String,
    /// What the name would have named.
    pub kind: &'static str,
    /// The rule, in words.
    pub rule: &'static str,
}

const LABEL_RULE: &str =
    "use 1 to 63 of a-z, 0-9, `-` and `_`, beginning and ending with a letter or digit (it becomes a DNS name)";

/// One DNS label as we allow it: `_` inside too, since Compose files use it.
fn check_label(text: &str, kind: &'static str) -> Result<(), NameError> {
    let edge = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let bytes = text.as_bytes();
    let inner = bytes.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-' || *c == b'_');
    if inner && bytes.len() <= 63 && edge(bytes.first()) && edge(bytes.last()) {
        Ok(())
    } else {
        Err(NameError { given: text.to_owned(), kind, rule: LABEL_RULE })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check_label(text, $kind)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(
    /// An app: one manifest, deployed under this name.
    AppName, "app"
);
name!(
    /// A service within its app.
    ServiceName, "service"
);
name!(
    /// A host that joined, as people call it.
    NodeName, "node"
);
name!(
    /// A named volume within its app.
    VolumeName, "volume"
);
name!(
    /// A network within its app.
    NetworkName, "network"
);

/// A host's identity: 16 lower-case hexadecimal digits, chosen at random when it joins; its certificate carries it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NodeId(String);

impl NodeId {
    /// An identity from eight random bytes of the caller's.
    pub fn from_random(bytes: [u8; 8]) -> Self {
        Self(bytes.iter().map(|b| format!("{b:02x}")).collect())
    }

    /// The identity as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() == 16 && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError { given: text.to_owned(), kind: "node identity", rule: "16 lower-case hexadecimal digits" })
        }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The place of a replica within its service: `shop-api-2`. A replacement takes over the name of what it replaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaName {
    /// The app.
    pub app: AppName,
    /// The service.
    pub service: ServiceName,
    /// From 1.
    pub number: u32,
}

impl fmt::Display for ReplicaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}-{}", self.app, self.service, self.number))
    }
}

/// One running copy, never used twice: its name and six hexadecimal digits, `shop-api-2-3f9c1a`.
///
/// Also the container id, the file names on the worker and the network attachment's id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ReplicaId(String);

impl ReplicaId {
    /// The id of a new copy of `name`; `unique` must not have been used with this name before.
    pub fn new(name: &ReplicaName, unique: u32) -> Self {
        Self(format!("{name}-{:06x}", unique & 0xff_ffff))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ReplicaId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_';
        if !text.is_empty() && text.len() <= 200 && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError { given: text.to_owned(), kind: "replica", rule: "use a-z, 0-9, `-` and `_`" })
        }
    }
}

impl<'de> Deserialize<'de> for ReplicaId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The store's revision that a message was made from; an older message is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_label() {
        for (text, good) in [
            ("shop", true),
            ("web-2", true),
            ("my_db", true),
            ("9lives", true),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("Web", false),
            ("a.b", false),
            ("a/b", false),
            ("..", false),
        ] {
            assert_eq!(text.parse::<ServiceName>().is_ok(), good, "{text}");
        }
        assert!("a".repeat(63).parse::<AppName>().is_ok());
        assert!("a".repeat(64).parse::<AppName>().is_err());
    }

    #[test]
    fn a_bad_name_on_the_wire_is_an_error() {
        assert!(serde_json::from_str::<ServiceName>("\"../etc\"").is_err());
        assert!(serde_json::from_str::<ReplicaId>("\"a/b\"").is_err());
        assert!(serde_json::from_str::<NodeId>("\"0123456789abcdeF\"").is_err());
    }

    #[test]
    fn a_replica_id_begins_with_its_name() {
        let name = ReplicaName { app: "shop".parse().unwrap(), service: "api".parse().unwrap(), number: 2 };
        assert_eq!(ReplicaId::new(&name, 0x3f_9c1a).as_str(), "shop-api-2-3f9c1a");
    }
}
