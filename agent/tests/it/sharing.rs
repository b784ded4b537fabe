//! Blobs for other nodes: who gets them, and what of them.

use crate::common::*;
use gantry_api::images::BLOBS_PORT;
use gantry_images::Digest;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::ExtendedKeyUsagePurpose as Purpose;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Takes any server: these tests look at what the server thinks of its clients.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A client with a certificate for `name` and a purpose, or with none.
fn client(scheduler: &Scheduler, certificate: Option<(&str, Purpose)>) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Anyone));
    Arc::new(match certificate {
        None => config.with_no_client_auth(),
        Some((name, purpose)) => {
            let (chain, key) = scheduler.certificate(name, purpose);
            config.with_client_auth_cert(chain, key).unwrap()
        }
    })
}

/// Status and body, or why there is no answer.
async fn ask(
    client: &Arc<ClientConfig>,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Response<Incoming>, String> {
    let tcp = loop {
        // Until the agent listens; the deadline is the test's.
        match TcpStream::connect((Ipv4Addr::LOCALHOST, BLOBS_PORT)).await {
            Ok(tcp) => break tcp,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
    let io = TlsConnector::from(Arc::clone(client)).connect(name, tcp).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "node");
    for (key, value) in headers {
        request = request.header(*key, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let answer = tokio::time::timeout(DEADLINE, sender.send_request(request)).await.expect("an answer in time");
    answer.map_err(|error| error.to_string())
}

async fn body(answer: Response<Incoming>) -> Result<Bytes, String> {
    let body = tokio::time::timeout(DEADLINE, answer.into_body().collect()).await.expect("a body in time");
    body.map(|body| body.to_bytes()).map_err(|error| error.to_string())
}

/// A running agent that knows itself as the only node; the client of a member; a blob of its store.
async fn shop() -> (World, Arc<ClientConfig>, PathBuf) {
    let mut world = World::new().await;
    world.assign(&[], &[]);
    world.start_agent();
    world.scheduler.wait("the table is known", |report| report.applied.0 > 0).await;
    let member = client(&world.scheduler, Some((world.node.as_str(), Purpose::ClientAuth)));
    let blobs = fs::read_dir(world.data_dir().join("images/blobs/sha256")).unwrap();
    let largest = blobs.map(|blob| blob.unwrap().path()).max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    (world, member, largest)
}

#[test]
fn only_nodes_of_the_cluster_are_served() {
    inside("sharing::only_nodes_of_the_cluster_are_served", || async {
        let (world, member, blob) = shop().await;
        let stranger = Scheduler::start().await;
        let path = format!("/v1/blobs/sha256:{}", blob.file_name().unwrap().to_str().unwrap());
        let node = world.node.as_str();
        let of = |certificate| client(&world.scheduler, certificate);
        for (why, client, expected) in [
            ("a node", member, Some(200)),
            ("no certificate", of(None), None),
            ("another cluster's node", client(&stranger, Some((node, Purpose::ClientAuth))), None),
            ("the scheduler", of(Some(("Gantry scheduler", Purpose::ServerAuth))), None),
            ("a server with a node's name", of(Some((node, Purpose::ServerAuth))), None),
            ("a name that is no node's", of(Some(("Gantry scheduler", Purpose::ClientAuth))), Some(403)),
            ("a node that was removed", of(Some(("00000000000000ff", Purpose::ClientAuth))), Some(403)),
        ] {
            let answer = ask(&client, Method::GET, &path, &[]).await;
            assert_eq!(answer.as_ref().ok().map(|a| a.status().as_u16()), expected, "{why}: {answer:?}");
        }
    });
}

#[test]
fn blobs_are_served_whole_in_part_and_as_they_grow() {
    inside("sharing::blobs_are_served_whole_in_part_and_as_they_grow", || async {
        let (world, member, blob) = shop().await;
        let (bytes, hex) = (fs::read(&blob).unwrap(), blob.file_name().unwrap().to_str().unwrap().to_owned());
        let (path, size) = (format!("/v1/blobs/sha256:{hex}"), bytes.len());
        let tail = format!("bytes={}-", size - 3);
        let beyond = format!("bytes={size}-");
        let nothing = format!("/v1/blobs/sha256:{}", "0".repeat(64));
        for (why, method, path, range, status, expected) in [
            ("whole", Method::GET, path.as_str(), None, 200, Some(&bytes[..])),
            ("its end", Method::GET, &path, Some(tail.as_str()), 206, Some(&bytes[size - 3..])),
            ("behind its end", Method::GET, &path, Some(&beyond), 416, None),
            ("a range we do not have", Method::GET, &path, Some("bytes=1-2"), 416, None),
            ("its size", Method::HEAD, &path, None, 200, Some(&[])),
            ("another one", Method::GET, &nothing, None, 404, None),
            ("no digest", Method::GET, "/v1/blobs/../../identity", None, 400, None),
            ("nothing there", Method::GET, "/identity", None, 404, None),
            ("no changes", Method::DELETE, &path, None, 405, None),
            ("no signatures", Method::GET, "/v1/signatures/sha256:0000", None, 400, None),
        ] {
            let headers: Vec<(&str, &str)> = range.map(|range| ("range", range)).into_iter().collect();
            let answer = ask(&member, method.clone(), path, &headers).await.unwrap();
            assert_eq!(answer.status(), status, "{why}");
            if method == Method::HEAD {
                assert_eq!(answer.headers()["content-length"].to_str().unwrap(), size.to_string());
            }
            let got = body(answer).await.unwrap();
            assert!(expected.is_none_or(|expected| got == expected), "{why}: {} bytes", got.len());
        }

        // A blob that is being fetched: as a pull has it, a growing part that becomes the blob.
        let images = world.data_dir().join("images");
        let content = vec![7u8; 500_000];
        let digest = Digest::of(&content);
        let part = images.join(format!("ingest/{}.part", digest.hex()));
        fs::write(&part, &content[..100_000]).unwrap();
        let path = format!("/v1/blobs/{digest}");
        assert_eq!(ask(&member, Method::GET, &path, &[]).await.unwrap().status(), 404, "not for who wants all of it");
        let growing = [("gantry-unfinished", "yes"), ("range", "bytes=50000-")];
        let answer = ask(&member, Method::GET, &path, &growing).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["gantry-unfinished"].to_str().unwrap()), (200, "50000"));
        let reader = tokio::spawn(body(answer));
        for piece in content[100_000..].chunks(150_000) {
            let mut file = fs::File::options().append(true).open(&part).unwrap();
            file.write_all(piece).unwrap();
            tokio::task::yield_now().await;
        }
        fs::rename(&part, images.join("blobs/sha256").join(digest.hex())).unwrap();
        assert_eq!(reader.await.unwrap().unwrap(), content[50_000..], "until it is whole");

        // One that is given up is no whole blob.
        let digest = Digest::of(b"another");
        let part = images.join(format!("ingest/{}.part", digest.hex()));
        fs::write(&part, b"anot").unwrap();
        let path = format!("/v1/blobs/{digest}");
        let answer = ask(&member, Method::GET, &path, &growing[..1]).await.unwrap();
        // Nothing is served to more than a bounded number at once.
        let mut others = Vec::new();
        let refused = loop {
            let answer = ask(&member, Method::GET, &path, &growing[..1]).await.unwrap();
            if answer.status() == 503 {
                break answer;
            }
            others.push(answer);
            assert!(others.len() < 100, "there is a bound");
        };
        assert_eq!((refused.headers()["retry-after"].to_str().unwrap(), others.len()), ("1", 15));
        fs::remove_file(&part).unwrap();
        assert!(body(answer).await.is_err(), "the end of the body is an error");
        for other in others {
            assert!(body(other).await.is_err());
        }
        assert_eq!(
            ask(&member, Method::GET, &path, &growing[..1]).await.unwrap().status(),
            404,
            "places are free again"
        );
    });
}
