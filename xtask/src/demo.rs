//! `cargo xtask demo`: a three-tier shop on three nodes, and what happens when things break.
//!
//! Everything goes through the commands a user has. What is promised is checked: a promise that is not kept ends the
//! demo with exit code 1 (`--keep-going`: at its end).

use crate::binaries::{self, Binaries};
use crate::error::{Error, Result};
use crate::hammer::{Hammer, Tally};
use crate::lab::{self, Lab, Node, Replica};
use crate::{files, host, images, show};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The demo's lab; one that is there already is replaced.
const LAB: &str = "demo";
const NODES: u32 = 3;
/// As in examples/shop/compose.yaml, which takes another one from `PORT` too.
const PORT: u16 = 8080;
const APP: &str = "shop";
const MANIFEST: &str = "examples/shop/compose.yaml";
/// Replicas of the back end after scaling.
const MANY: usize = 6;
/// A slow machine under load; what is really taken is printed.
const LIMIT: Duration = Duration::from_secs(60);

/// `cargo xtask demo [--down] [--keep-going]`.
pub(crate) fn task(args: &[String]) -> Result<()> {
    let mut keep_going = false;
    let mut down = false;
    for arg in args {
        match arg.as_str() {
            "--keep-going" => keep_going = true,
            "--down" => down = true,
            other => return Err(Error::Usage(format!("demo does not know `{other}`"))),
        }
    }
    host::check_root("demo")?;
    let port = port(std::env::var("PORT").ok().as_deref())?;
    if down {
        let binaries = binaries::at_hand()?;
        Lab::new(&binaries, LAB, port).down()?;
        println!("the demo's lab is removed");
        return Ok(());
    }
    host::check_debian()?;
    let begun = Instant::now();
    let binaries = prepare()?;
    let mut demo = Demo { lab: Lab::new(&binaries, LAB, port), port, keep_going, broken: 0, visits: 0 };
    demo.run()?;
    println!("\n{}", look_around(&binaries, port));
    if demo.broken > 0 {
        return Err(Error::broken("every step of the demo to succeed", format!("{} did not", demo.broken)));
    }
    println!("\nEverything held. The whole demo took {}.", show::time(begun.elapsed()));
    Ok(())
}

/// The port that a person wants instead.
fn port(given: Option<&str>) -> Result<u16> {
    let Some(given) = given else { return Ok(PORT) };
    let number = given.parse().ok().filter(|port| *port > 0);
    number.ok_or_else(|| Error::Usage(format!("PORT={given} is not a port")))
}

/// All that comes before the lab.
fn prepare() -> Result<Binaries> {
    show::step("Install what is missing on this host", || {
        let installed = host::install(&[("cc", "gcc"), ("apt-get", "apt"), ("dpkg-deb", "dpkg")])?;
        Ok(if installed.is_empty() { "nothing is missing".into() } else { installed.join(" ") })
    })?;
    let mut built = None;
    show::step("Build gantry and gantry-runtime", || {
        let binaries = built.insert(binaries::ready()?);
        Ok(format!("{}\n{}", binaries::shown(&binaries.gantry), binaries::shown(&binaries.runtime)))
    })?;
    show::step("Make images from Debian packages", || {
        let rows: Vec<Vec<String>> = images::build(&[], false)?
            .iter()
            .map(|image| vec![image.reference.clone(), format!("{:.1} MB", image.bytes as f64 / 1e6)])
            .collect();
        Ok(show::table(&rows))
    })?;
    built.ok_or_else(|| Error::input("build", "gave no programs"))
}

struct Demo {
    lab: Lab,
    port: u16,
    keep_going: bool,
    /// Promises that were not kept.
    broken: usize,
    /// The highest count seen so far: it must never be lower later.
    visits: u64,
}

impl Demo {
    fn run(&mut self) -> Result<()> {
        self.must("Bring up a lab: three nodes made of namespaces", Self::up)?;
        self.must("Load the images on every node", Self::load)?;
        self.must("Deploy the shop: nginx → Python → PostgreSQL", Self::deploy)?;
        self.may("Ask through every node and through this host", Self::ask_everywhere)?;
        self.may("See how replicas are spread over the nodes", Self::spread)?;
        self.may("Scale the back end from 2 to 6", Self::scale)?;
        self.may("Kill a process of the back end with SIGKILL", Self::kill_process)?;
        self.may("Cut the power of a worker", Self::kill_node)
    }

    /// A step without which nothing after it makes sense.
    fn must(&mut self, title: &str, work: fn(&mut Self) -> Result<String>) -> Result<()> {
        show::step(title, || work(self))
    }

    /// A step that others do not need.
    fn may(&mut self, title: &str, work: fn(&mut Self) -> Result<String>) -> Result<()> {
        match show::step(title, || work(self)) {
            Err(error) if self.keep_going => {
                eprintln!("xtask: {}", error.chain());
                self.broken += 1;
                Ok(())
            }
            other => other,
        }
    }

    fn up(&mut self) -> Result<String> {
        self.lab.fresh(NODES)?;
        let mut rows = vec![row(["NODE", "ADDRESS", "STATE"])];
        rows.extend(self.lab.nodes()?.into_iter().map(|node| vec![node.name, node.address, node.state]));
        Ok(show::table(&rows))
    }

    fn load(&mut self) -> Result<String> {
        let names = ["shop-web", "shop-api", "shop-db"];
        for name in names {
            self.lab.load(&files::cache().join(format!("images/{name}.tar")))?;
        }
        Ok(format!("{} on {NODES} nodes", names.join(", ")))
    }

    fn deploy(&mut self) -> Result<String> {
        let begun = Instant::now();
        self.lab.ask(&["up", "-f", MANIFEST])?;
        let ready = begun.elapsed();
        let visit = self.lab.wait_served(LIMIT)?;
        self.visits = visit.visits;
        let served = show::time(begun.elapsed());
        Ok(format!("all replicas ready after {}, first answer here after {served}", show::time(ready)))
    }

    fn ask_everywhere(&mut self) -> Result<String> {
        const EACH: u32 = 6;
        let mut rows = vec![row(["THROUGH", "ANSWERS", "VISITS", "SERVED BY"])];
        let mut names = BTreeSet::new();
        for node in self.lab.nodes()? {
            let visits = self.lab.visits_through(&node, EACH)?.into_iter().collect::<Result<Vec<_>>>()?;
            let counts = visits.iter().map(|visit| visit.visits).collect::<Vec<_>>();
            let by: BTreeSet<String> = visits.into_iter().map(|visit| visit.served_by).collect();
            rows.push(self.counted(format!("{}:{}", node.address, self.port), &counts, &by)?);
            names.extend(by);
        }
        let visits = (0..EACH).map(|_| self.lab.wait_served(LIMIT)).collect::<Result<Vec<_>>>()?;
        let counts = visits.iter().map(|visit| visit.visits).collect::<Vec<_>>();
        let by: BTreeSet<String> = visits.into_iter().map(|visit| visit.served_by).collect();
        rows.push(self.counted(format!("127.0.0.1:{}", self.port), &counts, &by)?);
        names.extend(by);
        if names.len() < 2 {
            return Err(Error::broken("both replicas of the back end to answer", format!("only {names:?} did")));
        }
        Ok(show::table(&rows))
    }

    /// A row of the table, once the counter is seen to grow with every request.
    fn counted(&mut self, through: String, counts: &[u64], by: &BTreeSet<String>) -> Result<Vec<String>> {
        for count in counts {
            if *count <= self.visits {
                let found = format!("{through} answered {count} after {}", self.visits);
                return Err(Error::broken("the counter to grow with every visit", found));
            }
            self.visits = *count;
        }
        let (first, last) = (counts.first().copied().unwrap_or_default(), counts.last().copied().unwrap_or_default());
        let by = by.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        Ok(vec![through, counts.len().to_string(), format!("{first} … {last}"), by])
    }

    fn spread(&mut self) -> Result<String> {
        let replicas = self.lab.replicas(APP)?;
        let nodes: BTreeSet<&str> = of(&replicas, "api").map(|replica| replica.node.as_str()).collect();
        if nodes.len() < 2 {
            return Err(Error::broken("the replicas of the back end on different nodes", format!("all on {nodes:?}")));
        }
        Ok(spread_table(&self.lab.nodes()?, &replicas))
    }

    fn scale(&mut self) -> Result<String> {
        let begun = Instant::now();
        self.lab.ask(&["scale", APP, &format!("api={MANY}"), "--wait"])?;
        let ready = show::time(begun.elapsed());
        let hammer = Hammer::start(&self.lab.url(), 2, Duration::from_millis(5));
        let names: BTreeSet<String> = of(&self.lab.replicas(APP)?, "api").map(|replica| replica.name.clone()).collect();
        let tally = observe(hammer, || Duration::from_secs(2))?;
        self.check(&tally, 0)?;
        let silent: Vec<&String> = names.iter().filter(|name| served(&tally, name) == 0).collect();
        if names.len() != MANY || !silent.is_empty() {
            let found = format!("there are {}, and these were never given a request: {silent:?}", names.len());
            return Err(Error::broken(format!("{MANY} replicas that answer"), found));
        }
        let shares: Vec<String> = names.iter().map(|name| format!("{name} {}", served(&tally, name))).collect();
        Ok(format!(
            "{MANY} replicas ready after {ready}\n{}\nrequests answered: {}",
            spread_table(&self.lab.nodes()?, &self.lab.replicas(APP)?),
            shares.join(", ")
        ))
    }

    fn kill_process(&mut self) -> Result<String> {
        let replicas = self.lab.replicas(APP)?;
        let victim = of(&replicas, "api").find(|replica| replica.ready);
        let victim = victim.ok_or_else(|| Error::broken("a ready replica of the back end", "there is none"))?.clone();
        let watch = self.lab.watch()?;
        let hammer = Hammer::start(&self.lab.url(), 2, Duration::from_millis(5));
        let killed = lab::kill_replica(&victim.id)?;
        let back = watch.wait(LIMIT, &format!("{} to be ready again", victim.name), || {
            let replicas = watch.replicas(APP)?;
            Ok((!came_back(&replicas, &victim)).then(|| describe(&replicas, &victim.name)))
        });
        let ready = killed.elapsed();
        // It has to be given requests again, too.
        let tally = observe(hammer, || Duration::from_secs(1))?;
        back?;
        self.check(&tally, usize::MAX)?;
        let again = tally.served_again(&victim.name, killed).or_else(|| tally.served_again(&victim.id, killed));
        let again = again.ok_or_else(|| {
            Error::broken(format!("{} to answer again", victim.name), "it is ready and gets no request")
        })?;
        Ok(format!(
            "{} on {}: ready again after {}, answered again after {}\n{}",
            victim.name,
            victim.node,
            show::time(ready),
            show::time(again),
            tally.text()
        ))
    }

    fn kill_node(&mut self) -> Result<String> {
        let replicas = self.lab.replicas(APP)?;
        let victim = worker_to_lose(&self.lab.nodes()?, &replicas)?;
        let moved = replicas.iter().filter(|replica| replica.node == victim).count();
        let before = self.visits;
        let watch = self.lab.watch()?;
        let hammer = Hammer::start(&self.lab.url(), 2, Duration::from_millis(5));
        let lost = Instant::now();
        self.lab.lab(&["kill", &victim])?;
        let want = [("web", 2), ("api", MANY), ("db", 1)];
        let replaced = watch.wait_ready(APP, &want, &victim, LIMIT);
        let took = show::time(lost.elapsed());
        let tally = observe(hammer, || Duration::ZERO)?;
        replaced?;
        self.check(&tally, usize::MAX)?;
        // What failed while it broke is told; from now on nothing may.
        let after = observe(Hammer::start(&self.lab.url(), 2, Duration::from_millis(5)), || Duration::from_secs(1))?;
        self.check(&after, 0)?;
        let table = spread_table(&self.lab.nodes()?, &self.lab.replicas(APP)?);
        self.lab.lab(&["start", &victim])?;
        watch.wait(LIMIT, &format!("{victim} to be ready again"), || {
            let nodes = self.lab.nodes()?;
            let state = nodes.iter().find(|node| node.name == victim).map(|node| node.state.clone());
            Ok(state.filter(|state| state != "ready"))
        })?;
        Ok(format!(
            "{victim} lost with {moved} replicas; all serve elsewhere after {took}\n{}\n{table}\n\
             the counter went on from {before} to {}; {victim} has power again and is ready",
            tally.text(),
            self.visits
        ))
    }

    /// The counter never fell, and no more requests failed than may.
    fn check(&mut self, tally: &Tally, failures_max: usize) -> Result<()> {
        if tally.went_back || (tally.visits > 0 && tally.visits < self.visits) {
            let found = format!("{} after {}", tally.visits, self.visits);
            return Err(Error::broken("the counter to keep its value", found));
        }
        self.visits = self.visits.max(tally.visits);
        if tally.asked == tally.failed || tally.failed > failures_max {
            return Err(Error::broken("requests to be answered", tally.text()));
        }
        Ok(())
    }
}

/// Lets a hammering client go on for a while, then stops it.
fn observe(hammer: Hammer, time: impl FnOnce() -> Duration) -> Result<Tally> {
    std::thread::sleep(time()); // the length of a measurement, not a wait for anything
    Ok(hammer.finish())
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn of<'a>(replicas: &'a [Replica], service: &'a str) -> impl Iterator<Item = &'a Replica> {
    replicas.iter().filter(move |replica| replica.service == service)
}

/// Requests that a replica answered; its host name may be its name or its id.
fn served(tally: &Tally, name: &str) -> usize {
    let mine = |host: &String| host == name || host.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
    tally.served_by.iter().filter(|(host, _)| mine(host)).map(|(_, count)| count).sum()
}

/// Whether what took a killed replica's place is ready: the same one restarted, or another of its name.
pub(crate) fn came_back(replicas: &[Replica], victim: &Replica) -> bool {
    replicas.iter().any(|replica| {
        let anew = replica.id != victim.id || replica.restarts > victim.restarts;
        replica.name == victim.name && replica.ready && anew
    })
}

fn describe(replicas: &[Replica], name: &str) -> String {
    let found = replicas.iter().find(|replica| replica.name == name);
    found.map_or_else(|| format!("{name} is gone"), |one| format!("{name} is {} {}", one.state, one.message))
}

/// A worker whose loss leaves scheduler and database: of those the one with the most replicas.
pub(crate) fn worker_to_lose(nodes: &[Node], replicas: &[Replica]) -> Result<String> {
    let data: BTreeSet<&str> = of(replicas, "db").map(|replica| replica.node.as_str()).collect();
    let on = |node: &Node| replicas.iter().filter(|replica| replica.node == node.name).count();
    let may = nodes.iter().filter(|node| node.name != "n1" && node.running && !data.contains(node.name.as_str()));
    let chosen = may.max_by_key(|node| on(node)).filter(|node| on(node) > 0);
    chosen.map(|node| node.name.clone()).ok_or_else(|| {
        let found = "n1 holds the scheduler, and no other node has replicas without the database";
        Error::broken("a worker that can be lost", found)
    })
}

/// How many replicas of each service run where.
fn spread_table(nodes: &[Node], replicas: &[Replica]) -> String {
    let services: BTreeSet<&str> = replicas.iter().map(|replica| replica.service.as_str()).collect();
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for replica in replicas.iter().filter(|replica| replica.ready) {
        *counts.entry((&replica.node, &replica.service)).or_default() += 1;
    }
    let mut rows = vec![row(["NODE", "POWER"])];
    rows[0].extend(services.iter().map(|service| service.to_uppercase()));
    for node in nodes {
        let power = if node.running { "on" } else { "off" };
        let mut cells = vec![node.name.clone(), power.to_owned()];
        cells.extend(services.iter().map(|service| match counts.get(&(node.name.as_str(), *service)) {
            Some(count) => count.to_string(),
            None => "–".to_owned(),
        }));
        rows.push(cells);
    }
    show::table(&rows)
}

fn look_around(binaries: &Binaries, port: u16) -> String {
    let folder = binaries.gantry.parent().unwrap_or(&binaries.gantry);
    format!(
        "The lab is still up. Look around:\n\
         \x20 export PATH={}:$PATH\n\
         \x20 curl http://127.0.0.1:{port}/api/visit\n\
         \x20 gantry ps                     where replicas run, how they are\n\
         \x20 gantry events                 what happened, and why\n\
         \x20 gantry logs -f {APP}           what they say\n\
         \x20 gantry exec shop/api sh       a shell inside one\n\
         \x20 gantry lab status --name {LAB}  the nodes\n\
         Take it down:\n\
         \x20 cargo xtask demo --down",
        folder.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(service: &str, number: u32, node: &str) -> Replica {
        Replica {
            id: format!("shop-{service}-{number}-abcdef"),
            name: format!("shop-{service}-{number}"),
            service: service.into(),
            node: node.into(),
            ready: true,
            current: true,
            state: "running".into(),
            restarts: 0,
            message: String::new(),
        }
    }

    fn node(name: &str) -> Node {
        Node { name: name.into(), address: String::new(), running: true, state: "ready".into() }
    }

    #[test]
    fn the_worker_to_lose_holds_neither_scheduler_nor_data() {
        let nodes = [node("n1"), node("n2"), node("n3")];
        let api = |number, at: &str| replica("api", number, at);
        for (why, replicas, want) in [
            ("database on n2", vec![replica("db", 1, "n2"), api(1, "n2"), api(2, "n3")], Some("n3")),
            (
                "database on n1: the busier one",
                vec![replica("db", 1, "n1"), api(1, "n2"), api(2, "n2"), api(3, "n3")],
                Some("n2"),
            ),
            ("nothing to move", vec![replica("db", 1, "n2"), api(1, "n1")], None),
        ] {
            assert_eq!(worker_to_lose(&nodes, &replicas).ok().as_deref(), want, "{why}");
        }
    }

    #[test]
    fn a_replica_is_back_when_it_is_ready_anew() {
        let victim = replica("api", 1, "n2");
        let mut restarted = victim.clone();
        restarted.restarts = 1;
        let mut starting = restarted.clone();
        starting.ready = false;
        let mut other = victim.clone();
        other.id = "shop-api-1-ffffff".into();
        for (seen, back) in [
            (vec![victim.clone()], false),
            (vec![starting], false),
            (vec![restarted], true),
            (vec![victim.clone(), other], true),
            (vec![replica("api", 2, "n3")], false),
            (vec![], false),
        ] {
            assert_eq!(came_back(&seen, &victim), back, "{seen:?}");
        }
    }

    #[test]
    fn the_table_counts_ready_replicas() {
        let mut ill = replica("api", 3, "n3");
        ill.ready = false;
        let replicas = [replica("api", 1, "n1"), replica("api", 2, "n1"), replica("web", 1, "n3"), ill];
        let text = spread_table(&[node("n1"), node("n3")], &replicas);
        assert_eq!(text, "NODE  POWER  API  WEB\nn1    on     2    –\nn3    on     –    1");
    }

    #[test]
    fn requests_are_counted_by_name_or_id() {
        let mut tally = Tally::default();
        tally.served_by.insert("shop-api-1".into(), 2);
        tally.served_by.insert("shop-api-1-abcdef".into(), 3);
        tally.served_by.insert("shop-api-12".into(), 7);
        assert_eq!(served(&tally, "shop-api-1"), 5);
    }

    #[test]
    fn another_port_is_a_number() {
        assert_eq!(port(None).unwrap(), 8080);
        assert_eq!(port(Some("18081")).unwrap(), 18081);
        assert!(port(Some("0")).is_err() && port(Some("x")).is_err() && port(Some("70000")).is_err());
    }

    #[test]
    fn a_counter_that_falls_breaks_the_demo() {
        let binaries = Binaries { gantry: "/x".into(), runtime: "/y".into() };
        let mut demo = Demo { lab: Lab::new(&binaries, "t", 1), port: 1, keep_going: false, broken: 0, visits: 10 };
        let tally = |asked, failed, visits| Tally { asked, failed, visits, ..Tally::default() };
        assert!(demo.check(&tally(5, 0, 15), 0).is_ok());
        assert!(demo.check(&tally(5, 0, 14), 0).is_err(), "lower than before");
        assert!(demo.check(&tally(5, 1, 20), 0).is_err(), "one failed");
        assert!(demo.check(&tally(5, 5, 0), usize::MAX).is_err(), "none answered");
        assert!(demo.counted("x".into(), &[21, 22], &BTreeSet::new()).is_ok());
        assert!(demo.counted("x".into(), &[22], &BTreeSet::new()).is_err());
    }
}
