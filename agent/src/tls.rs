//! TLS towards the scheduler: it is known by its cluster's CA, not by its address, so that it may move.
//!
//! What makes a certificate a scheduler's is the CA's signature together with the purpose "server": the CA gives
//! nodes certificates for the purpose "client" only.

use gantry_api::ids::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme};
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex, PoisonError};

/// Keys and certificates of ours that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Text that should be a certificate or a key.
    #[error("cannot read the {0}")]
    Pem(&'static str, #[source] rustls::pki_types::pem::Error),
    /// Certificate and key do not fit.
    #[error("cannot set up TLS")]
    Setup(#[from] Error),
    /// The CA certificate cannot be one.
    #[error("cannot use the CA certificate")]
    Ca(#[from] VerifierBuilderError),
}

/// SHA-256 of a certificate, as tokens carry it.
pub(crate) fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate.as_ref()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first certificate of a PEM text.
pub(crate) fn certificate(pem: &str, what: &'static str) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| TlsError::Pem(what, error))
}

/// For a node that has joined: its own certificate, and the CA that it keeps.
pub(crate) fn member(certificate_pem: &str, key_pem: &str, ca_pem: &str) -> Result<ClientConfig, TlsError> {
    let chain = vec![certificate(certificate_pem, "node's certificate")?, certificate(ca_pem, "CA certificate")?];
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| TlsError::Pem("node's key", error))?;
    let verifier = Verifier::new(fingerprint(&chain[1]), Some(chain[1].clone()));
    Ok(http1(builder(&verifier)?.with_client_auth_cert(chain, key)?))
}

/// For nodes among each other, who hold certificates for the purpose "client" on both sides: whoever the CA has signed
/// as a node is let in, and is talked to. Nobody else is, the scheduler neither.
pub(crate) fn among_nodes(
    certificate_pem: &str,
    key_pem: &str,
    ca_pem: &str,
) -> Result<(ServerConfig, ClientConfig), TlsError> {
    let chain = vec![certificate(certificate_pem, "node's certificate")?, certificate(ca_pem, "CA certificate")?];
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| TlsError::Pem("node's key", error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(chain[1].clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::clone(&verifier))
        .with_single_cert(chain.clone(), key.clone_key())?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let client = client.dangerous().with_custom_certificate_verifier(Arc::new(NodeVerifier(verifier)));
    Ok((server, http1(client.with_client_auth_cert(chain, key)?)))
}

/// Whose certificate this is; `None` when it is not a node's. The chain was checked by TLS already.
pub(crate) fn node_of(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    parsed.subject().iter_common_name().next()?.as_str().ok()?.parse().ok()
}

/// Accepts a server that holds a node's certificate: what is wanted of it is what a server wants of a node.
#[derive(Debug)]
struct NodeVerifier(Arc<dyn ClientCertVerifier>);

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.verify_client_cert(end_entity, intermediates, now).map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// For a host that joins: the CA comes with the handshake and must be the token's.
pub(crate) fn joining(verifier: &Arc<Verifier>) -> Result<ClientConfig, TlsError> {
    Ok(http1(builder(verifier)?.with_no_client_auth()))
}

fn builder(
    verifier: &Arc<Verifier>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, Error> {
    let provider = Arc::new(verifier.provider.clone());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(versions.dangerous().with_custom_certificate_verifier(Arc::clone(verifier) as Arc<dyn ServerCertVerifier>))
}

fn http1(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Accepts whoever the CA of one fingerprint has signed as a server.
#[derive(Debug)]
pub(crate) struct Verifier {
    ca_sha256: String,
    ca: Option<CertificateDer<'static>>,
    provider: CryptoProvider,
    stranger: Mutex<Option<String>>,
}

impl Verifier {
    /// With the CA itself where it is known already; else the peer has to send it.
    pub(crate) fn new(ca_sha256: String, ca: Option<CertificateDer<'static>>) -> Arc<Self> {
        let provider = rustls::crypto::ring::default_provider();
        Arc::new(Self { ca_sha256, ca, provider, stranger: Mutex::new(None) })
    }

    /// Fingerprint of the CA of a peer that was refused for it.
    pub(crate) fn stranger(&self) -> Option<String> {
        self.stranger.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn find_ca(&self, chain: &[&CertificateDer<'_>]) -> Result<CertificateDer<'static>, Error> {
        if let Some(ca) = &self.ca {
            return Ok(ca.clone());
        }
        if let Some(ca) = chain.iter().find(|c| fingerprint(c) == self.ca_sha256) {
            return Ok((*ca).clone().into_owned());
        }
        let last = chain.last().map(|c| fingerprint(c));
        *self.stranger.lock().unwrap_or_else(PoisonError::into_inner) = last;
        Err(Error::General("the peer's CA is not the one of the token".to_owned()))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<&CertificateDer<'_>> = std::iter::once(end_entity).chain(intermediates).collect();
        let mut roots = RootCertStore::empty();
        roots.add(self.find_ca(&chain)?)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
