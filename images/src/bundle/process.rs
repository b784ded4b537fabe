//! The process that a container runs.

use serde_json::{Map, Value, json};

use super::{INIT_PATH, Overrides, bad, capabilities, user::Identity};
use crate::error::Result;
use crate::manifest::ImageConfig;

/// Docker's, for images that set none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Names of limits, as in `setrlimit(2)` without `RLIMIT_`.
const LIMITS: [&str; 16] = [
    "AS",
    "CORE",
    "CPU",
    "DATA",
    "FSIZE",
    "LOCKS",
    "MEMLOCK",
    "MSGQUEUE",
    "NICE",
    "NOFILE",
    "NPROC",
    "RSS",
    "RTPRIO",
    "RTTIME",
    "SIGPENDING",
    "STACK",
];

pub(super) fn process(
    image: &ImageConfig,
    identity: &Identity,
    capabilities: &capabilities::Set,
    overrides: &Overrides,
) -> Result<Value> {
    let mut process = Map::new();
    process.insert("terminal".into(), json!(overrides.tty));
    process
        .insert("user".into(), json!({ "uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups }));
    process.insert("args".into(), json!(arguments(image, overrides)?));
    process.insert("env".into(), json!(environment(image, identity, overrides)?));
    process.insert("cwd".into(), json!(working_dir(image, overrides)?));
    process.insert("capabilities".into(), capability_sets(identity, capabilities));
    process.insert("rlimits".into(), limits(overrides)?);
    process.insert("noNewPrivileges".into(), json!(overrides.no_new_privileges));
    if let Some(score) = overrides.oom_score_adj {
        if !(-1000..=1000).contains(&score) {
            return Err(bad("oom_score_adj", score.to_string(), "must be between -1000 and 1000"));
        }
        process.insert("oomScoreAdj".into(), json!(score));
    }
    Ok(Value::Object(process))
}

fn arguments(image: &ImageConfig, overrides: &Overrides) -> Result<Vec<String>> {
    let (entrypoint, default_command) = match &overrides.entrypoint {
        Some(entrypoint) => (entrypoint, &Vec::new()),
        None => (&image.entrypoint, &image.cmd),
    };
    let command = overrides.command.as_ref().unwrap_or(default_command);
    let own: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    if own.is_empty() || own[0].is_empty() {
        return Err(bad("command", "", "neither the image nor you give one"));
    }
    if let Some(argument) = own.iter().find(|argument| argument.contains('\0')) {
        return Err(bad("command", argument, "has a NUL byte"));
    }
    let init = overrides.init.iter().flat_map(|_| [INIT_PATH.to_owned(), "--".to_owned()]);
    Ok(init.chain(own).collect())
}

/// Later ones win, each key is once, and the order is that of the first time.
fn environment(image: &ImageConfig, identity: &Identity, overrides: &Overrides) -> Result<Vec<String>> {
    let mut all: Vec<String> = vec![PATH.to_owned()];
    if let Some(hostname) = &overrides.hostname {
        set(&mut all, &format!("HOSTNAME={hostname}"));
    }
    if overrides.tty {
        set(&mut all, "TERM=xterm");
    }
    for item in image.env.iter().chain(&overrides.env) {
        if item.is_empty() || item.starts_with('=') || item.contains('\0') {
            return Err(bad("env", item, "must be KEY=VALUE"));
        }
        set(&mut all, item);
    }
    if !all.iter().any(|item| item.starts_with("HOME=")) {
        all.push(format!("HOME={}", identity.home));
    }
    Ok(all)
}

fn set(all: &mut Vec<String>, item: &str) {
    let key = |item: &str| item.split('=').next().unwrap_or(item).to_owned();
    let at = all.iter().position(|old| key(old) == key(item));
    match (at, item.contains('=')) {
        (Some(at), true) => all[at] = item.to_owned(),
        (Some(at), false) => drop(all.remove(at)),
        (None, true) => all.push(item.to_owned()),
        (None, false) => {}
    }
}

fn working_dir(image: &ImageConfig, overrides: &Overrides) -> Result<String> {
    let dir = overrides.working_dir.as_ref().unwrap_or(&image.working_dir);
    match dir.as_str() {
        "" => Ok("/".into()),
        dir if dir.starts_with('/') && !dir.contains('\0') => Ok(dir.to_owned()),
        dir if overrides.working_dir.is_none() && !dir.contains('\0') => Ok(format!("/{dir}")),
        dir => Err(bad("working_dir", dir, "must be an absolute path")),
    }
}

/// Another user than root has none until a file gives them, as after any `execve` (`capabilities(7)`).
fn capability_sets(identity: &Identity, capabilities: &capabilities::Set) -> Value {
    let none = capabilities::Set::new();
    let effective = if identity.uid == 0 { capabilities } else { &none };
    json!({ "bounding": capabilities, "effective": effective, "permitted": effective })
}

/// Only what is asked for: raising a limit needs a right that not every host has.
fn limits(overrides: &Overrides) -> Result<Value> {
    let mut all = Vec::new();
    for limit in &overrides.ulimits {
        let upper = limit.name.to_ascii_uppercase();
        let name = upper.strip_prefix("RLIMIT_").unwrap_or(&upper);
        if !LIMITS.contains(&name) {
            return Err(bad("ulimit", &limit.name, "is not a limit of Linux"));
        }
        if limit.soft > limit.hard {
            return Err(bad(
                "ulimit",
                &limit.name,
                format!("the soft limit {} is above the hard limit {}", limit.soft, limit.hard),
            ));
        }
        all.push(json!({ "type": format!("RLIMIT_{name}"), "soft": limit.soft, "hard": limit.hard }));
    }
    Ok(Value::Array(all))
}
