//! Which replica a person means: `shop-api-2`, its id, `shop/api`, `shop/api/2`, or `api` where that is clear.

use crate::error::CliError;
use crate::render::replicas::why;
use gantry_api::http::Replica;
use gantry_api::ids::AppName;
use gantry_api::wire::ReplicaState;
use std::collections::BTreeSet;

/// The replicas that `target` may mean, never none; within `app` when given.
///
/// A name with dashes cannot be cut into app, service and number by looks, so it is compared with what there is.
///
/// # Errors
/// Nothing is called that, or services of several apps are.
pub(crate) fn candidates<'a>(
    replicas: &'a [Replica],
    target: &str,
    app: Option<&AppName>,
) -> Result<Vec<&'a Replica>, CliError> {
    let within = || replicas.iter().filter(|replica| app.is_none_or(|app| replica.name.app == *app));
    let exact: Vec<&Replica> = within().filter(|r| r.id.as_str() == target || r.name.to_string() == target).collect();
    if !exact.is_empty() {
        return Ok(exact);
    }
    let found: Vec<&Replica> = match target.split('/').collect::<Vec<_>>().as_slice() {
        [service] => within().filter(|r| r.name.service.as_str() == *service).collect(),
        [app, service] => within().filter(|r| in_service(r, app, service)).collect(),
        [app, service, number] => {
            within().filter(|r| in_service(r, app, service) && r.name.number.to_string() == *number).collect()
        }
        _ => Vec::new(),
    };
    let apps: BTreeSet<&AppName> = found.iter().map(|replica| &replica.name.app).collect();
    match apps.len() {
        0 => Err(unknown(target, app)),
        1 => Ok(found),
        _ => {
            let names: Vec<String> = apps.iter().map(|app| format!("{app}/{target}")).collect();
            Err(CliError::new(format!("`{target}` is a service of several apps"))
                .hint(format!("name one: {}", names.join(", "))))
        }
    }
}

fn in_service(replica: &Replica, app: &str, service: &str) -> bool {
    replica.name.app.as_str() == app && replica.name.service.as_str() == service
}

fn unknown(target: &str, app: Option<&AppName>) -> CliError {
    match app {
        Some(app) => CliError::new(format!("app {app} has no replica or service `{target}`"))
            .hint(format!("`gantry ps -a {app}` lists what there is")),
        None => CliError::new(format!("there is no replica or service `{target}`"))
            .hint("write a replica's name (shop-api-2) or APP/SERVICE (shop/api); `gantry ps -a` lists what there is"),
    }
}

/// The replica to look at: a ready one before one that runs, a present one before an old one, then the first.
pub(crate) fn best<'a>(candidates: &[&'a Replica]) -> &'a Replica {
    let rank = |replica: &&&Replica| {
        let runs = replica.state == ReplicaState::Running;
        (!(replica.ready && runs), !runs, !replica.current, replica.name.number)
    };
    candidates.iter().min_by_key(rank).expect("candidates are never none")
}

/// The replica to run a command in.
///
/// # Errors
/// As [`candidates`], or none of them runs.
pub(crate) fn running<'a>(
    replicas: &'a [Replica],
    target: &str,
    app: Option<&AppName>,
) -> Result<&'a Replica, CliError> {
    let found = candidates(replicas, target, app)?;
    let best = best(&found);
    if best.state == ReplicaState::Running {
        return Ok(best);
    }
    let why = why(best).map_or_else(String::new, |why| format!(": {why}"));
    let message = match found.len() {
        1 => format!("{} does not run{why}", best.name),
        _ => format!("none of the {} replicas of `{target}` runs; {}{why}", found.len(), best.name),
    };
    Err(CliError::new(message)
        .hint(format!("look with `gantry ps -a {}` and `gantry logs {}`", best.name.app, best.name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::replica;

    fn world() -> Vec<Replica> {
        let mut first = replica("api", 1, ReplicaState::Preparing);
        first.message = Some("pulling".to_owned());
        let mut other = replica("api", 1, ReplicaState::Running);
        other.name.app = "blog".parse().unwrap();
        other.id = "blog-api-1-000001".parse().unwrap();
        let mut web = replica("web", 1, ReplicaState::BackingOff);
        web.message = Some("exit code 1".to_owned());
        vec![first, replica("api", 2, ReplicaState::Running), other, web]
    }

    #[test]
    fn a_target_is_a_name_an_id_or_a_service() {
        let world = world();
        let shop: AppName = "shop".parse().unwrap();
        for (target, app, want) in [
            ("shop-api-2", None, "shop-api-2"),
            ("shop-api-2-ab0002", None, "shop-api-2"),
            ("shop/api", None, "shop-api-2"),
            ("shop/api/2", None, "shop-api-2"),
            ("blog/api", None, "blog-api-1"),
            ("api", Some(&shop), "shop-api-2"),
            ("shop-api-2", Some(&shop), "shop-api-2"),
            ("blog-api-1", Some(&shop), "app shop has no replica or service `blog-api-1`"),
            ("api", None, "`api` is a service of several apps"),
            ("web", None, "shop-web-1 does not run: exit code 1"),
            ("shop-api-1", None, "shop-api-1 does not run: pulling"),
            ("shop/api/1", None, "shop-api-1 does not run: pulling"),
            ("shop", None, "there is no replica or service `shop`"),
            ("shop/api/2/3", None, "there is no replica or service `shop/api/2/3`"),
            ("", None, "there is no replica or service ``"),
        ] {
            let got = match running(&world, target, app) {
                Ok(replica) => replica.name.to_string(),
                Err(error) => error.message,
            };
            assert_eq!(got, want, "{target} in {app:?}");
        }
    }

    #[test]
    fn of_an_old_and_a_new_copy_the_ready_one_is_meant() {
        let old = replica("api", 1, ReplicaState::Running);
        let mut new = replica("api", 1, ReplicaState::Running);
        new.id = "shop-api-1-ffffff".parse().unwrap();
        let mut old_marked = old.clone();
        old_marked.current = false;
        assert_eq!(best(&[&old_marked, &new]).id, new.id);
        new.ready = false;
        assert_eq!(best(&[&old_marked, &new]).id, old.id);
    }
}
