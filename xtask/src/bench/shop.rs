//! The example app on a lab of its own, from the user's side.
//!
//! Each round is a deploy with an empty volume, a SIGKILL of a back end and of a front end, and the loss of a worker.
//! The images are on the nodes before the first round.

use super::{Aim, Figure, Options, Report, median};
use crate::binaries;
use crate::error::{Error, Result};
use crate::hammer::Hammer;
use crate::lab::{self, Lab, Replica, Watch};
use crate::{demo, files, host, images};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Does not meet the demo's.
const LAB: &str = "bench-shop";
const PORT: u16 = 18_080;
const APP: &str = "shop";
const MANIFEST: &str = "examples/shop/compose.yaml";
const LIMIT: Duration = Duration::from_secs(60);
/// A back end that was killed gets every second request of those that come this often, once it serves.
const PAUSE: Duration = Duration::from_millis(2);

/// Samples of one quantity.
#[derive(Debug, Default)]
struct Samples {
    deploy: Vec<Duration>,
    served: Vec<Duration>,
    ready: Vec<Duration>,
    web_ready: Vec<Duration>,
    replaced: Vec<Duration>,
    raw: String,
}

/// Runs the bench; its lab is removed, also after a failure.
pub(crate) fn run(options: &Options) -> Result<Report> {
    host::check_root("bench shop")?;
    let binaries = binaries::ready()?;
    images::build(&[], false)?;
    let lab = Lab::new(&binaries, LAB, PORT);
    lab.fresh(3)?;
    let result = measure(&lab, options);
    let removed = lab.down();
    let samples = result?;
    removed?;
    let figure = |name: &str, samples: &[Duration], aim| Figure {
        name: name.into(),
        value: median(samples),
        unit: "s",
        peer: None,
        aim: Aim::Most(aim),
    };
    Ok(Report {
        figures: vec![
            figure("shop deploy until all ready", &samples.deploy, 1.0),
            figure("shop api (Python) killed until it serves", &samples.served, 0.1),
            figure("shop web (nginx) killed until ready", &samples.web_ready, 0.1),
            figure("shop worker lost until all serve", &samples.replaced, 3.0),
        ],
        raw: samples.raw,
    })
}

fn measure(lab: &Lab, options: &Options) -> Result<Samples> {
    for name in ["shop-web", "shop-api", "shop-db"] {
        lab.load(&files::cache().join(format!("images/{name}.tar")))?;
    }
    let watch = lab.watch()?;
    let mut samples = Samples::default();
    for round in 1..=options.rounds {
        deploy(lab, &watch, &mut samples)?;
        kill_back_end(lab, &watch, &mut samples)?;
        kill_front_end(&watch, &mut samples)?;
        lose_worker(lab, &watch, &mut samples)?;
        lab.ask(&["down", APP, "--volumes"])?;
        let last = |samples: &[Duration]| samples.last().map(Duration::as_secs_f64).unwrap_or_default();
        let line = format!(
            "round {round}: deploy {:.3} s; api ready {:.3} s, serves {:.3} s; web ready {:.3} s; worker replaced {:.3} s",
            last(&samples.deploy),
            last(&samples.ready),
            last(&samples.served),
            last(&samples.web_ready),
            last(&samples.replaced)
        );
        eprintln!("{line}");
        let _ = writeln!(samples.raw, "{line}");
    }
    Ok(samples)
}

fn deploy(lab: &Lab, watch: &Watch, samples: &mut Samples) -> Result<()> {
    let begun = Instant::now();
    lab.ask(&["up", "--detach", "-f", MANIFEST])?;
    watch.wait_settled(APP, LIMIT)?;
    samples.deploy.push(begun.elapsed());
    lab.wait_served(LIMIT).map(drop)
}

/// Kills a ready replica of `service`, and waits until it is ready again: who it was, when, and how that went.
fn kill_replica(watch: &Watch, service: &str) -> Result<(Replica, Instant, Result<()>)> {
    let found = watch.replicas(APP)?.into_iter().find(|replica| replica.service == service && replica.ready);
    let victim = found.ok_or_else(|| Error::broken(format!("a ready replica of {service}"), "there is none"))?;
    let killed = lab::kill_replica(&victim.id)?;
    let back = watch.wait(LIMIT, &format!("{} to be ready again", victim.name), || {
        Ok((!demo::came_back(&watch.replicas(APP)?, &victim)).then(|| "it is not".to_owned()))
    });
    Ok((victim, killed, back))
}

fn kill_back_end(lab: &Lab, watch: &Watch, samples: &mut Samples) -> Result<()> {
    let hammer = Hammer::start(&lab.url(), 2, PAUSE);
    let (victim, killed, back) = kill_replica(watch, "api")?;
    samples.ready.push(killed.elapsed());
    std::thread::sleep(Duration::from_millis(500)); // more requests to find it among; not a wait for anything
    let tally = hammer.finish();
    back?;
    let served = tally.served_again(&victim.name, killed).or_else(|| tally.served_again(&victim.id, killed));
    samples.served.push(served.ok_or_else(|| Error::broken("the killed replica to answer again", tally.text()))?);
    let _ = writeln!(samples.raw, "api killed: {}", tally.text());
    watch.wait_settled(APP, LIMIT)
}

fn kill_front_end(watch: &Watch, samples: &mut Samples) -> Result<()> {
    let (_, killed, back) = kill_replica(watch, "web")?;
    samples.web_ready.push(killed.elapsed());
    back?;
    watch.wait_settled(APP, LIMIT)
}

fn lose_worker(lab: &Lab, watch: &Watch, samples: &mut Samples) -> Result<()> {
    let victim = demo::worker_to_lose(&lab.nodes()?, &watch.replicas(APP)?)?;
    let hammer = Hammer::start(&lab.url(), 2, PAUSE);
    let lost = Instant::now();
    lab.lab(&["kill", &victim])?;
    let replaced = watch.wait_ready(APP, &[("web", 2), ("api", 2), ("db", 1)], &victim, LIMIT);
    samples.replaced.push(lost.elapsed());
    let tally = hammer.finish();
    replaced?;
    let _ = writeln!(samples.raw, "worker lost: {}", tally.text());
    lab.lab(&["start", &victim])?;
    watch.wait(LIMIT, &format!("{victim} to be ready again"), || {
        let nodes = lab.nodes()?;
        let state = nodes.iter().find(|node| node.name == victim).map(|node| node.state.clone());
        Ok(state.filter(|state| state != "ready"))
    })
}
