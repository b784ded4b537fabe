//! Which images may be used: anything, what is pinned by digest, or what one of the operator's keys has signed.
//!
//! Signatures are cosign's, made with a key pair: a document that names the digest, and its signature, in the same
//! repository under the tag `sha256-DIGEST.sig`. No service is asked.
//!
//! # Source
//! sigstore `cosign/specs/SIGNATURE_SPEC.md`; RFC 5480 and RFC 8410 (public keys).

use std::fmt;
use std::path::Path;

use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

use crate::auth::decode_base64;
use crate::digest::Digest;

/// The media type of what cosign signs, and where its signature is.
pub(crate) const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
pub(crate) const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// Most signatures of one image that are looked at.
pub(crate) const SIGNATURES_MAX: usize = 64;

/// Larger than any signed document.
pub(crate) const PAYLOAD_MAX: u64 = 1 << 20;

/// `SubjectPublicKeyInfo` up to the key itself: an uncompressed point on P-256, or an Ed25519 key.
const P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const ED: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What an image must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Require {
    /// Nothing.
    Any,
    /// A digest in its reference.
    Digest,
    /// A signature of one of the keys.
    Signature,
    /// It is not used at all.
    Refuse,
}

/// What images of a registry, or of a path in it, must have.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) scope: String,
    pub(crate) require: Require,
    pub(crate) keys: Vec<Key>,
}

impl Rule {
    /// - `name`: registry and repository.
    pub(crate) fn covers(&self, name: &str) -> bool {
        let scope = self.scope.trim_end_matches('/');
        scope == "*" || name.strip_prefix(scope).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The key that has signed `payload`, if it speaks of one of `digests`.
    pub(crate) fn signer(&self, payload: &[u8], signature: &str, digests: &[Digest]) -> Option<&Key> {
        let signature = decode_base64(signature)?;
        let signed = signed_digest(payload)?;
        let key = self.keys.iter().find(|key| key.verifies(payload, &signature))?;
        digests.contains(&signed).then_some(key)
    }
}

/// A public key of the operator's.
#[derive(Clone)]
pub(crate) struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: Vec<u8>,
    /// Digest of the whole key: its name in the store.
    pub(crate) fingerprint: Digest,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.fingerprint.short())
    }
}

impl Key {
    pub(crate) fn read(file: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(file).map_err(|error| format!("key {}: {error}", file.display()))?;
        Self::parse(&bytes).ok_or_else(|| {
            format!("key {} is not a public key of type P-256 or Ed25519 in PEM (`cosign.pub`)", file.display())
        })
    }

    fn parse(pem: &[u8]) -> Option<Self> {
        let info = SubjectPublicKeyInfoDer::from_pem_slice(pem).ok()?;
        let fingerprint = Digest::of(&info);
        let key = |start: &[u8], length: usize| info.strip_prefix(start).filter(|key| key.len() == length);
        if let Some(point) = key(P256, 65) {
            return Some(Self { algorithm: &ECDSA_P256_SHA256_ASN1, bytes: point.to_vec(), fingerprint });
        }
        key(ED, 32).map(|key| Self { algorithm: &ED25519, bytes: key.to_vec(), fingerprint })
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.bytes).verify(message, signature).is_ok()
    }
}

/// The digest that a signed document speaks of.
fn signed_digest(payload: &[u8]) -> Option<Digest> {
    let document: serde_json::Value = serde_json::from_slice(payload).ok()?;
    let critical = &document["critical"];
    (critical["type"] == "cosign container image signature").then_some(())?;
    critical["image"]["docker-manifest-digest"].as_str()?.parse().ok()
}

/// The tag under which the signatures of a manifest are.
pub(crate) fn tag(digest: Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(scope: &str) -> Rule {
        Rule { scope: scope.to_owned(), require: Require::Any, keys: Vec::new() }
    }

    #[test]
    fn a_scope_covers_whole_parts_of_a_name() {
        for (scope, name, expected) in [
            ("docker.io", "docker.io/library/busybox", true),
            ("docker.io/library", "docker.io/library/busybox", true),
            ("docker.io/lib", "docker.io/library/busybox", false),
            ("docker.io/library/busybox/", "docker.io/library/busybox", true),
            ("quay.io", "docker.io/library/busybox", false),
            ("*", "docker.io/library/busybox", true),
        ] {
            assert_eq!(rule(scope).covers(name), expected, "{scope} {name}");
        }
    }

    #[test]
    fn keys_are_public_ones_of_two_kinds() {
        for (pem, good) in [
            // openssl ecparam -name prime256v1 -genkey | openssl ec -pubout
            (rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().public_key_pem(), true),
            (rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().public_key_pem(), true),
            (rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().public_key_pem(), false),
            (rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem(), false),
            ("hello".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(Key::parse(pem.as_bytes()).is_some(), good, "{pem}");
        }
    }
}
