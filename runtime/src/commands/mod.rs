//! What each command does, one file each: its options as a table, and from parsed values to an exit code.

pub mod checkpoint;
pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod features;
pub mod kill;
pub mod launching;
pub mod list;
pub mod one;
pub mod pause;
pub mod ps;
pub mod restore;
pub mod run;
pub mod spec;
pub mod start;
pub mod state;
pub mod supervised;
pub mod update;

use self::one::One;
use crate::args::{Entry, Global, Parsed, help};
use crate::config::SPEC_VERSION;
use crate::error::Outcome;
use crate::report;
use crate::state::{Record, StateDir};

/// Every command, in the order of the help.
pub const COMMANDS: &[Entry] = &[
    Entry::of::<create::Create>(),
    Entry::of::<One<start::Start>>(),
    Entry::of::<run::Run>(),
    Entry::of::<One<state::State>>(),
    Entry::of::<kill::Kill>(),
    Entry::of::<delete::Delete>(),
    Entry::of::<exec::Exec>(),
    Entry::of::<One<pause::Pause>>(),
    Entry::of::<One<pause::Resume>>(),
    Entry::of::<update::Update>(),
    Entry::of::<ps::Ps>(),
    Entry::of::<events::Events>(),
    Entry::of::<list::List>(),
    Entry::of::<checkpoint::Checkpoint>(),
    Entry::of::<restore::Restore>(),
    Entry::of::<spec::Spec>(),
    Entry::of::<features::Features>(),
];

/// Whether there are `checkpoint` and `restore`.
pub const CHECKPOINTS: bool = true;

/// Carry out a line.
///
/// # Errors
/// It failed; nothing half-done is left but what `delete --force` removes.
pub fn run(global: &Global, parsed: &Parsed) -> Outcome<i32> {
    match parsed {
        Parsed::Help(entry) => {
            report::print(&entry.map_or_else(help::all, |entry| (entry.help)()))?;
            Ok(0)
        }
        Parsed::Version => {
            report::print(&format!("gantry-runtime version {}\nspec: {SPEC_VERSION}\n", env!("CARGO_PKG_VERSION")))?;
            Ok(0)
        }
        Parsed::Command(command) => command.run(global),
    }
}

/// An existing container, complete enough to be used.
///
/// # Errors
/// There is none of this name.
pub fn open(global: &Global, id: &str) -> Outcome<(StateDir, Record)> {
    let dir = StateDir::new(&global.root, id)?;
    let record = dir.read_complete()?;
    Ok((dir, record))
}
