//! What replicas said, of many at once.
//!
//! Without `follow` the replicas' lines are merged by time. With it, each comes as it comes, replicas that are new are
//! joined and those that ended are left; a tunnel that broke is opened again behind its last line.

use super::{Api, name, query};
use crate::hub::Tunnel;
use crate::refusal::Refused;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use futures_util::stream;
use gantry_api::http::LogLine;
use gantry_api::ids::{AppName, NodeId, ReplicaId, ReplicaName, ServiceName};
use gantry_api::wire::{LogsRequest, TunnelRequest};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Lines between a replica's tunnel and the person.
const LINES_MAX: usize = 256;
/// One line on a tunnel at most: agents cut lines at 1 MiB, of which each byte may be six in JSON.
const LINE_BYTES_MAX: u64 = 8 << 20;
/// Replicas read at once by one request.
const REPLICAS_MAX: usize = 256;
/// How often a followed set of replicas is looked at again, at least.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Deserialize, Clone)]
pub(super) struct LogsQuery {
    #[serde(default)]
    app: Option<String>,
    #[serde(default)]
    service: Option<String>,
    #[serde(default)]
    replica: Option<String>,
    #[serde(default)]
    follow: bool,
    #[serde(default)]
    tail: Option<u64>,
    #[serde(default)]
    since_ms: Option<u64>,
}

/// Whose lines are wanted.
#[derive(Clone)]
struct Wanted {
    app: Option<AppName>,
    service: Option<ServiceName>,
    replica: Option<String>,
}

#[derive(Clone)]
struct Source {
    id: ReplicaId,
    name: ReplicaName,
    node: NodeId,
    node_name: String,
}

pub(super) async fn read(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Refused> {
    let asked: LogsQuery = query(&request)?;
    let wanted = Wanted {
        app: asked.app.as_deref().map(name).transpose()?,
        service: asked.service.as_deref().map(name).transpose()?,
        replica: asked.replica.clone(),
    };
    if wanted.app.is_none() && wanted.replica.is_none() {
        return Err(Refused::invalid("app or replica must be given"));
    }
    let found = sources(&api, &wanted).await?;
    if found.is_empty() && !(asked.follow && known(&api, &wanted).await?) {
        return Err(Refused::not_found("no replica matches").hint("`gantry ps` lists the replicas"));
    }
    if found.len() > REPLICAS_MAX {
        return Err(Refused::invalid(format!(
            "{} replicas match, at most {REPLICAS_MAX} are read at once",
            found.len()
        ))
        .hint("name a service or a replica"));
    }
    let (lines, receiver) = mpsc::channel::<Bytes>(LINES_MAX);
    if asked.follow {
        tokio::spawn(follow(api, wanted, asked, lines));
    } else {
        tokio::spawn(history(api, found, asked, lines));
    }
    let body = stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|line| (Ok::<_, Infallible>(line), receiver))
    });
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(CONTENT_TYPE, axum::http::HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

async fn sources(api: &Api, wanted: &Wanted) -> Result<Vec<Source>, Refused> {
    let wanted = wanted.clone();
    let job = move |steward: &mut crate::steward::Steward| {
        let world = &steward.world;
        let matching = world.replicas.values().filter(|replica| {
            let record = &replica.record;
            wanted.app.as_ref().is_none_or(|app| record.name.app == *app)
                && wanted.service.as_ref().is_none_or(|service| record.name.service == *service)
                && wanted.replica.as_ref().is_none_or(|r| record.id.as_str() == r || record.name.to_string() == *r)
        });
        let source = |replica: &crate::core::Replica| {
            let node = world.nodes.get(&replica.record.node)?;
            Some(Source {
                id: replica.record.id.clone(),
                name: replica.record.name.clone(),
                node: node.record.id.clone(),
                node_name: node.record.name.to_string(),
            })
        };
        matching.filter_map(source).collect()
    };
    api.handle.ask(job).await
}

/// Whether there is something whose replicas may still come.
async fn known(api: &Api, wanted: &Wanted) -> Result<bool, Refused> {
    let wanted = wanted.clone();
    api.handle
        .ask(move |steward| {
            let app = wanted.app.as_ref().and_then(|app| steward.world.apps.get(app));
            app.is_some_and(|app| wanted.service.as_ref().is_none_or(|service| app.services.contains_key(service)))
        })
        .await
}

/// Lines of one replica.
struct Lines(BufReader<Tunnel>);

impl Lines {
    async fn open(api: &Api, source: &Source, request: LogsRequest) -> Result<Self, Refused> {
        api.hub.open_tunnel(&source.node, TunnelRequest::Logs(request)).await.map(|io| Self(BufReader::new(io)))
    }

    /// The next line; `None` at the end; an error when the agent breaks off.
    async fn next(&mut self) -> io::Result<Option<LogLine>> {
        let mut text = Vec::new();
        let length = (&mut self.0).take(LINE_BYTES_MAX).read_until(b'\n', &mut text).await?;
        if length == 0 { Ok(None) } else { Ok(serde_json::from_slice(&text)?) }
    }
}

fn line_bytes(line: &LogLine) -> Bytes {
    let mut json = serde_json::to_vec(line).unwrap_or_default();
    json.push(b'\n');
    Bytes::from(json)
}

/// A word of ours among the lines: whose lines are missing, and why.
fn missing(source: &Source, why: &str) -> LogLine {
    LogLine {
        time: jiff::Timestamp::now().to_string(),
        replica: source.id.clone(),
        name: source.name.clone(),
        stream: "stderr".to_owned(),
        line: format!("gantry: lines on node {} are out of reach: {}", source.node_name, why),
    }
}

/// All lines there are, merged by time.
async fn history(api: Arc<Api>, found: Vec<Source>, asked: LogsQuery, lines: mpsc::Sender<Bytes>) {
    let mut opening = JoinSet::new();
    for source in found {
        let (api, asked) = (Arc::clone(&api), asked.clone());
        opening.spawn(async move {
            let request = LogsRequest {
                replica: source.id.clone(),
                name: source.name.clone(),
                follow: false,
                tail: asked.tail,
                since_ms: asked.since_ms,
            };
            let opened = Lines::open(&api, &source, request).await;
            (source, opened)
        });
    }
    let mut heads: Vec<(Source, LogLine, Option<Lines>)> = Vec::new();
    for (source, opened) in opening.join_all().await {
        match opened {
            Ok(mut opened) => match opened.next().await {
                Ok(Some(line)) => heads.push((source, line, Some(opened))),
                Ok(None) => {}
                Err(error) => heads.push(broken(source, &error)),
            },
            Err(refused) => {
                let line = missing(&source, &refused.error.message);
                heads.push((source, line, None));
            }
        }
    }
    while let Some(first) = (0..heads.len()).min_by(|a, b| heads[*a].1.time.cmp(&heads[*b].1.time)) {
        let (source, line, rest) = heads.swap_remove(first);
        if lines.send(line_bytes(&line)).await.is_err() {
            return; // nobody reads any more
        }
        let Some(mut rest) = rest else { continue };
        match rest.next().await {
            Ok(Some(line)) => heads.push((source, line, Some(rest))),
            Ok(None) => {}
            Err(error) => heads.push(broken(source, &error)),
        }
    }
}

/// A place in a log whose agent broke off.
fn broken(source: Source, error: &io::Error) -> (Source, LogLine, Option<Lines>) {
    let line = missing(&source, &format!("the connection broke: {error}"));
    (source, line, None)
}

/// Lines as they come, of all replicas that match, also later ones.
async fn follow(api: Arc<Api>, wanted: Wanted, asked: LogsQuery, lines: mpsc::Sender<Bytes>) {
    let mut steps = api.handle.steps.clone();
    let mut readers: JoinSet<(ReplicaId, Option<String>)> = JoinSet::new();
    let mut reading: BTreeSet<ReplicaId> = BTreeSet::new();
    let mut last: BTreeMap<ReplicaId, Option<String>> = BTreeMap::new();
    loop {
        let Ok(found) = sources(&api, &wanted).await else { return };
        last.retain(|id, _| found.iter().any(|source| source.id == *id));
        for source in found.into_iter().take(REPLICAS_MAX) {
            if reading.insert(source.id.clone()) {
                let from = last.get(&source.id).cloned();
                readers.spawn(follow_one(Arc::clone(&api), source, asked.clone(), from, lines.clone()));
            }
        }
        let ended = tokio::select! {
            ended = readers.join_next(), if !readers.is_empty() => ended,
            () = lines.closed() => return,
            _ = steps.changed() => None,
            () = tokio::time::sleep(LOOK_AGAIN) => None,
        };
        if let Some(Ok((id, time))) = ended {
            // Opened again at the next look, unless the replica is gone by then.
            reading.remove(&id);
            last.insert(id, time);
        }
    }
}

/// One tunnel's lines; returns the time of the last one. `from`: it was read before, up to this line.
async fn follow_one(
    api: Arc<Api>,
    source: Source,
    asked: LogsQuery,
    from: Option<Option<String>>,
    lines: mpsc::Sender<Bytes>,
) -> (ReplicaId, Option<String>) {
    let again = from.is_some();
    let mut last = from.flatten();
    let since_ms =
        last.as_ref().and_then(|time| time.parse::<jiff::Timestamp>().ok()).map(|t| t.as_millisecond() as u64);
    let request = LogsRequest {
        replica: source.id.clone(),
        name: source.name.clone(),
        follow: true,
        tail: if again && since_ms.is_some() { None } else { asked.tail },
        since_ms: since_ms.map(|ms| ms.saturating_sub(1)).or(asked.since_ms),
    };
    if let Ok(mut opened) = Lines::open(&api, &source, request).await {
        while let Ok(Some(line)) = opened.next().await {
            if again && last.as_ref().is_some_and(|last| line.time <= *last) {
                continue;
            }
            let bytes = line_bytes(&line);
            last = Some(line.time);
            if lines.send(bytes).await.is_err() {
                break;
            }
        }
    }
    // Each pauses for itself: a node's replicas all end together when its agent goes, and are read again together.
    tokio::time::sleep(LOOK_AGAIN).await;
    (source.id, last)
}
