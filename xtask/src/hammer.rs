//! A client that does not stop asking while something is broken on purpose, and counts what went wrong.

use crate::http::{self, Visit};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A person gives up about then.
const PATIENCE: Duration = Duration::from_secs(5);

/// One request: when it was sent, how long it took, and what came of it.
#[derive(Debug, Clone)]
pub(crate) struct Shot {
    pub(crate) sent: Instant,
    pub(crate) took: Duration,
    pub(crate) result: Result<Visit, String>,
}

/// Clients that ask on and on.
#[derive(Debug)]
pub(crate) struct Hammer {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Shot>>>,
}

impl Hammer {
    /// Starts `clients` that ask `url`, each pausing between two requests.
    pub(crate) fn start(url: &str, clients: u32, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..clients)
            .map(|_| {
                let (stop, url) = (Arc::clone(&stop), url.to_owned());
                std::thread::spawn(move || {
                    let mut shots = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let sent = Instant::now();
                        let result = http::visit(&url, PATIENCE).map_err(|error| error.chain());
                        shots.push(Shot { sent, took: sent.elapsed(), result });
                        std::thread::sleep(pause); // the rate of the load, not a wait for anything
                    }
                    shots
                })
            })
            .collect();
        Self { stop, clients }
    }

    /// Stops the clients.
    pub(crate) fn finish(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        Tally::of(self.clients.into_iter().map(|client| client.join().unwrap_or_default()).collect())
    }
}

/// What the clients saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) asked: usize,
    pub(crate) failed: usize,
    /// The first error, for a person.
    pub(crate) first_error: Option<String>,
    /// The longest request.
    pub(crate) slowest: Duration,
    /// The highest count seen.
    pub(crate) visits: u64,
    /// A client saw a lower count than before: visits were lost.
    pub(crate) went_back: bool,
    /// Answers by host name of who answered.
    pub(crate) served_by: BTreeMap<String, usize>,
    /// All requests in order of time.
    pub(crate) shots: Vec<Shot>,
}

impl Tally {
    fn of(clients: Vec<Vec<Shot>>) -> Self {
        let mut tally = Self::default();
        for client in &clients {
            let mut last = 0;
            for visit in client.iter().filter_map(|shot| shot.result.as_ref().ok()) {
                tally.went_back |= visit.visits <= last;
                last = visit.visits;
                tally.visits = tally.visits.max(last);
                *tally.served_by.entry(visit.served_by.clone()).or_default() += 1;
            }
        }
        tally.shots = clients.into_iter().flatten().collect();
        tally.shots.sort_by_key(|shot| shot.sent);
        tally.asked = tally.shots.len();
        tally.failed = tally.shots.iter().filter(|shot| shot.result.is_err()).count();
        tally.first_error = tally.shots.iter().find_map(|shot| shot.result.as_ref().err().cloned());
        tally.slowest = tally.shots.iter().map(|shot| shot.took).max().unwrap_or_default();
        tally
    }

    /// `812 requests, 3 failed (no answer …), slowest 512 ms`.
    pub(crate) fn text(&self) -> String {
        let why = self.first_error.as_ref().map(|error| format!(" (first: {error})")).unwrap_or_default();
        let slowest = self.slowest.as_millis();
        format!("{} requests meanwhile, {} failed{why}, slowest {slowest} ms", self.asked, self.failed)
    }

    /// When `name` first answered a request that was sent after `moment`, as time since then.
    pub(crate) fn served_again(&self, name: &str, moment: Instant) -> Option<Duration> {
        let served =
            |shot: &&Shot| shot.sent > moment && shot.result.as_ref().is_ok_and(|visit| visit.served_by == name);
        self.shots.iter().filter(served).map(|shot| (shot.sent + shot.took).duration_since(moment)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shot(start: Instant, at_ms: u64, result: Result<u64, &str>) -> Shot {
        let result = result.map(|visits| Visit { visits, served_by: format!("api-{}", visits % 2) });
        Shot {
            sent: start + Duration::from_millis(at_ms),
            took: Duration::from_millis(5),
            result: result.map_err(str::to_owned),
        }
    }

    #[test]
    fn shots_add_up() {
        let start = Instant::now();
        let one = vec![shot(start, 0, Ok(1)), shot(start, 20, Err("refused")), shot(start, 40, Ok(4))];
        let two = vec![shot(start, 10, Ok(2)), shot(start, 30, Ok(3))];
        let tally = Tally::of(vec![one, two]);
        assert_eq!((tally.asked, tally.failed, tally.visits, tally.went_back), (5, 1, 4, false));
        assert_eq!(tally.served_by, BTreeMap::from([("api-0".into(), 2), ("api-1".into(), 2)]));
        assert_eq!(tally.text(), "5 requests meanwhile, 1 failed (first: refused), slowest 5 ms");
        let moment = start + Duration::from_millis(5);
        assert_eq!(tally.served_again("api-1", moment), Some(Duration::from_millis(30)));
        assert_eq!(tally.served_again("api-7", moment), None);
    }

    #[test]
    fn a_lost_visit_is_seen() {
        let start = Instant::now();
        for (counts, back) in [(vec![5, 6, 7], false), (vec![5, 6, 6], true), (vec![5, 1], true)] {
            let shots = counts.iter().enumerate().map(|(i, n)| shot(start, i as u64, Ok(*n))).collect();
            assert_eq!(Tally::of(vec![shots]).went_back, back, "{counts:?}");
        }
    }

    #[test]
    fn a_real_server_is_counted() {
        use std::io::{Read, Write};
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/api/visit", server.local_addr().unwrap());
        let answering = std::thread::spawn(move || {
            for (count, stream) in server.incoming().take(3).enumerate() {
                let mut stream = stream.unwrap();
                let mut request = [0; 512];
                let _ = stream.read(&mut request).unwrap();
                let body = format!("{{\"visits\": {}, \"served_by\": \"x\"}}", count + 1);
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            }
        });
        let hammer = Hammer::start(&url, 1, Duration::from_millis(1));
        answering.join().unwrap(); // three answered, then nobody listens
        let tally = hammer.finish();
        assert!(tally.asked >= 3, "{}", tally.text());
        assert!(!tally.went_back);
    }
}
