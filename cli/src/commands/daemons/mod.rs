//! The daemons, together or each in a process of its own.
//!
//! ```text
//! server = scheduler + netd + agent      join = netd + agent
//! ```
//! In one process they talk over the same sockets as apart, so that each can be killed and started by itself.

pub mod agent;
pub mod join;
pub mod netd;
pub mod scheduler;
pub mod server;

use crate::error::CliError;
use crate::global::Global;
use crate::host;
use gantry_api::ids::NodeName;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// What this host is to the cluster.
#[derive(Debug, Clone, clap::Args)]
pub struct Membership {
    /// Name of this node. Default: the host's name.
    #[arg(long, value_name = "NAME")]
    name: Option<NodeName>,
    #[command(flatten)]
    worker: Worker,
}

/// What the agent tells of this host.
#[derive(Debug, Clone, clap::Args)]
pub struct Worker {
    /// This host's IPv4 address for other hosts. Default: the one it would reach them from.
    #[arg(long, value_name = "ADDRESS")]
    advertise: Option<Ipv4Addr>,
    /// Label for placement (`node.labels.KEY`); may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = host::label)]
    label: Vec<(String, String)>,
    /// Registry to speak to without TLS; those on loopback always are. May be repeated.
    #[arg(long, value_name = "HOST[:PORT]")]
    insecure_registry: Vec<String>,
    /// Percent of the disk in use from which on images that no replica uses are removed, and until which.
    #[arg(long, value_name = "HIGH:LOW", default_value = "85:75")]
    image_watermarks: gantry_images::Watermarks,
}

impl Membership {
    fn name(&self) -> Result<NodeName, CliError> {
        self.name.clone().map_or_else(host::node_name, Ok)
    }
}

/// An error of a daemon with its hint.
macro_rules! failed {
    ($error:expr) => {{
        let error = $error;
        let cli = CliError::chain(&error);
        match error.hint() {
            Some(hint) => cli.hint(hint),
            None => cli,
        }
    }};
}
use failed;

fn netd_config(global: &Global) -> gantry_netd::Config {
    let mut config = gantry_netd::Config::new(global.run_dir.clone(), global.data_dir.clone());
    config.cgroup_parent = Some(global.cgroup_parent.clone());
    config
}

fn agent_config(global: &Global, worker: &Worker, advertise: Ipv4Addr) -> Result<gantry_agent::Config, CliError> {
    let own =
        std::env::current_exe().map_err(|error| CliError::new(format!("cannot find this program's file: {error}")))?;
    Ok(gantry_agent::Config {
        data_dir: global.data_dir.clone(),
        run_dir: global.run_dir.clone(),
        cgroup_parent: global.cgroup_parent.clone(),
        runtime: host::runtime(global.runtime.as_deref())?,
        init: own,
        netd_socket: netd_config(global).socket,
        advertise,
        labels: worker.label.iter().cloned().collect::<BTreeMap<_, _>>(),
        capacity: None,
        reserved: gantry_api::wire::Capacity::default(),
        insecure_registries: worker.insecure_registry.clone(),
        watermarks: worker.image_watermarks,
    })
}
