//! Daemons of this process: how they start, log, are told to stop, and what their ending means.
//!
//! Nothing that a daemon's end means for what runs: containers, traffic and logs go on without them.

use crate::error::{CliError, Outcome};
use crate::render::out;
use std::future::Future;
use std::io::{self, IsTerminal};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;

/// Daemons finish what they hold in their hands; one that takes longer is left.
const STOP_MAX: Duration = Duration::from_secs(10);

/// What a daemon tells about itself, on standard error.
#[derive(Debug, Clone, clap::Args)]
pub struct Log {
    /// How much to log: `error`, `warn`, `info`, `debug`, `trace`, or per module (`info,gantry_netd=debug`).
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "info", value_parser = filter)]
    log_level: String,
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl Log {
    /// From here on, this process logs.
    pub fn start(&self) {
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(&self.log_level))
            .with_writer(io::stderr)
            .with_ansi(colour)
            .init();
    }
}

/// Runs a daemon's future on all processors.
///
/// # Errors
/// The runtime cannot be made, or what the future returns.
pub fn block_on(future: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(format!("cannot start threads: {error}")))?;
    let outcome = runtime.block_on(future);
    // Threads that wait for a disk or a registry are ended by the process's end. Shutting the runtime down first would
    // take its clock from under them.
    std::mem::forget(runtime);
    outcome
}

/// Daemons that run together in this process: the end of one is the end of all.
#[derive(Debug)]
pub struct Daemons {
    running: JoinSet<(&'static str, Result<(), CliError>)>,
    stop: watch::Sender<bool>,
    interrupt: Signal,
    terminate: Signal,
}

impl Daemons {
    /// None yet. From here on, SIGINT and SIGTERM wait for [`Daemons::until_told`].
    ///
    /// # Errors
    /// Signals cannot be watched for.
    pub fn new() -> Result<Self, CliError> {
        let failed = |error: io::Error| CliError::new(format!("cannot watch for signals: {error}"));
        Ok(Self {
            running: JoinSet::new(),
            stop: watch::Sender::new(false),
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    /// Turns true when daemons must stop.
    pub fn stop(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Starts one.
    pub fn start(&mut self, name: &'static str, daemon: impl Future<Output = Result<(), CliError>> + Send + 'static) {
        self.running.spawn(async move { (name, daemon.await) });
    }

    /// Does what comes before readiness while the daemons run.
    ///
    /// # Errors
    /// What `work` returns, or a daemon that ends meanwhile; [`CliError::silent`] when told to stop meanwhile.
    pub async fn meanwhile<T>(&mut self, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
        tokio::select! {
            result = work => result,
            ended = self.running.join_next(), if !self.running.is_empty() => Err(early(ended)),
            _ = self.interrupt.recv() => Err(CliError::silent(0)),
            _ = self.terminate.recv() => Err(CliError::silent(0)),
        }
    }

    /// Waits for SIGINT or SIGTERM, then for the daemons to stop.
    ///
    /// # Errors
    /// One ended by itself, or does not stop.
    pub async fn until_told(mut self) -> Outcome {
        let waited = self.meanwhile(std::future::pending::<Result<(), CliError>>()).await;
        self.end(waited).await
    }

    /// Stops all daemons. `reason` is why: told, or a failure.
    ///
    /// # Errors
    /// The failure, or a daemon that fails to stop.
    pub async fn end(mut self, reason: Result<(), CliError>) -> Outcome {
        // A failed notification is nothing to stop for.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let _ = self.stop.send(true);
        let stopped = async {
            let mut first = Ok(());
            while let Some(ended) = self.running.join_next().await {
                let result = ended.map_or_else(|error| Err(CliError::chain(&error)), |(_, result)| result);
                first = first.and(result);
            }
            first
        };
        let stopped = tokio::select! {
            stopped = stopped => stopped,
            () = tokio::time::sleep(STOP_MAX) => {
                Err(CliError::new(format!("the daemons did not stop within {}s", STOP_MAX.as_secs())))
            }
            _ = self.interrupt.recv() => Err(CliError::new("interrupted while the daemons stopped")),
        };
        match reason {
            Err(error) if !error.message.is_empty() => Err(error),
            _ => {
                out::note("Gantry has stopped here; containers, their traffic and their logs go on.");
                stopped.map(|()| 0)
            }
        }
    }
}

type Ended = Option<Result<(&'static str, Result<(), CliError>), tokio::task::JoinError>>;

/// Why it is an error that a daemon ended untold.
fn early(ended: Ended) -> CliError {
    match ended {
        Some(Ok((name, Ok(())))) => CliError::new(format!("the {name} ended by itself")),
        Some(Ok((name, Err(error)))) => CliError { message: format!("the {name} failed: {}", error.message), ..error },
        Some(Err(error)) => CliError::chain(&error),
        None => CliError::new("there is no daemon"),
    }
}

/// Tells systemd, where it started us, that we serve.
pub fn tell_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!("cannot tell systemd that we are ready: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(mut stop: watch::Receiver<bool>) -> Result<(), CliError> {
        let _ = stop.wait_for(|stop| *stop).await;
        Ok(())
    }

    #[tokio::test]
    async fn the_end_of_one_daemon_is_the_end_of_all() {
        let mut daemons = Daemons::new().unwrap();
        daemons.start("scheduler", told(daemons.stop()));
        daemons.start("agent", async { Err(CliError::new("no cgroups").hint("mount them")) });
        let error = daemons.until_told().await.unwrap_err();
        assert_eq!(error.message, "the agent failed: no cgroups");
        assert_eq!((error.hint.as_deref(), error.code), (Some("mount them"), 1));
    }

    #[tokio::test]
    async fn a_daemon_that_just_ends_is_a_failure() {
        let mut daemons = Daemons::new().unwrap();
        daemons.start("netd", async { Ok(()) });
        assert_eq!(daemons.until_told().await.unwrap_err().message, "the netd ended by itself");
    }

    #[tokio::test]
    async fn being_told_to_stop_is_success() {
        let mut daemons = Daemons::new().unwrap();
        daemons.start("scheduler", told(daemons.stop()));
        assert_eq!(daemons.end(Err(CliError::silent(0))).await.unwrap(), 0);
    }

    #[test]
    fn a_filter_is_checked() {
        assert!(filter("info,gantry_netd=debug").is_ok());
        assert!(filter("info,=,x=noise").is_err());
    }
}
