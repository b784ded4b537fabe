//! Commands about one container from many processes at once: one wins, the others say why not, and nothing is left.

mod common;

use common::{Bed, Ran, finish, id, runs, until};
use std::sync::Barrier;

/// The same moment for several commands; their results in order.
fn at_once(bed: &Bed, commands: &[Vec<&str>]) -> Vec<Ran> {
    let barrier = Barrier::new(commands.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = commands
            .iter()
            .map(|args| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut command = bed.command(args);
                    barrier.wait();
                    finish(&mut command)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a result")).collect()
    })
}

fn winners(all: &[Ran]) -> usize {
    all.iter().filter(|ran| ran.code == 0).count()
}

#[test]
fn one_of_several_creates_wins() {
    let bed = Bed::new("sleep 100000");
    bed.save();
    for _ in 0..15 {
        let name = id("create");
        let all = at_once(&bed, &vec![vec!["create", &name]; 4]);
        assert_eq!(winners(&all), 1, "{all:?}");
        for ran in all.iter().filter(|ran| ran.code != 0) {
            assert!(ran.code == 1 && ran.err.contains("already exists"), "{ran:?}");
        }
        assert_eq!(bed.status(&name), "created");
        bed.ok(&["start", &name]);
        bed.ok(&["delete", "--force", &name]);
        bed.assert_gone(&name);
    }
}

#[test]
fn one_of_several_starts_wins() {
    let bed = Bed::new("sleep 100000");
    for _ in 0..15 {
        let name = id("start");
        bed.ok(&["create", &name]);
        let all = at_once(&bed, &vec![vec!["start", &name]; 4]);
        assert_eq!(winners(&all), 1, "{all:?}");
        for ran in all.iter().filter(|ran| ran.code != 0) {
            assert!(ran.code == 1 && ran.err.contains("cannot start a"), "{ran:?}");
        }
        assert_eq!(bed.status(&name), "running");
        bed.ok(&["delete", "--force", &name]);
        bed.assert_gone(&name);
    }
}

#[test]
fn one_of_several_deletes_wins() {
    let bed = Bed::new("true");
    for force in [false, true] {
        for _ in 0..15 {
            let name = id("delete");
            bed.ok(&["create", &name]);
            let args = if force { vec!["delete", "--force", name.as_str()] } else { vec!["delete", name.as_str()] };
            let all = at_once(&bed, &vec![args; 4]);
            // With force, that it is gone is all that was asked for.
            assert_eq!(winners(&all), if force { 4 } else { 1 }, "{all:?}");
            for ran in all.iter().filter(|ran| ran.code != 0) {
                assert!(ran.code == 1 && ran.err.contains("does not exist"), "{ran:?}");
            }
            bed.assert_gone(&name);
        }
    }
}

#[test]
fn a_late_delete_does_not_hit_the_next_container() {
    // While several processes delete one container, its ID is used again and again.
    let bed = Bed::new("sleep 100000");
    bed.save();
    let name = id("next");
    for _ in 0..20 {
        bed.ok(&["create", &name]);
        let all = at_once(&bed, &[vec!["delete", &name], vec!["delete", &name], vec!["create", &name]]);
        let created = all[2].code == 0;
        assert!(
            created || all[2].err.contains("already exists") || all[2].err.contains("was deleted while"),
            "{all:?}"
        );
        if created {
            // Made after the first was gone: deleted by a command that came later still, or whole.
            match finish(&mut bed.command(&["state", &name])) {
                Ran { code: 0, .. } => {
                    let pid = bed.pid(&name);
                    assert!(runs(pid), "{all:?}");
                    bed.ok(&["start", &name]);
                }
                _ => assert_eq!(winners(&all[..2]), 2, "{all:?}"),
            }
        } else {
            assert_eq!(winners(&all[..2]), 1, "{all:?}");
        }
        bed.ok(&["delete", "--force", &name]);
        bed.assert_gone(&name);
    }
}

#[test]
fn everything_at_once() {
    let bed = Bed::new("sleep 100000");
    bed.save();
    let names: Vec<String> = (0..3).map(|_| id("mix")).collect();
    let kinds: [&[&str]; 8] = [
        &["create"],
        &["start"],
        &["kill", "KILL"],
        &["exec", "true"],
        &["delete"],
        &["delete", "--force"],
        &["state"],
        &["run", "-d"],
    ];
    std::thread::scope(|scope| {
        for worker in 0..10_usize {
            let (bed, names) = (&bed, &names);
            scope.spawn(move || {
                // A fixed walk, another one for each worker.
                let mut seed = worker * 7919 + 17;
                for _ in 0..12 {
                    seed = (seed * 1_103_515_245 + 12_345) & 0x7fff_ffff;
                    let (kind, name) = (kinds[(seed >> 8) % kinds.len()], &names[(seed >> 16) % names.len()]);
                    let mut args = kind.to_vec();
                    // Options stand before the ID, what belongs to it after.
                    let at = args.iter().skip(1).take_while(|word| word.starts_with('-')).count() + 1;
                    args.insert(at, name);
                    let ran = finish(&mut bed.command(&args));
                    // Force ends a creator, and a program that is executed in the container.
                    let ended = matches!(kind[0], "create" | "run" | "exec") && ran.code == 137;
                    let code_is_known = matches!(ran.code, 0 | 1) || ended || kind[0] == "exec" && ran.code == 255;
                    assert!(code_is_known && !ran.err.contains("panicked"), "{args:?}: {ran:?}");
                    assert!(ran.code != 1 || ran.err.contains("gantry-runtime: "), "{args:?}: {ran:?}");
                    assert!(ran.code == 0 || args[..2] != ["delete", "--force"], "{args:?}: {ran:?}");
                }
            });
        }
    });
    for name in &names {
        bed.ok(&["delete", "--force", name]);
        bed.assert_gone(name);
    }
    until("no process is left", || !bed.is_in_use());
    assert_eq!(bed.ok(&["list", "-q"]), "");
}

#[test]
fn a_foreground_run_that_is_deleted_ends() {
    let bed = Bed::new("sleep 100000");
    bed.save();
    for round in 0..10_u64 {
        let name = id("deleted");
        let child = bed.command(&["run", &name]).stderr(std::process::Stdio::null()).spawn().expect("the runtime");
        std::thread::sleep(std::time::Duration::from_millis(round * 3));
        // It may not be there yet.
        until("it is deleted", || {
            let ran = bed.run(&["delete", "--force", &name]);
            assert_eq!(ran.code, 0, "{ran:?}");
            !bed.is_in_use() || !runs(child.id() as i32)
        });
        assert!(matches!(common::wait(child), 1 | 137), "killed, or its creation was");
        bed.ok(&["delete", "--force", &name]);
        bed.assert_gone(&name);
    }
}
