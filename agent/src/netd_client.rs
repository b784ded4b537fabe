//! Temporary: until netd's own client is there.
use gantry_api::network::{AttachRequest, Attachment, Status, Table};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use std::path::PathBuf;

pub(crate) struct Client {
    socket: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("netd does not answer")]
    Io(#[from] std::io::Error),
    #[error("netd does not answer")]
    Http(#[from] hyper::Error),
    #[error("netd answers nonsense")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Refused(String),
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }
    async fn ask(&self, method: &str, path: &str, body: Vec<u8>) -> Result<Bytes, ClientError> {
        let stream = tokio::net::UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "netd")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("a request");
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        connection.abort();
        if status.is_success() { Ok(body) } else { Err(ClientError::Refused(crate::dial::words(&body))) }
    }
    pub(crate) async fn set_table(&self, table: &Table) -> Result<(), ClientError> {
        self.ask("PUT", "/v1/table", serde_json::to_vec(table)?).await.map(drop)
    }
    pub(crate) async fn attach(&self, request: &AttachRequest) -> Result<Attachment, ClientError> {
        let path = format!("/v1/attachments/{}", request.id);
        Ok(serde_json::from_slice(&self.ask("PUT", &path, serde_json::to_vec(request)?).await?)?)
    }
    pub(crate) async fn detach(&self, id: &str) -> Result<(), ClientError> {
        self.ask("DELETE", &format!("/v1/attachments/{id}"), Vec::new()).await.map(drop)
    }
    pub(crate) async fn status(&self) -> Result<Status, ClientError> {
        Ok(serde_json::from_slice(&self.ask("GET", "/v1/status", Vec::new()).await?)?)
    }
}
