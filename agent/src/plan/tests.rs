use super::*;
use crate::model::{Checked, Done, Found, Prepared, STEADY_MS, Stop, Trouble};
use gantry_api::ids::{ReplicaName, Revision};
use gantry_api::spec::{Mount, Template};
use gantry_api::units::Millis;
use std::sync::Arc;

const T0: u64 = 1_000_000;

fn replica(change: impl FnOnce(&mut Template)) -> Arc<AssignedReplica> {
    let name = ReplicaName { app: "shop".parse().unwrap(), service: "web".parse().unwrap(), number: 1 };
    let mut template = Template { image: "web:1".to_owned(), stop_grace_ms: Millis(10_000), ..Template::default() };
    change(&mut template);
    Arc::new(AssignedReplica { id: "web".parse().unwrap(), name, template })
}

fn check(retries: u32) -> HealthCheck {
    HealthCheck {
        command: vec!["true".to_owned()],
        interval_ms: Millis(5_000),
        timeout_ms: Millis(1_000),
        retries,
        start_period_ms: Millis(20_000),
        start_interval_ms: Millis(1_000),
    }
}

fn text(want: Option<&Arc<AssignedReplica>>, seen: Option<(&Arc<AssignedReplica>, Facts)>, now_ms: u64) -> String {
    let desired: Desired = want.map(|r| (r.id.clone(), Arc::clone(r))).into_iter().collect();
    let observed: Observed =
        seen.map(|(r, facts)| (r.id.clone(), Seen { replica: Arc::clone(r), facts })).into_iter().collect();
    let actions: Vec<String> = plan(&desired, &observed, now_ms).iter().map(Action::to_string).collect();
    match (actions.is_empty(), wake_ms(&desired, &observed, now_ms)) {
        (false, _) => actions.join(", "),
        (true, Some(at)) => format!("wait {}", at - now_ms),
        (true, None) => "rest".to_owned(),
    }
}

fn running() -> Facts {
    Facts { prepared: true, process: Process::Running { started_ms: T0 }, ..Facts::default() }
}

fn exit(code: i32) -> Exit {
    Exit { code: Some(code), signal: None, oom_killed: false, at_ms: T0, cause: None }
}

fn ended(code: i32, failures: u32) -> Facts {
    Facts {
        prepared: true,
        failures,
        last_exit: Some(exit(code)),
        process: Process::Ended { at_ms: T0, ending: Ending::Own },
        ..Facts::default()
    }
}

fn trouble(count: u32) -> Option<Trouble> {
    Some(Trouble { at_ms: T0, count, message: "no".to_owned() })
}

#[test]
fn every_state_has_one_next_step() {
    let web = replica(|_| {});
    let stop = |killed_ms| Some(Stop { deadline_ms: T0 + 10_000, killed_ms, cause: None });
    let prepared = Facts { prepared: true, ..Facts::default() };
    for (why, want, seen, after_ms, next) in [
        ("wanted, not there", true, None, 0, "prepare web"),
        ("being prepared", true, Some(Facts { busy: Some(Step::Prepare), ..Facts::default() }), 0, "rest"),
        ("prepared", true, Some(prepared.clone()), 0, "start web"),
        ("preparation failed", true, Some(Facts { trouble: trouble(1), ..Facts::default() }), 0, "wait 500"),
        ("preparation failed often", true, Some(Facts { trouble: trouble(99), ..Facts::default() }), 0, "wait 30000"),
        ("pause is over", true, Some(Facts { trouble: trouble(1), ..Facts::default() }), 500, "prepare web"),
        ("runs", true, Some(running()), 0, "rest"),
        ("crashed once", true, Some(ended(1, 1)), 0, "restart web"),
        ("crashed twice", true, Some(ended(1, 2)), 0, "wait 100"),
        ("crashed twice, pause is over", true, Some(ended(1, 2)), 100, "restart web"),
        ("crashed, bundle is gone", true, Some(Facts { prepared: false, ..ended(1, 1) }), 0, "prepare web"),
        ("not there, not wanted", false, None, 0, "rest"),
        ("runs, not wanted", false, Some(running()), 0, "stop web by SIGTERM"),
        ("told to stop", false, Some(Facts { stop: stop(None), ..running() }), 0, "wait 10000"),
        ("deadline is over", false, Some(Facts { stop: stop(None), ..running() }), 10_000, "kill web"),
        ("killed", false, Some(Facts { stop: stop(Some(T0)), ..running() }), 0, "wait 2000"),
        ("outlived its kill", false, Some(Facts { stop: stop(Some(T0)), ..running() }), 2_000, "kill web"),
        ("ended, not wanted", false, Some(ended(1, 9)), 0, "remove web"),
        ("prepared, not wanted", false, Some(prepared), 0, "remove web"),
        ("removal failed", false, Some(Facts { trouble: trouble(2), ..ended(0, 1) }), 0, "wait 1000"),
        (
            "pull under way, not wanted",
            false,
            Some(Facts { busy: Some(Step::Prepare), ..Facts::default() }),
            0,
            "cancel web",
        ),
        (
            "cancelled already",
            false,
            Some(Facts { busy: Some(Step::Prepare), cancelled: true, ..Facts::default() }),
            0,
            "rest",
        ),
        ("being started, not wanted", false, Some(Facts { busy: Some(Step::Start), ..Facts::default() }), 0, "rest"),
        ("wanted again while stopping", true, Some(Facts { stop: stop(None), ..running() }), 0, "wait 10000"),
    ] {
        assert_eq!(text(want.then_some(&web), seen.map(|f| (&web, f)), T0 + after_ms), next, "{why}");
    }
}

#[test]
fn the_restart_policy_decides_about_an_end() {
    let killed = Exit { code: None, signal: Some(9), ..exit(0) };
    let unhealthy = Exit { cause: Some("health".to_owned()), ..exit(0) };
    let any = RestartCondition::Any;
    let on_failure = RestartCondition::OnFailure;
    let none = RestartCondition::None;
    for (why, condition, attempts_max, delay_ms, last, ending, attempts, next, state) in [
        ("any, clean", any, None, None, exit(0), Ending::Own, 0, "restart web", ReplicaState::BackingOff),
        ("on failure, clean", on_failure, None, None, exit(0), Ending::Own, 0, "rest", ReplicaState::Completed),
        ("on failure, code", on_failure, None, None, exit(3), Ending::Own, 0, "restart web", ReplicaState::BackingOff),
        (
            "on failure, signal",
            on_failure,
            None,
            None,
            killed.clone(),
            Ending::Own,
            0,
            "restart web",
            ReplicaState::BackingOff,
        ),
        (
            "on failure, health",
            on_failure,
            None,
            None,
            unhealthy,
            Ending::Own,
            0,
            "restart web",
            ReplicaState::BackingOff,
        ),
        ("none, clean", none, None, None, exit(0), Ending::Own, 0, "rest", ReplicaState::Completed),
        ("none, code", none, None, None, exit(1), Ending::Own, 0, "rest", ReplicaState::Failed),
        ("none, node went down", none, None, None, killed.clone(), Ending::Lost, 0, "rest", ReplicaState::Failed),
        (
            "any, node went down",
            any,
            Some(0),
            None,
            killed.clone(),
            Ending::Lost,
            9,
            "restart web",
            ReplicaState::BackingOff,
        ),
        ("attempts left", any, Some(2), None, exit(1), Ending::Own, 1, "restart web", ReplicaState::BackingOff),
        ("no attempts left", any, Some(2), None, exit(1), Ending::Own, 2, "rest", ReplicaState::Failed),
        ("delay given", any, None, Some(7_000), exit(1), Ending::Own, 0, "wait 7000", ReplicaState::BackingOff),
        (
            "stopped by us, wanted again",
            none,
            None,
            None,
            killed,
            Ending::Unwanted,
            0,
            "restart web",
            ReplicaState::BackingOff,
        ),
    ] {
        let restart = Restart { condition, attempts_max, delay_ms: delay_ms.map(Millis) };
        let web = replica(|t| t.restart = restart);
        let process = Process::Ended { at_ms: T0, ending };
        let facts = Facts { process, attempts, last_exit: Some(last), ..ended(0, 1) };
        assert_eq!(text(Some(&web), Some((&web, facts.clone())), T0), next, "{why}");
        let seen = Seen { replica: Arc::clone(&web), facts };
        assert_eq!(status(&web.id, Some(&web), Some(&seen)).state, state, "{why}");
    }
}

#[test]
fn the_stop_signal_is_the_manifests_then_the_images() {
    for (manifest, image, want) in [
        (None, None, "stop web by SIGTERM"),
        (None, Some("SIGQUIT"), "stop web by SIGQUIT"),
        (Some("SIGUSR1"), Some("SIGQUIT"), "stop web by SIGUSR1"),
    ] {
        let web = replica(|t| t.stop_signal = manifest.map(str::to_owned));
        let facts = Facts { stop_signal: image.map(str::to_owned), ..running() };
        assert_eq!(text(None, Some((&web, facts)), T0), want);
    }
}

#[test]
fn checks_are_early_at_first_and_then_at_their_interval() {
    let web = replica(|t| t.health = Some(check(3)));
    let health = |checks, checked_ms, healthy| Health { checks, checked_ms, healthy, ..Health::default() };
    for (why, health, after_ms, next) in [
        ("first", health(0, None, None), 0, "wait 20"),
        ("second", health(1, Some(T0 + 20), None), 20, "wait 20"),
        ("third", health(2, Some(T0 + 40), None), 40, "wait 40"),
        ("seventh", health(6, Some(T0 + 640), None), 640, "wait 640"),
        ("start interval is reached", health(7, Some(T0 + 1_280), None), 1_280, "wait 1000"),
        ("starts slowly", health(9, Some(T0 + 19_000), None), 19_000, "wait 1000"),
        ("start period is over", health(9, Some(T0 + 20_000), None), 20_000, "wait 5000"),
        ("well", health(1, Some(T0 + 200), Some(true)), 200, "wait 5000"),
        ("due", health(1, Some(T0 + 200), Some(true)), 5_200, "check web"),
        ("under way", Health { checking: true, ..health(1, Some(T0 + 200), Some(true)) }, 9_000, "rest"),
        (
            "unhealthy",
            Health { failures: 3, output: "no answer\n".to_owned(), ..health(9, Some(T0), Some(false)) },
            0,
            "stop web by SIGTERM: health check failed 3 times in a row: no answer",
        ),
    ] {
        let facts = Facts { health, ..running() };
        assert_eq!(text(Some(&web), Some((&web, facts)), T0 + after_ms), next, "{why}");
    }
}

fn result(passed: bool) -> Result<Done, String> {
    Ok(Done::Checked(Checked { started_ms: T0, passed, output: "out".to_owned() }))
}

#[test]
fn failures_count_after_the_start_period_or_the_first_success() {
    let check = check(2);
    let run = |results: &[(u64, bool)]| {
        let mut facts = running();
        for &(after_ms, passed) in results {
            facts.begin(&Step::Check, 0, T0 + after_ms);
            facts.end(&Step::Check, result(passed), Some(&check), T0 + after_ms);
        }
        facts.health.healthy
    };
    for (why, results, want) in [
        ("no result", &[][..], None),
        ("starting", &[(200, false), (600, false), (1_400, false)], None),
        ("started", &[(200, false), (600, true)], Some(true)),
        ("one failure is not enough", &[(200, true), (5_000, false)], Some(true)),
        ("a success between", &[(200, true), (5_000, false), (9_000, true), (14_000, false)], Some(true)),
        ("two in a row", &[(200, true), (5_000, false), (9_000, false)], Some(false)),
        ("never came up", &[(19_000, false), (20_000, false), (25_000, false)], Some(false)),
    ] {
        assert_eq!(run(results), want, "{why}");
    }
}

#[test]
fn a_result_about_an_earlier_process_is_dropped() {
    let mut facts = Facts { process: Process::Running { started_ms: T0 + 5 }, ..running() };
    facts.begin(&Step::Check, 0, T0 + 5);
    facts.end(&Step::Check, result(true), Some(&check(1)), T0 + 9);
    assert_eq!(facts.health.healthy, None);
    assert!(!facts.health.checking);
}

#[test]
fn an_unhealthy_replica_ends_with_its_cause_and_is_restarted() {
    let web = replica(|t| t.health = Some(check(1)));
    let mut facts = running();
    facts.health.healthy = Some(true);
    facts.begin(&Step::Check, 0, T0 + 1);
    facts.end(&Step::Check, Err("took longer than 1s".to_owned()), web.template.health.as_ref(), T0 + 1_001);
    let stop = Step::Stop { signal: "SIGTERM".to_owned(), cause: Some(facts.unhealthy_cause()) };
    facts.begin(&stop, 10_000, T0 + 1_001);
    assert!(facts.exited(exit(0), T0 + 1_050));
    facts.end(&stop, Ok(Done::Done), None, T0 + 1_051);
    let cause = facts.last_exit.as_ref().and_then(|e| e.cause.clone());
    assert_eq!(cause.as_deref(), Some("health check failed: took longer than 1s"));
    assert_eq!(text(Some(&web), Some((&web, facts)), T0 + 1_051), "restart web");
}

#[test]
fn a_steady_minute_forgives_earlier_ends() {
    for (why, healthy, since_ms, after_ms, failures) in [
        ("died at once", None, None, 10, 6),
        ("died before the minute was over", None, None, STEADY_MS - 1, 6),
        ("ran a minute", None, None, STEADY_MS, 1),
        ("ran a minute, was never well", Some(false), None, STEADY_MS, 6),
        ("was well for a minute", Some(true), Some(T0 + 5), STEADY_MS + 5, 1),
        ("was well for less", Some(true), Some(T0 + 5), STEADY_MS, 6),
    ] {
        let mut facts = Facts { failures: 5, ..running() };
        facts.health = Health { healthy, since_ms, ..Health::default() };
        assert!(facts.exited(exit(1), T0 + after_ms));
        assert_eq!(facts.failures, failures, "{why}");
    }
}

#[test]
fn an_end_is_told_after_its_start_and_only_once() {
    let mut facts = ended(1, 1);
    facts.begin(&Step::Restart, 0, T0);
    assert!(facts.is_starting(), "ends wait");
    facts.end(&Step::Restart, Ok(Done::Started), None, T0 + 5);
    assert!(!facts.is_starting());
    assert!(facts.exited(Exit { at_ms: T0 + 4, ..exit(2) }, T0 + 5));
    assert_eq!(facts.process, Process::Ended { at_ms: T0 + 5, ending: Ending::Own });
    assert_eq!((facts.restarts, facts.attempts, facts.failures), (1, 1, 2));
    assert!(!facts.exited(Exit { at_ms: T0 + 4, ..exit(2) }, T0 + 7), "told twice");
}

#[test]
fn a_process_that_cannot_be_started_counts_as_an_end_and_is_prepared_again() {
    let web = replica(|_| {});
    let mut facts = Facts { prepared: true, ..Facts::default() };
    facts.begin(&Step::Start, 0, T0);
    facts.end(&Step::Start, Err("no such file: /bin/app".to_owned()), None, T0);
    assert_eq!(text(Some(&web), Some((&web, facts.clone())), T0), "prepare web");
    let seen = Seen { replica: Arc::clone(&web), facts };
    let status = status(&web.id, Some(&web), Some(&seen));
    assert_eq!(status.message.as_deref(), Some("cannot be started: no such file: /bin/app"));
}

#[test]
fn the_agent_comes_back_to_what_it_left() {
    let web = replica(|t| t.restart.condition = RestartCondition::OnFailure);
    let late = Exit { at_ms: T0 + 50, ..exit(1) };
    let clean = Exit { at_ms: T0 + 50, ..exit(0) };
    let absent = Facts { prepared: true, ..Facts::default() };
    let stopping = Facts { stop: Some(Stop { deadline_ms: T0, killed_ms: None, cause: None }), ..running() };
    for (why, facts, found, next) in [
        ("it runs", running(), Found::Running(T0), "rest"),
        ("started, but we were killed before we noted it", absent.clone(), Found::Running(T0), "rest"),
        ("ended meanwhile", running(), Found::Exited(late.clone()), "prepare web"),
        ("completed meanwhile", running(), Found::Exited(clean.clone()), "rest"),
        ("started and completed, neither noted", absent.clone(), Found::Exited(clean), "rest"),
        ("an end that was noted", ended(1, 1), Found::Exited(exit(1)), "prepare web"),
        (
            "the end before this start",
            Facts { exit_read_ms: Some(T0), last_exit: Some(exit(0)), ..absent },
            Found::Exited(exit(0)),
            "prepare web",
        ),
        ("reboot", running(), Found::Nothing, "prepare web"),
        ("reboot while it was told to stop", stopping, Found::Nothing, "prepare web"),
        ("reboot long after it ended", ended(0, 1), Found::Nothing, "rest"),
    ] {
        let mut facts = facts;
        facts.adopt(found, T0 + 100);
        assert_eq!(text(Some(&web), Some((&web, facts)), T0 + 100), next, "{why}");
    }
}

#[test]
fn a_clock_that_was_set_back_holds_nothing_up() {
    let mut facts = Facts { process: Process::Ended { at_ms: T0 + 86_400_000, ending: Ending::Own }, ..ended(1, 2) };
    facts.adopt(Found::Nothing, T0);
    let web = replica(|_| {});
    assert_eq!(text(Some(&web), Some((&web, facts)), T0), "wait 100");
    let stop = |killed_ms| Some(Stop { deadline_ms: T0 + 86_400_000, killed_ms, cause: None });
    for (killed_ms, next) in [(None, "wait 10000"), (Some(T0 + 86_400_000), "wait 2000")] {
        let mut facts = Facts { stop: stop(killed_ms), ..running() };
        facts.clamp_stop(10_000, T0);
        facts.adopt(Found::Running(T0), T0);
        assert_eq!(text(None, Some((&web, facts)), T0), next);
    }
}

#[test]
fn times_beyond_reason_are_long_and_nothing_else() {
    let ages = Millis(u64::MAX);
    let slow = replica(|t| t.restart.delay_ms = Some(ages));
    assert_eq!(text(Some(&slow), Some((&slow, ended(1, 1))), T0), format!("wait {}", u64::MAX - T0));
    let idle = replica(|t| {
        t.health = Some(HealthCheck { interval_ms: ages, start_period_ms: ages, start_interval_ms: ages, ..check(1) })
    });
    let health = Health { checked_ms: Some(T0), healthy: Some(true), ..Health::default() };
    let facts = Facts { health, ..running() };
    assert_eq!(text(Some(&idle), Some((&idle, facts)), T0), format!("wait {}", u64::MAX - T0));
    assert_eq!(text(Some(&idle), Some((&idle, running())), T0), "wait 20");
}

#[test]
fn a_wanted_replica_is_ready_only_when_it_runs_and_is_well() {
    let plain = replica(|_| {});
    let checked = replica(|t| t.health = Some(check(1)));
    let health = |healthy| Health { healthy, ..Health::default() };
    let stop = Some(Stop { deadline_ms: T0, killed_ms: None, cause: None });
    for (why, web, wanted, facts, ready) in [
        ("runs", &plain, true, running(), true),
        ("not checked yet", &checked, true, running(), false),
        ("well", &checked, true, Facts { health: health(Some(true)), ..running() }, true),
        ("unwell", &checked, true, Facts { health: health(Some(false)), ..running() }, false),
        ("not wanted, not even told yet", &plain, false, running(), false),
        ("told to stop", &plain, true, Facts { stop, ..running() }, false),
        ("ended", &plain, true, ended(0, 1), false),
    ] {
        let seen = Seen { replica: Arc::clone(web), facts };
        assert_eq!(status(&web.id, wanted.then_some(&**web), Some(&seen)).ready, ready, "{why}");
    }
}

#[test]
fn a_volume_goes_when_nobody_can_touch_it() {
    let mount = Mount {
        target: "/data".to_owned(),
        source: MountSource::Volume { name: "data".parse().unwrap() },
        read_only: false,
    };
    let web = replica(|t| t.mounts = vec![mount]);
    let mut node = Node { remove_volumes: vec!["shop_data".to_owned(), "shop_old".to_owned()], ..Node::default() };
    assert_eq!(volumes_to_remove(&node), ["shop_data", "shop_old"]);
    node.observed.insert(web.id.clone(), Seen { replica: Arc::clone(&web), facts: ended(0, 1) });
    assert_eq!(volumes_to_remove(&node), ["shop_old"]);
}

#[test]
fn an_older_assignment_and_a_strangers_are_refused() {
    let me = "0123456789abcdef".parse().unwrap();
    let assignment = |revision| {
        let text = serde_json::json!({
            "revision": revision, "node": "0123456789abcdef", "replicas": [],
            "network": {"revision": revision, "local": "0123456789abcdef", "replica_net": "10.210.0.0/16",
                        "service_net": "10.211.0.0/16", "nodes": [], "services": []},
        });
        serde_json::from_value(text).unwrap()
    };
    let mut node = Node::default();
    assert_eq!(node.assign(&assignment(7), &me), Ok(()));
    assert_eq!(node.assign(&assignment(7), &me), Ok(()));
    let error = node.assign(&assignment(6), &me).unwrap_err();
    assert_eq!(error.to_string(), "assignment of revision 6 is older than the one in force, revision 7");
    assert!(node.assign(&assignment(8), &"ffffffffffffffff".parse().unwrap()).is_err());
    assert_eq!(node.revision, Revision(7));
}

#[test]
fn an_images_check_counts_where_the_manifest_says_nothing() {
    let of_image = || Facts { health_check: Some(check(3)), ..running() };
    let own = |t: &mut Template| t.health = Some(HealthCheck { retries: 7, ..check(7) });
    for (why, replica, facts, next, retries) in [
        ("neither", replica(|_| {}), running(), "rest", None),
        ("the image's", replica(|_| {}), of_image(), "check web", Some(3)),
        ("the manifest's", replica(own), of_image(), "check web", Some(7)),
        ("switched off", replica(|t| t.health_off = true), of_image(), "rest", None),
    ] {
        assert_eq!(text(Some(&replica), Some((&replica, facts.clone())), T0 + 60_000), next, "{why}");
        assert_eq!(facts.check(&replica).map(|check| check.retries), retries, "{why}");
        let seen = Seen { replica: Arc::clone(&replica), facts };
        let status = status(&replica.id, Some(&replica), Some(&seen));
        assert_eq!(status.ready, retries.is_none(), "{why}: not before its check has passed");
    }
}

#[test]
fn preparing_again_keeps_what_is_known() {
    let made = Prepared {
        image: "sha256:aa".to_owned(),
        stop_signal: None,
        address: Some([10, 0, 0, 2].into()),
        health_check: None,
    };
    let mut facts = ended(1, 1);
    facts.prepared = false;
    facts.begin(&Step::Prepare, 0, T0);
    facts.end(&Step::Prepare, Ok(Done::Prepared(made)), None, T0);
    assert_eq!(facts.image.as_deref(), Some("sha256:aa"));
    assert!(facts.prepared && matches!(facts.process, Process::Ended { .. }));
}

#[test]
fn the_first_restart_is_at_once_and_pauses_are_bounded() {
    let pauses: Vec<u64> = (0..=12).map(backoff_ms).collect();
    assert_eq!(pauses, [0, 0, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
    assert_eq!(backoff_ms(u32::MAX), BACKOFF_MAX_MS);
}
