//! What happened, and what happens.

use super::{Api, query};
use crate::refusal::Refused;
use axum::Json;
use axum::extract::{Request, State};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use gantry_api::http::Event;
use serde::Deserialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

#[derive(Deserialize)]
pub(super) struct EventsQuery {
    #[serde(default)]
    follow: bool,
    /// Only events after this sequence.
    #[serde(default)]
    after: Option<u64>,
}

/// The events kept; followed, each as one server-sent event whose id is its sequence, first those kept.
pub(super) async fn list(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Refused> {
    let EventsQuery { follow, after } = query(&request)?;
    let last = request.headers().get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let after = last.or(after).unwrap_or(0);
    let log = Arc::clone(&api.handle.events);
    if !follow {
        return Ok(Json(log.after(after)).into_response());
    }
    let newest = log.subscribe();
    let state = (log, newest, after, VecDeque::<Event>::new());
    let events = stream::unfold(state, async |(log, mut newest, mut after, mut pending)| {
        while pending.is_empty() {
            newest.borrow_and_update();
            pending.extend(log.after(after));
            if pending.is_empty() && newest.changed().await.is_err() {
                return None; // the scheduler ends
            }
        }
        let event = pending.pop_front()?;
        after = event.sequence;
        let data = serde_json::to_string(&event).unwrap_or_default();
        let sent = Sent::default().id(event.sequence.to_string()).event(event.kind).data(data);
        Some((Ok::<_, Infallible>(sent), (log, newest, after, pending)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}
