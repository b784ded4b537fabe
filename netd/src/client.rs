//! netd's API as the agent and the command line use it.

use crate::error::NetError;
use gantry_api::http::ApiError;
use gantry_api::network::{AttachRequest, Attachment, Live, Loads, Status, Table};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::path::PathBuf;
use tokio::net::UnixStream;

/// Speaks to the netd behind a socket; connects anew for each request, so that it outlives restarts of netd.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// For the netd behind `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Make this the table in force.
    ///
    /// # Errors
    /// [`NetError::Refused`] with code `conflict` when it is older than the one in force or its networks are the
    /// host's; `internal` when the kernel refused a part of it (netd goes on trying).
    pub async fn set_table(&self, table: &Table) -> Result<(), NetError> {
        self.call(Method::PUT, "/v1/table", Some(table)).await.map(|_| ())
    }

    /// Give a container a network; the same request again answers the same.
    ///
    /// # Errors
    /// [`NetError::Refused`] with code `unavailable` before the first table.
    pub async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetError> {
        let path = format!("/v1/attachments/{}", checked(&request.id)?);
        let answer = self.call(Method::PUT, &path, Some(request)).await?;
        self.decode(&answer, &path)
    }

    /// Take a container's network away; fine when it has none.
    ///
    /// # Errors
    /// netd is away or the kernel refused.
    pub async fn detach(&self, id: &str) -> Result<(), NetError> {
        let path = format!("/v1/attachments/{}", checked(id)?);
        self.call(Method::DELETE, &path, None::<&()>).await.map(|_| ())
    }

    /// All containers' networks.
    ///
    /// # Errors
    /// netd is away.
    pub async fn attachments(&self) -> Result<Vec<Attachment>, NetError> {
        let answer = self.call(Method::GET, "/v1/attachments", None::<&()>).await?;
        self.decode(&answer, "/v1/attachments")
    }

    /// How the node's network is doing.
    ///
    /// # Errors
    /// netd is away.
    pub async fn status(&self) -> Result<Status, NetError> {
        let answer = self.call(Method::GET, "/v1/status", None::<&()>).await?;
        self.decode(&answer, "/v1/status")
    }

    /// What this node's containers have open to each replica; empty where connections are not balanced when they are
    /// made.
    ///
    /// # Errors
    /// netd is away.
    pub async fn live(&self) -> Result<Vec<Live>, NetError> {
        let answer = self.call(Method::GET, "/v1/loads", None::<&()>).await?;
        self.decode(&answer, "/v1/loads")
    }

    /// Tell what the whole cluster has open, about ten times a second; forgotten after two seconds of silence.
    ///
    /// # Errors
    /// netd is away.
    pub async fn set_loads(&self, loads: &Loads) -> Result<(), NetError> {
        self.call(Method::PUT, "/v1/loads", Some(loads)).await.map(|_| ())
    }

    fn failed(&self, operation: impl Into<String>) -> impl Fn(Box<dyn Error + Send + Sync>) -> NetError {
        let (operation, socket) = (operation.into(), self.socket.clone());
        move |source| NetError::Api { operation: operation.clone(), socket: socket.clone(), source }
    }

    async fn call<T: Serialize>(&self, method: Method, path: &str, body: Option<&T>) -> Result<Bytes, NetError> {
        let failed = self.failed(format!("{method} {path}"));
        let body = body.map(serde_json::to_vec).transpose().map_err(|e| failed(e.into()))?.unwrap_or_default();
        let connect = self.failed("connect");
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| connect(e.into()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(e.into()))?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "netd")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| failed(e.into()))?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
        };
        let answer = answer.await;
        connection.abort();
        let (status, bytes) = answer.map_err(|e| failed(e.into()))?;
        if status.is_success() {
            return Ok(bytes);
        }
        Err(NetError::Refused(serde_json::from_slice(&bytes).unwrap_or_else(|_| ApiError {
            code: "internal".into(),
            message: format!("{status}: {}", String::from_utf8_lossy(&bytes)),
            hint: None,
        })))
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8], path: &str) -> Result<T, NetError> {
        serde_json::from_slice(bytes).map_err(|e| self.failed(format!("read the answer to {path}"))(e.into()))
    }
}

/// An id that is a file name is a path segment too.
fn checked(id: &str) -> Result<&str, NetError> {
    crate::state::check_id(id).map(|()| id)
}
