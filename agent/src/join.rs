//! Joining a cluster: once, whatever is repeated or interrupted.
//!
//! Identity and key are on disk before the scheduler hears of them; the answer is on disk before the caller hears of
//! it. A host that is killed between the two asks again with the same identity.

use crate::dial::{DialError, Dialer, words};
use crate::identity::{Identity, IdentityError, Membership};
use crate::tls::{self, TlsError, Verifier};
use gantry_api::http::ApiError;
use gantry_api::ids::{NodeId, NodeName};
use gantry_api::wire::{JoinRequest, JoinResponse, JoinToken};
use hyper::StatusCode;
use rcgen::{CertificateParams, DnType, KeyPair};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// What joining needs to know.
#[derive(Debug, Clone)]
pub struct JoinConfig {
    /// The node's data directory.
    pub data_dir: PathBuf,
    /// The scheduler's API.
    pub server: SocketAddr,
    /// From `gantry token create`.
    pub token: JoinToken,
    /// The name the node wants.
    pub name: NodeName,
    /// Where other hosts reach this one.
    pub advertise: Ipv4Addr,
}

/// The node is a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its identity.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// It was one before.
    pub already: bool,
}

/// The node is not a member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The scheduler does not know the token, or not any more.
    #[error("the scheduler at {server} refuses the token: {message}")]
    Token {
        /// Who.
        server: SocketAddr,
        /// Its words.
        message: String,
    },
    /// The scheduler belongs to another cluster than the token, or somebody is in between.
    #[error("{server} is not of the token's cluster: its CA has fingerprint {found}, the token names {wanted}")]
    Fingerprint {
        /// Who.
        server: SocketAddr,
        /// Of the token.
        wanted: String,
        /// Of the peer.
        found: String,
    },
    /// Nobody answers there.
    #[error("cannot join")]
    Unreachable(#[source] DialError),
    /// TLS fails for another reason.
    #[error("cannot join")]
    Tls(#[source] DialError),
    /// The name is taken, or something else that is in the way.
    #[error("the scheduler at {server} refuses this node: {message}")]
    Refused {
        /// Who.
        server: SocketAddr,
        /// Its words.
        message: String,
        /// Its advice.
        hint: Option<String>,
    },
    /// What came back is no membership.
    #[error("the scheduler at {0} gives an answer that is no membership: {1}")]
    Answer(SocketAddr, String),
    /// This host is a member of another cluster, or under another name.
    #[error("this host is already in a cluster as node {name}{}", if *.other_cluster { ", and the token is of another cluster" } else { "" })]
    Already {
        /// Its name there.
        name: NodeName,
        /// Whether the token is of another cluster.
        other_cluster: bool,
        /// What to remove to forget it.
        path: PathBuf,
    },
    /// The identity cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Keys cannot be made or used.
    #[error("cannot make the node's key")]
    Key(#[from] rcgen::Error),
    /// TLS cannot be set up.
    #[error(transparent)]
    Setup(#[from] TlsError),
}

impl JoinError {
    /// What the operator can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Token { .. } => Some("make a new one on the first host: gantry token create".to_owned()),
            Self::Fingerprint { .. } => Some(
                "check the address; if it is right, the token is of another cluster or the connection is intercepted"
                    .to_owned(),
            ),
            Self::Unreachable(_) => Some(
                "check the address, that `gantry server` runs there, and that no firewall drops its port".to_owned(),
            ),
            Self::Tls(_) => {
                Some("check that the clocks of both hosts are right, and that the port is Gantry's".to_owned())
            }
            Self::Refused { hint, .. } => hint.clone(),
            Self::Answer(..) => Some("use the same version of Gantry on both hosts".to_owned()),
            Self::Already { path, .. } => {
                Some(format!("to leave that cluster, stop the agent and remove {}", path.display()))
            }
            Self::Identity(error) => error.hint(),
            Self::Key(_) | Self::Setup(_) => None,
        }
    }
}

/// Makes this host a node. Asking twice is one join.
///
/// # Errors
/// See [`JoinError`]; nothing but the identity is kept, and it may be tried again.
pub async fn join(config: JoinConfig) -> Result<Joined, JoinError> {
    let identity = prepare(&config)?;
    if identity.membership.is_some() {
        return Ok(Joined { node: identity.node, name: identity.name, already: true });
    }
    let verifier = Verifier::new(config.token.ca_sha256.clone(), None);
    let dialer = Dialer::new(config.server, tls::joining(&verifier)?);
    let request = JoinRequest {
        secret: config.token.secret.clone(),
        name: identity.name.clone(),
        node: identity.node.clone(),
        csr_pem: signing_request(&identity)?,
        underlay: config.advertise,
    };
    let body = serde_json::to_vec(&request).expect("a request is JSON");
    let answer = dialer.post("/v1/join", body).await.map_err(|error| unanswered(error, &verifier, &config))?;
    if !answer.status.is_success() {
        return Err(refused(config.server, answer.status, &answer.body));
    }
    let membership = accept(&config, &answer.body)?;
    tls::member(&membership.certificate_pem, &identity.key_pem, &membership.ca_pem)
        .map_err(|error| JoinError::Answer(config.server, error.to_string()))?;
    let identity = Identity { membership: Some(membership), ..identity };
    identity.save(&config.data_dir)?;
    Ok(Joined { node: identity.node, name: identity.name, already: false })
}

/// The identity to join with, on disk.
fn prepare(config: &JoinConfig) -> Result<Identity, JoinError> {
    let name = config.name.clone();
    let identity = match Identity::load(&config.data_dir)? {
        Some(identity) => match &identity.membership {
            Some(member) => return already(config, &identity, member).map(|()| identity.clone()),
            None if identity.name == name => return Ok(identity),
            None => Identity { name, ..identity },
        },
        None => {
            let node = NodeId::from_random(random()?);
            Identity { node, name, key_pem: KeyPair::generate()?.serialize_pem(), membership: None }
        }
    };
    identity.save(&config.data_dir)?;
    Ok(identity)
}

fn random() -> Result<[u8; 8], TlsError> {
    let mut bytes = [0; 8];
    let fill = rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes);
    fill.map_err(|_| TlsError::Setup(rustls::Error::FailedToGetRandomBytes))?;
    Ok(bytes)
}

fn already(config: &JoinConfig, identity: &Identity, member: &Membership) -> Result<(), JoinError> {
    let ca = tls::certificate(&member.ca_pem, "CA certificate")?;
    let other_cluster = tls::fingerprint(&ca) != config.token.ca_sha256;
    if other_cluster || identity.name != config.name {
        let path = agent_dir(&config.data_dir);
        return Err(JoinError::Already { name: identity.name.clone(), other_cluster, path });
    }
    Ok(())
}

fn agent_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("agent")
}

fn signing_request(identity: &Identity) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, identity.node.as_str());
    params.serialize_request(&KeyPair::from_pem(&identity.key_pem)?)?.pem()
}

fn unanswered(error: DialError, verifier: &Verifier, config: &JoinConfig) -> JoinError {
    match (error, verifier.stranger()) {
        (DialError::Tls(server, _), Some(found)) => {
            JoinError::Fingerprint { server, wanted: config.token.ca_sha256.clone(), found }
        }
        (error @ DialError::Tls(..), None) => JoinError::Tls(error),
        (error, _) => JoinError::Unreachable(error),
    }
}

fn refused(server: SocketAddr, status: StatusCode, body: &[u8]) -> JoinError {
    let message = words(body);
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => JoinError::Token { server, message },
        _ => {
            let hint = serde_json::from_slice::<ApiError>(body).ok().and_then(|error| error.hint);
            JoinError::Refused { server, message, hint }
        }
    }
}

fn accept(config: &JoinConfig, body: &[u8]) -> Result<Membership, JoinError> {
    let wrong = |why: String| JoinError::Answer(config.server, why);
    let answer: JoinResponse = serde_json::from_slice(body).map_err(|error| wrong(error.to_string()))?;
    let ca = tls::certificate(&answer.ca_pem, "CA certificate").map_err(|error| wrong(error.to_string()))?;
    if tls::fingerprint(&ca) != config.token.ca_sha256 {
        return Err(wrong("its CA certificate is not the token's".to_owned()));
    }
    Ok(Membership { server: config.server, certificate_pem: answer.certificate_pem, ca_pem: answer.ca_pem })
}
