//! The life of a replica: start, death, adoption, replacement, removal.

use crate::common::*;
use gantry_agent::deaths;
use gantry_api::spec::{File, HealthCheck, Mount, MountSource, PullPolicy, RestartCondition};
use gantry_api::units::Millis;
use gantry_api::wire::{AssignedReplica, ReplicaState, ReplicaStatus};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn a_killed_replica_is_back_at_once() {
    inside("replica::a_killed_replica_is_back_at_once", || async {
        let mut world = World::new().await;
        let web = replica("web", 1, "echo up; exec sleep 1000");
        world.assign(&[&web], &[]);
        world.start_agent();
        let first = world.running(&web.id, 0).await;
        assert_eq!(first.address.unwrap().octets()[..3], [10, 210, 1]);
        assert_eq!(world.scheduler.hellos()[0].labels["disk"], "ssd");
        let log = world.replica_dir(&web.id).join("log");
        eventually("it has written", || fs::read_to_string(&log).is_ok_and(|text| text.contains("up"))).await;
        for restarts in 1..=3 {
            let before = world.pid(&web.id);
            let begun = Instant::now();
            kill(before);
            let status = world.running(&web.id, restarts).await;
            println!("restart {restarts} was reported after {:?}", begun.elapsed());
            assert_ne!(world.pid(&web.id), before);
            assert_eq!(status.last_exit.unwrap().signal, Some(9));
            assert_eq!(status.address, first.address);
        }
        eventually("three ends are recorded", || {
            deaths::read(&world.data_dir().join("agent/deaths")).unwrap().len() == 3
        })
        .await;
        let death = deaths::read(&world.data_dir().join("agent/deaths")).unwrap().remove(0);
        assert_eq!((death.exit.signal, death.image.as_str()), (Some(9), IMAGE));
        assert!(death.last_lines.contains(&"up".to_owned()), "{death:?}");
    });
}

#[test]
fn a_new_agent_takes_over_what_runs_and_what_died_meanwhile() {
    inside("replica::a_new_agent_takes_over_what_runs_and_what_died_meanwhile", || async {
        let mut world = World::new().await;
        let (stays, dies) = (replica("stays", 1, SERVER), replica("dies", 1, SERVER));
        let mut job = replica("job", 1, "echo once; exit 0");
        job.template.restart.condition = RestartCondition::OnFailure;
        world.assign(&[&stays, &dies, &job], &[]);
        world.start_agent();
        world.running(&stays.id, 0).await;
        world.running(&dies.id, 0).await;
        let completed = |r: &ReplicaStatus| r.state == ReplicaState::Completed;
        world.scheduler.wait_replica(&job.id, "the job is done", completed).await;
        let (pid, dying) = (world.pid(&stays.id), world.pid(&dies.id));
        world.kill_agent().await;
        // Nobody schedules, nobody watches.
        world.scheduler.stop();
        kill(dying);
        let exits = world.data_dir().join("agent/exits").join(format!("{}.json", dies.id));
        eventually("the supervisor has written the exit", || exits.exists()).await;
        world.start_agent();
        eventually("it runs again", || !exits.exists() && is_running(&world, &dies)).await;
        assert_eq!(world.pid(&stays.id), pid, "what runs is left alone");
        let once = fs::read_to_string(world.replica_dir(&job.id).join("log")).unwrap();
        assert_eq!(once.matches("once").count(), 1, "a job that is done is not done again");
        let deaths = deaths::read(&world.data_dir().join("agent/deaths")).unwrap();
        assert!(deaths.iter().any(|death| death.replica == dies.id && death.exit.signal == Some(9)));
    });
}

fn is_running(world: &World, replica: &AssignedReplica) -> bool {
    let list: serde_json::Value = serde_json::from_str(&world.runtime(&["list", "--format", "json"])).unwrap();
    list.as_array().unwrap().iter().any(|c| c["id"] == replica.id.as_str() && c["status"] == "running")
}

#[test]
fn after_a_reboot_replicas_are_made_again_from_the_ledger() {
    inside("replica::after_a_reboot_replicas_are_made_again_from_the_ledger", || async {
        let mut world = World::new().await;
        let web = replica("web", 1, SERVER);
        world.assign(&[&web], &[]);
        world.start_agent();
        let first = world.running(&web.id, 0).await;
        world.kill_agent().await;
        world.scheduler.stop();
        // What a reboot takes: every process with its supervisor, what the runtime knows, and mounts.
        let supervisor = parent(world.pid(&web.id));
        kill(supervisor);
        kill(world.pid(&web.id));
        eventually("it is gone", || !is_running(&world, &web)).await;
        fs::remove_dir_all(world.run_dir().join("runtime")).unwrap();
        let rootfs = world.data_dir().join("images/containers").join(web.id.as_str()).join("rootfs");
        rustix::mount::unmount(&rootfs, rustix::mount::UnmountFlags::DETACH).unwrap();
        world.start_agent();
        eventually("it runs again", || world.run_dir().join("runtime").exists() && is_running(&world, &web)).await;
        assert!(rootfs.join("bin/busybox").exists());
        let facts = fs::read_to_string(world.data_dir().join("agent/ledger.json")).unwrap();
        assert!(facts.contains(&first.address.unwrap().to_string()), "its address is the same");
    });
}

fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_removed_replica_leaves_nothing() {
    inside("replica::a_removed_replica_leaves_nothing", || async {
        let mut world = World::new().await;
        let mut web = replica("web", 1, SERVER);
        web.template.files = vec![File {
            target: "/run/secrets/key".to_owned(),
            content: "k3y".to_owned(),
            mode: 0o400,
            uid: 0,
            gid: 0,
            secret: true,
        }];
        let kept = replica("kept", 1, SERVER);
        world.assign(&[&web, &kept], &[]);
        world.start_agent();
        world.running(&web.id, 0).await;
        world.running(&kept.id, 0).await;
        let netd = gantry_netd::client::Client::new(world.run_dir().join("netd.sock"));
        assert_eq!(netd.attachments().await.unwrap().len(), 2);
        let named = |root: &Path| find(root, web.id.as_str());
        assert!(!named(world.dir.path()).is_empty());
        world.assign(&[&kept], &[]);
        world.scheduler.wait("it is gone", |report| report.replicas.len() == 1).await;
        let mut left = named(world.dir.path());
        left.retain(|path| !path.contains("/agent/deaths/"));
        assert_eq!(left, Vec::<String>::new(), "only the record of its end is left");
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
            let group = hierarchy.unwrap().path().join(&world.cgroup_parent[1..]).join(web.id.as_str());
            assert!(!group.exists(), "{}", group.display());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(web.id.as_str()), "mounts");
        assert_eq!(netd.attachments().await.unwrap().len(), 1);
        assert!(!world.runtime(&["list"]).contains(web.id.as_str()));
        world.running(&kept.id, 0).await;
    });
}

/// Everything below `root` with `name` in its name.
fn find(root: &Path, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut stack = vec![root.to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(name) {
                found.push(entry.path().display().to_string());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                stack.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn a_volume_outlives_its_replicas() {
    inside("replica::a_volume_outlives_its_replicas", || async {
        let mut world = World::new().await;
        let volume = Mount {
            target: "/data".to_owned(),
            source: MountSource::Volume { name: "db".parse().unwrap() },
            read_only: false,
        };
        let mut old = replica("db", 1, "cat /data/seed > /data/copy; echo done; exec sleep 1000");
        old.template.mounts = vec![volume];
        old.template.user = Some("app".to_owned());
        world.assign(&[&old], &[]);
        world.start_agent();
        world.running(&old.id, 0).await;
        let data = world.data_dir().join("volumes/shop_db/_data");
        eventually("it has written", || fs::read(data.join("copy")).is_ok_and(|text| text == b"from the image\n"))
            .await;
        let top = data.metadata().unwrap();
        assert_eq!((top.uid(), top.mode() & 0o777), (70, 0o750), "as in the image");
        let cache = world.replica_dir(&old.id).join("volumes/image-0/_data").metadata().unwrap();
        assert_eq!((cache.uid(), cache.mode() & 0o777), (70, 0o700), "what the image calls a volume is one");
        let mut new = old.clone();
        new.id = "shop-db-1-0000ff".parse().unwrap();
        new.template.command = Some(["sh", "-c", "cat /data/copy; exec sleep 1000"].map(str::to_owned).to_vec());
        world.assign(&[&new], &[]);
        world.running(&new.id, 0).await;
        let report = world.scheduler.wait("the old one is gone", |report| report.replicas.len() == 1).await;
        assert_eq!(report.volumes, ["shop_db"]);
        let log = world.replica_dir(&new.id).join("log");
        eventually("it reads what the old one wrote", || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("from the image"))
        })
        .await;
        world.assign(&[], &["shop_db"]);
        eventually("the volume is deleted", || !data.exists()).await;
        world.scheduler.wait("it is told", |report| report.volumes.is_empty() && report.replicas.is_empty()).await;
    });
}

#[test]
fn an_unhealthy_replica_is_restarted_and_says_why() {
    inside("replica::an_unhealthy_replica_is_restarted_and_says_why", || async {
        let mut world = World::new().await;
        let mut web = replica("web", 1, "echo ok > /tmp/well; trap 'exit 0' TERM; while :; do sleep 0.05; done");
        web.template.health = Some(HealthCheck {
            command: ["sh", "-c", "test -e /tmp/well || { echo all is lost; exit 1; }"].map(str::to_owned).to_vec(),
            interval_ms: Millis(200),
            timeout_ms: Millis(5_000),
            retries: 2,
            start_period_ms: Millis(0),
            start_interval_ms: Millis(0),
        });
        let mut slow = replica("slow", 1, SERVER);
        slow.template.health = Some(HealthCheck {
            command: ["sh", "-c", "echo begun; sleep 1000"].map(str::to_owned).to_vec(),
            timeout_ms: Millis(300),
            retries: 1,
            ..web.template.health.clone().unwrap()
        });
        world.assign(&[&web, &slow], &[]);
        world.start_agent();
        let status = world.running(&web.id, 0).await;
        assert_eq!(status.healthy, Some(true));
        let rootfs = world.data_dir().join("images/containers").join(web.id.as_str()).join("rootfs");
        fs::remove_file(rootfs.join("tmp/well")).unwrap();
        let status = world.running(&web.id, 1).await;
        let cause = status.last_exit.unwrap().cause.unwrap();
        assert_eq!(cause, "health check failed 2 times in a row: all is lost");
        let restarted = |r: &ReplicaStatus| r.restarts > 0;
        let status = world.scheduler.wait_replica(&slow.id, "a check that hangs has failed", restarted).await;
        let cause = status.last_exit.unwrap().cause.unwrap();
        assert!(cause.contains("took longer than 300ms") && cause.contains("begun"), "{cause}");
        world.assign(&[], &[]);
        world.scheduler.wait("all are gone", |report| report.replicas.is_empty()).await;
        let sleeping = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let left = fs::read_dir("/proc").unwrap().flatten().map(sleeping).filter(|line| line == b"sleep\x001000\x00");
        assert_eq!(left.count(), 0, "a check that was killed leaves nothing");
    });
}

#[test]
fn what_cannot_run_says_why() {
    inside("replica::what_cannot_run_says_why", || async {
        let mut world = World::new().await;
        let mut absent = replica("absent", 1, SERVER);
        absent.template.image = "example.test/not-there:1".to_owned();
        absent.template.pull = PullPolicy::Never;
        let mut typo = replica("typo", 1, SERVER);
        typo.template.command = Some(vec!["no-such-program".to_owned()]);
        typo.template.restart.condition = RestartCondition::None;
        let mut bind = replica("bind", 1, SERVER);
        let source = MountSource::Bind { path: "/no/such/dir".to_owned(), create: false };
        bind.template.mounts = vec![Mount { target: "/x".to_owned(), source, read_only: true }];
        let mut fails = replica("fails", 1, "echo my last words; exit 3");
        fails.template.restart.attempts_max = Some(1);
        world.assign(&[&absent, &typo, &bind, &fails], &[]);
        world.start_agent();
        for (replica, state, words) in [
            (&absent, ReplicaState::Preparing, "image example.test/not-there:1 is not on this node"),
            (&typo, ReplicaState::Failed, "no-such-program"),
            (&bind, ReplicaState::Preparing, "/no/such/dir does not exist on this node"),
        ] {
            let good = |r: &ReplicaStatus| r.state == state && r.message.as_ref().is_some_and(|m| m.contains(words));
            world.scheduler.wait_replica(&replica.id, words, good).await;
        }
        let failed = |r: &ReplicaStatus| r.state == ReplicaState::Failed;
        let status = world.scheduler.wait_replica(&fails.id, "it gave up", failed).await;
        assert_eq!((status.restarts, status.last_exit.unwrap().code), (1, Some(3)));
        // All of them can be taken away.
        world.assign(&[], &[]);
        world.scheduler.wait("all are gone", |report| report.replicas.is_empty()).await;
    });
}

#[test]
fn many_replicas_start_side_by_side() {
    inside("replica::many_replicas_start_side_by_side", || async {
        let mut world = World::new().await;
        let all: Vec<AssignedReplica> = (1..=20).map(|n| replica("web", n, "exec sleep 1000")).collect();
        world.start_agent();
        world.scheduler.wait("the agent is there", |_| true).await;
        let begun = Instant::now();
        world.assign(&all.iter().collect::<Vec<_>>(), &[]);
        let running = |r: &ReplicaStatus| r.state == ReplicaState::Running;
        world.scheduler.wait("all run", |report| report.replicas.iter().filter(|r| running(r)).count() == 20).await;
        println!("20 replicas ran after {:?}", begun.elapsed());
        let used = |r: &ReplicaStatus| r.memory_used.0 > 0;
        world.scheduler.wait("usage is measured", |report| report.replicas.iter().all(used)).await;
    });
}

#[test]
fn an_agent_killed_at_any_time_comes_to_the_same_end() {
    inside("replica::an_agent_killed_at_any_time_comes_to_the_same_end", || async {
        let mut world = World::new().await;
        let old: Vec<AssignedReplica> = (1..=4).map(|n| replica("old", n, SERVER)).collect();
        let new: Vec<AssignedReplica> = (1..=4).map(|n| replica("new", n, SERVER)).collect();
        world.assign(&old.iter().collect::<Vec<_>>(), &[]);
        // Times that spread over joining the stream, preparing, starting, stopping and removing.
        let mut agent = world.start_agent_process();
        for round in 0..16u64 {
            if round == 8 {
                world.assign(&new.iter().collect::<Vec<_>>(), &[]);
            }
            tokio::time::sleep(Duration::from_millis(20 + round * 53 % 170)).await;
            agent.kill().unwrap();
            agent.wait().unwrap();
            agent = world.start_agent_process();
        }
        let all_new = |report: &gantry_api::wire::Report| {
            report.replicas.len() == new.len()
                && report.replicas.iter().all(|r| r.ready && r.state == ReplicaState::Running)
        };
        world.scheduler.wait("only the new ones run", all_new).await;
        // A command of the runtime that was under way when its agent was killed may still be ending.
        eventually("one container each, and none of the old ones", || containers() == new.len()).await;
        world.assign(&[], &[]);
        world.scheduler.wait("all are gone", |report| report.replicas.is_empty()).await;
        let mut left = find(world.dir.path(), "shop-");
        left.retain(|path| !path.contains("/agent/deaths/"));
        assert_eq!(left, Vec::<String>::new());
        let netd = gantry_netd::client::Client::new(world.run_dir().join("netd.sock"));
        assert_eq!(netd.attachments().await.unwrap(), []);
        agent.kill().unwrap();
        agent.wait().unwrap();
    });
}

#[test]
fn a_scheduler_that_comes_back_finds_everything_and_an_old_word_is_not_obeyed() {
    inside("replica::a_scheduler_that_comes_back_finds_everything_and_an_old_word_is_not_obeyed", || async {
        let mut world = World::new().await;
        let web = replica("web", 1, SERVER);
        world.assign(&[&web], &[]);
        world.assign(&[&web], &[]);
        world.start_agent();
        let first = world.running(&web.id, 0).await;
        world.scheduler.wait("the table is in force", |report| report.applied.0 == 2).await;
        world.scheduler.stop();
        kill(world.pid(&web.id));
        // It has forgotten its last revision, and with it the replica.
        world.scheduler.set(world.assignment(1, &[]));
        world.scheduler.resume().await;
        let again = world.running(&web.id, 1).await;
        assert_eq!((again.address, world.scheduler.hellos().len()), (first.address, 2));
        world.scheduler.wait("it has reported since", |report| report.sequence > 1 && report.replicas.len() == 1).await;
        world.assign(&[], &[]);
        world.scheduler.wait("a new word is obeyed", |report| report.replicas.is_empty()).await;
    });
}

/// Processes that are the first in a PID namespace below ours.
fn containers() -> usize {
    let first = |entry: &fs::DirEntry| {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let numbers =
            status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default().split_whitespace();
        numbers.clone().count() == 2 && numbers.last() == Some("1")
    };
    fs::read_dir("/proc").unwrap().flatten().filter(first).count()
}
