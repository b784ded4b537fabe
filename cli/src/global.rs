//! Options that every command takes.

use std::path::PathBuf;

/// Where things are. Several nodes can live on one machine when these differ.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Directory for what must survive a reboot.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "GANTRY_DATA_DIR",
        default_value = "/var/lib/gantry",
        help_heading = "Global options"
    )]
    pub(crate) data_dir: PathBuf,
    /// Directory for what must not survive a reboot.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "GANTRY_RUN_DIR",
        default_value = "/run/gantry",
        help_heading = "Global options"
    )]
    pub(crate) run_dir: PathBuf,
    /// Cgroup below which all of ours are made.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "GANTRY_CGROUP_PARENT",
        default_value = "/gantry",
        help_heading = "Global options"
    )]
    pub(crate) cgroup_parent: String,
    /// Scheduler to talk to: `unix:///run/gantry/gantry.sock`. Default: this host's, else the only running lab's.
    #[arg(
        long,
        short = 'H',
        global = true,
        value_name = "ADDRESS",
        env = "GANTRY_HOST",
        help_heading = "Global options"
    )]
    pub(crate) host: Option<String>,
    /// The container runtime's binary. Default: `gantry-runtime` beside this program, then on PATH.
    #[arg(long, global = true, value_name = "FILE", env = "GANTRY_RUNTIME", help_heading = "Global options")]
    pub(crate) runtime: Option<PathBuf>,
}
