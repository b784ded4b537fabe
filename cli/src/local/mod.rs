//! Containers and images of this host, without any daemon: `gantry run` and what belongs to it.
//!
//! ```text
//! run ─► options (a wish) ─► images ─► record (reserve) ─► life: snapshot, network, bundle ─► runtime
//!                                                             ▲ release, destroy, sweep
//! stop, kill, start, rm, logs, list ─── commands ─────────────┘
//! ```

mod build;
mod commands;
mod cp;
mod error;
mod image;
pub mod images;
mod life;
mod options;
mod record;
mod run;
mod runtime;
mod volumes;

pub use build::{Commit, Diff};
pub use commands::{ExecOptions, Kill, LogOptions, Rm, Start, Stop, any, exec, knows, logs, ps};
pub use cp::Cp;
pub use image::{Image, Push, Save, System, Tag};
pub use images::{Images, Load, Pull, Rmi};
pub use options::Run;
pub use run::Watch;

#[cfg(test)]
mod tests {
    #[test]
    fn the_manual_names_every_command_and_option() {
        fn check<T: clap::Args>(name: &str) {
            let manual = include_str!("../../../docs/run.md");
            let command = T::augment_args(clap::Command::new("x"));
            assert!(manual.contains(&format!("`{name}")), "{name} is not in docs/run.md");
            for option in command.get_arguments() {
                let long = option.get_long().map(|long| format!("--{long}"));
                let short = option.get_short().map(|short| format!("-{short}"));
                let named = [&long, &short].into_iter().flatten().any(|word| manual.contains(word.as_str()));
                assert!(named || long.is_none() || option.get_id() == "help", "{name} {long:?} is not in docs/run.md");
            }
        }
        check::<super::Run>("gantry run");
        check::<super::Stop>("stop");
        check::<super::Kill>("kill");
        check::<super::Start>("start");
        check::<super::Rm>("rm");
        check::<super::Pull>("pull");
        check::<super::Images>("images");
        check::<super::Rmi>("rmi");
        check::<super::Load>("load");
        check::<super::Push>("push");
        check::<super::Tag>("tag");
        check::<super::Save>("save");
        check::<super::image::Inspect>("image inspect");
        check::<super::image::ShowHistory>("image history");
        check::<super::image::Verify>("image verify");
        check::<super::image::Prune>("image prune");
        check::<super::image::Df>("system df");
        check::<super::Cp>("cp");
        check::<super::Commit>("commit");
        check::<super::Diff>("diff");
        check::<super::build::FromRootfs>("image from-rootfs");
    }
}
