//! A lab under test: Gantry's own commands, and what they say.

use crate::binaries::Binaries;
use crate::error::{Error, Result};
use crate::http::{self, Visit};
use crate::{files, process, sys};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Between two looks at a state that is waited for. Looking costs a millisecond.
const LOOK: Duration = Duration::from_millis(10);
/// The scheduler is on this machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// No command takes this long but one that hangs: each has a limit of its own below it.
const COMMAND_WITHIN: Duration = Duration::from_secs(150);

/// One lab.
#[derive(Debug)]
pub(crate) struct Lab {
    gantry: PathBuf,
    runtime: PathBuf,
    name: String,
    /// Where the shop listens, on every node and on this host.
    port: u16,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) running: bool,
    /// As the scheduler sees it: `ready`, `suspect`, `lost`.
    pub(crate) state: String,
}

/// A replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replica {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) service: String,
    pub(crate) node: String,
    pub(crate) ready: bool,
    pub(crate) current: bool,
    pub(crate) state: String,
    pub(crate) restarts: u64,
    pub(crate) message: String,
}

impl Lab {
    /// A lab of this name, which need not exist yet.
    pub(crate) fn new(binaries: &Binaries, name: &str, port: u16) -> Self {
        Self { gantry: binaries.gantry.clone(), runtime: binaries.runtime.clone(), name: name.into(), port }
    }

    /// `gantry` with everything of the caller's environment that would lead it elsewhere taken away.
    fn gantry(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.gantry);
        command.args(words).current_dir(files::root());
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("GANTRY_") {
                command.env_remove(key);
            }
        }
        command.env("GANTRY_RUNTIME", &self.runtime).env("PORT", self.port.to_string());
        command
    }

    /// `gantry lab …` of this lab.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.gantry(&["lab"]);
        command.args(["--name", &self.name]).args(words);
        command
    }

    /// `gantry lab …`, done; what it says is kept for its failure.
    pub(crate) fn lab(&self, words: &[&str]) -> Result<String> {
        process::text_within(&mut self.command(words), COMMAND_WITHIN)
    }

    /// `gantry …` that talks to this lab's scheduler.
    pub(crate) fn ask(&self, words: &[&str]) -> Result<String> {
        let mut command = self.gantry(words);
        command.env("GANTRY_HOST", format!("unix://{}", self.socket()?.display()));
        process::text_within(&mut command, COMMAND_WITHIN)
    }

    /// What `lab status --json` says.
    fn status(&self) -> Result<Value> {
        let text = self.lab(&["status", "--json"])?;
        serde_json::from_str(&text).map_err(|error| Error::input("gantry lab status --json", error))
    }

    fn socket(&self) -> Result<PathBuf> {
        let status = self.status()?;
        let socket = status["socket"].as_str().map(PathBuf::from);
        socket.ok_or_else(|| Error::input("gantry lab status --json", "names no `socket`"))
    }

    /// A fresh lab: one that is there already, whole or broken, is removed first.
    pub(crate) fn fresh(&self, nodes: u32) -> Result<()> {
        self.down()?;
        let address = format!("127.0.0.1:{}", self.port);
        if std::net::TcpStream::connect(&address).is_ok() {
            let what = format!("{address} is in use by another program, and the shop wants it");
            return Err(Error::Host {
                what,
                hint: format!("find it with `ss -ltnp 'sport = :{}'`, or set PORT to another port", self.port),
            });
        }
        self.lab(&["up", "--nodes", &nodes.to_string()]).map(drop)
    }

    /// Removes the lab.
    pub(crate) fn down(&self) -> Result<()> {
        self.lab(&["down"]).map(drop)
    }

    /// Loads an image on every node.
    pub(crate) fn load(&self, archive: &Path) -> Result<()> {
        self.lab(&["load", &archive.display().to_string()]).map(drop)
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> Result<Vec<Node>> {
        read_nodes(&self.status()?)
    }

    /// The replicas of an app, as `ps --json` prints them.
    pub(crate) fn replicas(&self, app: &str) -> Result<Vec<Replica>> {
        let text = self.ask(&["ps", "--json", app])?;
        let document = serde_json::from_str(&text).map_err(|error| Error::input("gantry ps --json", error))?;
        read_replicas(&document)
    }

    /// A faster look, for waiting: the scheduler's API itself.
    pub(crate) fn watch(&self) -> Result<Watch> {
        Ok(Watch { socket: self.socket()? })
    }

    /// The shop's counter, asked on this host.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api/visit", self.port)
    }

    /// The shop's counter on a node, asked by a client beside the nodes.
    pub(crate) fn visits_through(&self, node: &Node, count: u32) -> Result<Vec<Result<Visit>>> {
        let own = std::env::current_exe().map_err(Error::file("find", Path::new("/proc/self/exe")))?;
        let url = format!("http://{}:{}/api/visit", node.address, self.port);
        let (own, count) = (own.display().to_string(), count.to_string());
        let text = self.lab(&["exec", "switch", &own, "fetch", &count, &url])?;
        Ok(http::read_lines(&url, &text))
    }

    /// Waits until the shop answers on this host.
    pub(crate) fn wait_served(&self, limit: Duration) -> Result<Visit> {
        let url = self.url();
        until(limit, || match http::visit(&url, Duration::from_secs(2)) {
            Ok(visit) => Look::Done(visit),
            Err(error) => Look::Not(error.chain()),
        })
        .map_err(|last| Error::broken(format!("{url} to answer within {} s", limit.as_secs()), last))
    }
}

/// Looks at the scheduler's API, without a program to start each time.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    socket: PathBuf,
}

impl Watch {
    /// An app in full, `None` when there is none.
    pub(crate) fn app(&self, app: &str) -> Result<Value> {
        http::get_json(&self.socket, &format!("/v1/apps/{app}"), ANSWER_WITHIN)
    }

    /// Replicas of an app.
    pub(crate) fn replicas(&self, app: &str) -> Result<Vec<Replica>> {
        read_replicas(&http::get_json(&self.socket, &format!("/v1/replicas?app={app}"), ANSWER_WITHIN)?)
    }

    /// Waits until every service of an app has as many ready replicas as it wants, and none too many.
    pub(crate) fn wait_settled(&self, app: &str, limit: Duration) -> Result<()> {
        self.wait(limit, &format!("{app} to be ready"), || Ok(unsettled(&self.app(app)?)))
    }

    /// Waits until the services have these numbers of ready replicas, none of them on `without`.
    pub(crate) fn wait_ready(&self, app: &str, want: &[(&str, usize)], without: &str, limit: Duration) -> Result<()> {
        self.wait(limit, &format!("{app} to be ready away from {without}"), || {
            Ok(missing(&self.replicas(app)?, want, without))
        })
    }

    /// Waits until there is nothing to say against it any more. An answer that fails is looked at again.
    pub(crate) fn wait(&self, limit: Duration, what: &str, against: impl Fn() -> Result<Option<String>>) -> Result<()> {
        until(limit, || match against() {
            Ok(None) => Look::Done(()),
            Ok(Some(why)) => Look::Not(why),
            Err(error) => Look::Not(error.chain()),
        })
        .map_err(|last| Error::broken(format!("{what} within {} s", limit.as_secs()), last))
    }
}

/// One look at a state.
pub(crate) enum Look<T> {
    Done(T),
    /// What is missing.
    Not(String),
}

/// Looks until it is done or the time is over; then what was missing last.
pub(crate) fn until<T>(limit: Duration, mut look: impl FnMut() -> Look<T>) -> Result<T, String> {
    let end = Instant::now() + limit;
    loop {
        match look() {
            Look::Done(value) => return Ok(value),
            Look::Not(why) if Instant::now() >= end => return Err(why),
            Look::Not(_) => std::thread::sleep(LOOK),
        }
    }
}

/// What keeps an app from being settled.
fn unsettled(app: &Value) -> Option<String> {
    let services = app["summary"]["services"].as_array().map(Vec::as_slice).unwrap_or_default();
    if services.is_empty() {
        return Some("it has no services".into());
    }
    let mut text = String::new();
    for service in services.iter().filter(|service| service["settled"] != true) {
        let (name, message) = (word(service, "name"), word(service, "message"));
        let comma = if text.is_empty() { "" } else { ", " };
        let why = if message.is_empty() { String::new() } else { format!(" ({message})") };
        let _ = write!(text, "{comma}{name}: {} of {} ready{why}", service["ready"], service["wanted"]);
    }
    (!text.is_empty()).then_some(text)
}

/// What keeps services from having this many ready replicas away from a node.
fn missing(replicas: &[Replica], want: &[(&str, usize)], without: &str) -> Option<String> {
    let short = want.iter().filter_map(|(service, count)| {
        let good = replicas.iter().filter(|r| r.service == *service && r.ready && r.node != without).count();
        (good != *count).then(|| format!("{service}: {good} of {count}"))
    });
    let text = short.collect::<Vec<_>>().join(", ");
    (!text.is_empty()).then_some(text)
}

fn word(document: &Value, key: &str) -> String {
    document[key].as_str().unwrap_or_default().to_owned()
}

fn read_nodes(status: &Value) -> Result<Vec<Node>> {
    let wrong = || Error::input("gantry lab status --json", "lists no `nodes`");
    let list = status["nodes"].as_array().ok_or_else(wrong)?;
    let nodes = list.iter().map(|node| Node {
        name: word(node, "name"),
        address: word(node, "address"),
        running: node["running"] == true,
        state: word(node, "scheduler"),
    });
    Ok(nodes.collect())
}

fn read_replicas(document: &Value) -> Result<Vec<Replica>> {
    let list = document.as_array().ok_or_else(|| Error::input("replicas", "must be a list"))?;
    list.iter()
        .map(|one| {
            let name = &one["name"];
            let service = name["service"].as_str().ok_or_else(|| Error::input("a replica", "has no `name.service`"))?;
            Ok(Replica {
                id: word(one, "id"),
                name: format!("{}-{service}-{}", word(name, "app"), name["number"]),
                service: service.to_owned(),
                node: word(one, "node"),
                ready: one["ready"] == true,
                current: one["current"] == true,
                state: word(one, "state"),
                restarts: one["restarts"].as_u64().unwrap_or_default(),
                message: word(one, "message"),
            })
        })
        .collect()
}

/// Kills the main process of a replica, wherever it runs on this machine, and says when.
pub(crate) fn kill_replica(id: &str) -> Result<Instant> {
    let pid = init_of(id).ok_or_else(|| Error::broken(format!("a process of {id}"), "there is none"))?;
    sys::kill(pid).map_err(Error::file("kill the process", &PathBuf::from(format!("/proc/{pid}"))))?;
    Ok(Instant::now())
}

/// The process that is number 1 within its container, in a cgroup that bears the replica's id.
fn init_of(id: &str) -> Option<i32> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        in_cgroup(&read("cgroup"), id) && first_of_its_namespace(&read("status"))
    })
    .min()
}

fn in_cgroup(cgroups: &str, id: &str) -> bool {
    cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| path.split('/').any(|part| part == id))
}

fn first_of_its_namespace(status: &str) -> bool {
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let pids: Vec<&str> = pids.split_whitespace().collect();
    pids.len() > 1 && pids.last() == Some(&"1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn replica(service: &str, node: &str, ready: bool) -> Value {
        json!({"id": format!("shop-{service}-1-abcdef"), "name": {"app": "shop", "service": service, "number": 1},
               "node": node, "ready": ready, "current": true, "state": "running", "restarts": 2, "message": null})
    }

    #[test]
    fn replicas_are_read_as_they_are_printed() {
        let list = json!([replica("api", "n2", true), {"id": "x", "name": {"service": "db"}, "node": null}]);
        let replicas = read_replicas(&list).unwrap();
        assert_eq!(replicas[0].name, "shop-api-1");
        assert_eq!((replicas[0].node.as_str(), replicas[0].ready, replicas[0].restarts), ("n2", true, 2));
        assert_eq!((replicas[1].node.as_str(), replicas[1].ready), ("", false));
        assert!(read_replicas(&json!({})).is_err());
        assert!(read_replicas(&json!([{}])).is_err());
    }

    #[test]
    fn what_is_missing_is_named() {
        let list = json!([replica("api", "n2", true), replica("api", "n3", true), replica("web", "n1", false)]);
        let replicas = read_replicas(&list).unwrap();
        for (want, without, text) in [
            (vec![("api", 2)], "", None),
            (vec![("api", 1)], "n3", None),
            (vec![("api", 2), ("web", 1)], "n3", Some("api: 1 of 2, web: 0 of 1")),
            (vec![("api", 1)], "", Some("api: 2 of 1")),
        ] {
            assert_eq!(missing(&replicas, &want, without).as_deref(), text, "{want:?} without {without}");
        }
    }

    #[test]
    fn an_app_is_settled_when_all_its_services_are() {
        let service =
            |settled: bool| json!({"name": "api", "ready": 1, "wanted": 2, "settled": settled, "message": "waits"});
        assert_eq!(unsettled(&json!({"summary": {"services": [service(true)]}})), None);
        let one = json!({"summary": {"services": [service(true), service(false)]}});
        assert_eq!(unsettled(&one).unwrap(), "api: 1 of 2 ready (waits)");
        assert!(unsettled(&json!({})).is_some());
    }

    #[test]
    fn nodes_are_read() {
        let status = json!({"nodes": [{"name": "n1", "address": "10.88.0.11", "running": true, "scheduler": "ready"},
                                      {"name": "n2", "address": "10.88.0.12", "running": false, "scheduler": null}]});
        let nodes = read_nodes(&status).unwrap();
        assert_eq!(
            (nodes[0].address.as_str(), nodes[0].running, nodes[0].state.as_str()),
            ("10.88.0.11", true, "ready")
        );
        assert_eq!((nodes[1].running, nodes[1].state.as_str()), (false, ""));
        assert!(read_nodes(&json!({})).is_err());
    }

    #[test]
    fn a_container_s_first_process_is_told_from_others() {
        let cgroups = "5:memory:/gantry/lab-demo/n2/gantry/shop-api-1-abcdef\n0::/gantry/shop-api-1-abcdef\n";
        assert!(in_cgroup(cgroups, "shop-api-1-abcdef"));
        assert!(!in_cgroup(cgroups, "shop-api-1-abcde"));
        assert!(!in_cgroup("", "x"));
        for (status, first) in [
            ("NSpid:\t812\t9\t1\n", true),
            ("NSpid:\t812\t9\t12\n", false),
            ("NSpid:\t1\n", false),
            ("Name:\tx\n", false),
        ] {
            assert_eq!(first_of_its_namespace(status), first, "{status}");
        }
    }

    #[test]
    fn waiting_ends_with_what_was_missing() {
        let mut looks = 0;
        let got = until(Duration::from_secs(10), || {
            looks += 1;
            if looks == 3 { Look::Done(looks) } else { Look::Not("early".into()) }
        });
        assert_eq!(got, Ok(3));
        let never: Result<(), String> = until(Duration::ZERO, || Look::Not("still missing".into()));
        assert_eq!(never, Err("still missing".into()));
    }
}
