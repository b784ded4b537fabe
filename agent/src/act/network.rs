//! The node's network: netd is handed the table, and asked for attachments.

use crate::error::chain;
use gantry_api::ids::Revision;
use gantry_api::network::{AttachRequest, Attachment, Table};
use gantry_netd::client::Client;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// First pause before netd is asked again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause before netd is asked again.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Between two looks at how netd is doing.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long an attachment waits for the first table of a node that has just started.
const TABLE_MAX: Duration = Duration::from_secs(10);
/// An attachment is a few netlink messages.
const ATTACH_MAX: Duration = Duration::from_secs(20);

/// How the network is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Revision of the table in force; 0 before the first.
    pub(crate) applied: Revision,
    /// In words for a person.
    pub(crate) problems: Vec<String>,
}

/// Gives replicas their networks.
pub(crate) struct Network {
    client: Arc<Client>,
    state: watch::Receiver<State>,
}

impl Network {
    pub(crate) fn new(client: Arc<Client>, state: watch::Receiver<State>) -> Self {
        Self { client, state }
    }

    /// The network of a replica; the same one when it is asked for again.
    pub(crate) async fn attach(&self, request: &AttachRequest) -> Result<Attachment, String> {
        let mut state = self.state.clone();
        if timeout(TABLE_MAX, state.wait_for(|state| state.applied > Revision(0))).await.is_err() {
            let why = state.borrow().problems.first().cloned();
            return Err(why.unwrap_or_else(|| "the node's network is not set up yet".to_owned()));
        }
        match timeout(ATTACH_MAX, self.client.attach(request)).await {
            Ok(attached) => attached.map_err(|error| format!("cannot attach to the node's network: {}", chain(&error))),
            Err(_) => Err("cannot attach to the node's network: netd does not answer".to_owned()),
        }
    }

    /// Takes a replica's network away; succeeds when it is gone.
    pub(crate) async fn detach(&self, id: &str) -> Result<(), String> {
        match timeout(ATTACH_MAX, self.client.detach(id)).await {
            Ok(detached) => {
                detached.map_err(|error| format!("cannot detach from the node's network: {}", chain(&error)))
            }
            Err(_) => Err("cannot detach from the node's network: netd does not answer".to_owned()),
        }
    }
}

/// Keeps netd at the newest table until it is dropped.
pub(crate) async fn keep(
    client: Arc<Client>,
    mut tables: watch::Receiver<Option<Arc<Table>>>,
    state: watch::Sender<State>,
) {
    let mut pause = RETRY_FIRST;
    let mut in_force = None;
    loop {
        let table = tables.borrow_and_update().clone();
        let result = step(&client, table.as_deref(), &mut in_force).await;
        let failed = result.is_err();
        let problems = result.unwrap_or_else(|problem| vec![problem]);
        state.send_if_modified(|state| {
            let applied = in_force.unwrap_or(state.applied);
            let new = State { applied, problems };
            let changed = *state != new;
            *state = new;
            changed
        });
        let wait = if failed { pause } else { LOOK_AGAIN };
        pause = if failed { (pause * 2).min(RETRY_MAX) } else { RETRY_FIRST };
        tokio::select! {
            changed = tables.changed() => if changed.is_err() { return },
            () = sleep(wait) => {}
        }
    }
}

/// Hands over the table if netd has another one; netd's problems.
async fn step(client: &Client, table: Option<&Table>, in_force: &mut Option<Revision>) -> Result<Vec<String>, String> {
    let Some(table) = table else { return Ok(Vec::new()) };
    let failed = |what: &str, error: &dyn std::error::Error| format!("netd {what}: {}", chain(error));
    let silent = |_| "netd does not answer".to_owned();
    if *in_force != Some(table.revision) {
        let set = timeout(ATTACH_MAX, client.set_table(table)).await.map_err(silent)?;
        set.map_err(|error| failed("does not take the network table", &error))?;
        *in_force = Some(table.revision);
    }
    let status = timeout(ATTACH_MAX, client.status()).await.map_err(silent)?;
    let status = status.map_err(|error| failed("does not tell how it is", &error))?;
    if status.revision != Some(table.revision) {
        // It was started afresh without its table: handed over again at the next turn.
        *in_force = None;
        return Err("netd has lost the network table".to_owned());
    }
    Ok(status.problems)
}
