//! The cluster's own certificate authority: who belongs is who holds a certificate from here.
//!
//! Kept in `ca/` of the scheduler's folder: `ca.pem`, and `key.pem` with mode 0600. The scheduler's own certificate is
//! made anew at every start and never written. A node's certificate is made from its request's public key alone: what
//! else the request says is the requester's wish, not ours.

use gantry_api::ids::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A certificate is valid from a day before it is made: clocks of hosts differ.
const BACKDATED_DAYS: i64 = 1;
const CA_YEARS: i64 = 30;
/// A node keeps its certificate for its life; removing the node is what takes it away.
const NODE_YEARS: i64 = 10;
/// The scheduler's own, renewed at each start.
const SERVER_YEARS: i64 = 5;

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("cannot {operation} {}", file.display())]
    File {
        /// `read` or `write`.
        operation: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One of the two files is there without the other.
    #[error("the CA in {} is half there", dir.display())]
    Half {
        /// The folder.
        dir: PathBuf,
    },
    /// A file of the CA is damaged.
    #[error("{} is damaged: {why}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(String),
    /// A request is not one.
    #[error("this is not a certificate signing request: {0}")]
    Request(String),
}

impl CaError {
    /// What the operator can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Half { .. } | Self::Damaged { .. } => {
                Some("restore ca.pem and key.pem from a backup; with a new CA every node must join again".to_owned())
            }
            _ => None,
        }
    }
}

/// The authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    certificate: CertificateDer<'static>,
}

/// A node's certificate.
#[derive(Debug, Clone)]
pub struct NodeCertificate {
    /// The certificate.
    pub pem: String,
    /// SHA-256 of its public key.
    pub key_sha256: String,
}

/// Whose certificate a connection showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerNode {
    /// Its identity.
    pub node: NodeId,
    /// SHA-256 of its public key.
    pub key_sha256: String,
}

impl Ca {
    /// Opens the authority in `dir`, making it when there is none.
    ///
    /// # Errors
    /// Its files cannot be read or written, or are damaged.
    pub fn open(dir: &Path) -> Result<Self, CaError> {
        let (certificate_file, key_file) = (dir.join("ca.pem"), dir.join("key.pem"));
        match (certificate_file.exists(), key_file.exists()) {
            (true, true) => {}
            // The key is written first: without a certificate it has signed nothing.
            (false, _) => Self::make(dir, &certificate_file, &key_file)?,
            (true, false) => return Err(CaError::Half { dir: dir.to_owned() }),
        }
        let certificate_pem = read(&certificate_file)?;
        let damaged = |file: &Path, why: String| CaError::Damaged { file: file.to_owned(), why };
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| damaged(&certificate_file, error.to_string()))?;
        let key = KeyPair::from_pem(&read(&key_file)?).map_err(|error| damaged(&key_file, error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| damaged(&certificate_file, error.to_string()))?;
        Ok(Self { issuer, certificate_pem, certificate })
    }

    fn make(dir: &Path, certificate_file: &Path, key_file: &Path) -> Result<(), CaError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| CaError::File {
            operation: "make",
            file: dir.to_owned(),
            source,
        })?;
        let key = KeyPair::generate().map_err(made)?;
        let mut params = params("Gantry cluster CA", CA_YEARS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(made)?;
        write(key_file, &key.serialize_pem(), 0o600)?;
        write(certificate_file, &certificate.pem(), 0o644)
    }

    /// The authority's certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// SHA-256 of the authority's certificate, lower-case hexadecimal: what a join token carries.
    pub fn fingerprint(&self) -> String {
        sha256(&self.certificate)
    }

    /// A certificate for the public key of a node's request, in the node's name.
    ///
    /// # Errors
    /// The request is none, or is not signed with its own key.
    pub fn sign_node(&self, node: &NodeId, request_pem: &str) -> Result<NodeCertificate, CaError> {
        let request = CertificateSigningRequestParams::from_pem(request_pem)
            .map_err(|error| CaError::Request(error.to_string()))?;
        let mut params = params(node.as_str(), NODE_YEARS);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&request.public_key, &self.issuer).map_err(made)?;
        let key_sha256 = sha256(&request.public_key.subject_public_key_info());
        Ok(NodeCertificate { pem: certificate.pem(), key_sha256 })
    }

    /// TLS for the scheduler's port: a certificate for `names`, and a client's certificate asked for but not needed.
    ///
    /// # Errors
    /// The certificate could not be made.
    pub fn server_config(&self, names: &[&str], addresses: &[IpAddr]) -> Result<rustls::ServerConfig, CaError> {
        let key = KeyPair::generate().map_err(made)?;
        let mut params = params("Gantry scheduler", SERVER_YEARS);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        for name in names {
            let name = (*name).try_into().map_err(made)?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        let certificate = params.signed_by(&key, &self.issuer).map_err(made)?;
        let made = |error: &dyn std::fmt::Display| CaError::Make(error.to_string());
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| made(&error))?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).map_err(|error| made(&error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| made(&error))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| made(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone(), self.certificate.clone()], key)
            .map_err(|error| made(&error))?;
        // Streams are upgraded, which only HTTP/1.1 can do.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Whose certificate this is; `None` when it is not a node's.
///
/// The chain was checked by TLS already.
pub fn peer_node(certificate: &CertificateDer<'_>) -> Option<PeerNode> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let node = parsed.subject().iter_common_name().next()?.as_str().ok()?.parse().ok()?;
    Some(PeerNode { node, key_sha256: sha256(parsed.public_key().raw) })
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String takes everything
        text
    })
}

fn params(common_name: &str, years: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let today = jiff::tz::Offset::UTC.to_datetime(jiff::Timestamp::now()).date();
    let date = |date: jiff::civil::Date| {
        // Days up to 28 exist in every month; a few days earlier do no harm.
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs().min(28))
    };
    let day = jiff::Span::new().days(BACKDATED_DAYS);
    params.not_before = date(today.saturating_sub(day));
    params.not_after = date(today.saturating_add(jiff::Span::new().years(years)));
    params
}

fn made(error: rcgen::Error) -> CaError {
    CaError::Make(error.to_string())
}

fn read(file: &Path) -> Result<String, CaError> {
    std::fs::read_to_string(file).map_err(|source| CaError::File { operation: "read", file: file.to_owned(), source })
}

/// Writes a file whole or not at all, with its mode from the first byte on.
fn write(file: &Path, text: &str, mode: u32) -> Result<(), CaError> {
    let failed = |source| CaError::File { operation: "write", file: file.to_owned(), source };
    let part = file.with_extension("part");
    let mut options = std::fs::OpenOptions::new();
    let mut out = options.write(true).create(true).truncate(true).mode(mode).open(&part).map_err(failed)?;
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(failed)?;
    std::fs::rename(&part, file).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn request() -> (KeyPair, String) {
        let key = KeyPair::generate().unwrap();
        // A requester who claims to be the CA: nothing of it may be believed.
        let mut params = params("ca", 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        (key, pem)
    }

    #[test]
    fn an_authority_is_the_same_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("ca");
        let fingerprint = Ca::open(&dir).unwrap().fingerprint();
        assert_eq!(Ca::open(&dir).unwrap().fingerprint(), fingerprint);
        assert_eq!(std::fs::metadata(dir.join("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(dir.join("key.pem")).unwrap();
        assert!(matches!(Ca::open(&dir), Err(CaError::Half { .. })));
        std::fs::write(dir.join("key.pem"), "junk").unwrap();
        assert!(matches!(Ca::open(&dir), Err(CaError::Damaged { .. })));
    }

    #[test]
    fn only_the_public_key_of_a_request_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path()).unwrap();
        let node = NodeId::from_random([7; 8]);
        let (_, pem) = request();
        let made = ca.sign_node(&node, &pem).unwrap();
        let der = CertificateDer::from_pem_slice(made.pem.as_bytes()).unwrap();
        assert_eq!(peer_node(&der), Some(PeerNode { node, key_sha256: made.key_sha256 }));
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!parsed.is_ca());
    }

    #[test]
    fn nonsense_is_no_request() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path()).unwrap();
        for pem in ["", "junk", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"] {
            assert!(matches!(ca.sign_node(&NodeId::from_random([0; 8]), pem), Err(CaError::Request(_))), "{pem}");
        }
        assert_eq!(peer_node(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}
