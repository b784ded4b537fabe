//! Content from other nodes: their stores are the doubles here, what they say is spoilt at will.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use gantry_images::{
    Digest, Event, Growth, Image, ImageError, NoProgress, Offer, Peer, Peers, Progress, PullOptions, PullPolicy,
    Reference, Registries, Result, Signed, Store, Stored,
};
use rcgen::KeyPair;
use serde_json::json;

use crate::common::{Built, INDEX, architecture, assert_tidy, noise, workplace};
use crate::registry::{Fault, Registry};
use crate::settings::sign;

/// Another node: its store, and how it spoils what it gives.
#[derive(Debug)]
struct Neighbour {
    name: String,
    store: Store,
    whole: bool,
    lies: bool,
    asked: AtomicUsize,
    given: Mutex<u64>,
}

fn read(mut file: fs::File, from: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Peer for Neighbour {
    fn name(&self) -> &str {
        &self.name
    }

    fn whole(&self) -> bool {
        self.whole
    }

    fn blob(&self, digest: Digest, offset: u64) -> BoxFuture<'_, io::Result<Offer>> {
        async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            Ok(match self.store.offer(digest).map_err(io::Error::other)? {
                Stored::Whole { file, .. } => {
                    let mut bytes = read(file, offset)?;
                    if let Some(last) = bytes.last_mut().filter(|_| self.lies) {
                        *last ^= 1;
                    }
                    *self.given.lock().unwrap() += bytes.len() as u64;
                    Offer::Bytes(stream::iter([Ok(bytes.into())]).boxed())
                }
                Stored::Growing(growing) => Offer::Bytes(
                    stream::unfold(Some((growing, offset)), |state| async {
                        let (growing, mut at) = state?;
                        loop {
                            let growth = growing.growth().unwrap();
                            let bytes = read(growing.file.try_clone().unwrap(), at).unwrap();
                            at += bytes.len() as u64;
                            match growth {
                                _ if !bytes.is_empty() => return Some((Ok(bytes.into()), Some((growing, at)))),
                                Growth::More(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                                Growth::Whole(_) => return None,
                                Growth::Gone => return Some((Err(io::ErrorKind::BrokenPipe.into()), None)),
                            }
                        }
                    })
                    .boxed(),
                ),
                Stored::Coming => Offer::Later,
                Stored::Absent => Offer::Absent,
            })
        }
        .boxed()
    }

    fn signatures(&self, digest: Digest) -> BoxFuture<'_, io::Result<Vec<Signed>>> {
        async move { self.store.signatures(digest).map_err(io::Error::other) }.boxed()
    }
}

#[derive(Debug, Default)]
struct Cluster {
    digest: Option<Digest>,
    nodes: Vec<Arc<Neighbour>>,
}

impl Peers for Cluster {
    fn digest(&self, _: &Reference) -> Option<Digest> {
        self.digest
    }

    fn sources(&self, _: &Reference) -> Vec<Arc<dyn Peer>> {
        self.nodes.iter().map(|node| Arc::clone(node) as Arc<dyn Peer>).collect()
    }
}

fn neighbour(name: &str, store: &Store, whole: bool, lies: bool) -> Arc<Neighbour> {
    let (name, store) = (name.to_owned(), store.clone());
    Arc::new(Neighbour { name, store, whole, lies, asked: AtomicUsize::new(0), given: Mutex::new(0) })
}

fn pull_with(
    store: &Store,
    reference: &Reference,
    registries: &Registries,
    cluster: Option<Cluster>,
    progress: &dyn Progress,
) -> Result<Image> {
    let peers = cluster.map(|cluster| Arc::new(cluster) as Arc<dyn Peers>);
    let policy = PullPolicy::Always;
    let options = PullOptions { registries: registries.clone(), policy, peers, ..PullOptions::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(store.pull(reference, &options, progress))
}

fn pull(store: &Store, reference: &Reference, cluster: Cluster) -> Result<Image> {
    pull_with(store, reference, &Registries::default(), Some(cluster), &NoProgress)
}

fn store(work: &Path, name: &str) -> Store {
    Store::open(work.join(name)).unwrap()
}

/// From now on the registry hangs up on everybody.
fn stop(registry: &Registry) {
    registry.reset();
    registry.fault("/", &vec![Fault::HangUp; 1_000]);
}

#[test]
fn of_what_a_node_has_the_registry_sends_nothing() {
    let work = workplace("64m");
    let (registry, built) = (Registry::start(), Built::new(&[noise(1, 2, 300_000), noise(2, 1, 1_000)]));
    registry.push("1", &built);
    let (first, second) = (store(&work, "first"), store(&work, "second"));
    let reference = registry.reference("x:1");
    pull(&first, &reference, Cluster::default()).unwrap();
    registry.reset();
    let (none, one) = (neighbour("n0", &store(&work, "empty"), true, false), neighbour("n1", &first, true, false));
    let image = pull(&second, &reference, Cluster { digest: None, nodes: vec![none, one] }).unwrap();
    assert_eq!(image.digest, built.digest());
    assert_eq!(registry.log(), ["HEAD /v2/x/manifests/1"], "only whether the tag has moved");
    assert_tidy(second.root());
}

/// Holds up what it is told of: a slow link.
struct Slow;

impl Progress for Slow {
    fn event(&self, event: Event) {
        if matches!(event, Event::LayerProgress { .. }) {
            thread::sleep(Duration::from_millis(4));
        }
    }
}

#[test]
fn nodes_that_begin_together_fetch_a_new_image_once() {
    let work = workplace("128m");
    let layers: Vec<_> = (1..=6).map(|seed| noise(seed, 1, 700_000)).collect();
    let (registry, built) = (Registry::start(), Built::new(&layers));
    registry.push("1", &built);
    let stores: Vec<Store> = (0..3).map(|at| store(&work, &format!("s{at}"))).collect();
    let reference = registry.reference("x:1");
    thread::scope(|scope| {
        let leader = neighbour("n0", &stores[0], false, false);
        for (at, store) in stores.iter().enumerate() {
            let nodes = if at == 0 { Vec::new() } else { vec![Arc::clone(&leader)] };
            let (reference, cluster) = (&reference, Cluster { digest: None, nodes });
            scope.spawn(move || {
                pull_with(store, reference, &Registries::default(), Some(cluster), &Slow).unwrap();
            });
        }
    });
    let state = registry.state.lock().unwrap();
    let size: u64 = built.layers.iter().map(|layer| layer.size).sum();
    assert_eq!(state.layer_bytes(&built), size, "{:#?}", state.log);
    drop(state);
    for store in &stores {
        assert_tidy(store.root());
    }
}

#[test]
fn a_node_that_gives_wrong_bytes_is_asked_for_nothing_more() {
    let work = workplace("64m");
    let built = Built::new(&[noise(1, 1, 400_000), noise(2, 1, 300_000), noise(3, 1, 200_000)]);
    let registry = Registry::start();
    registry.push("1", &built);
    let (first, second, third) = (store(&work, "first"), store(&work, "second"), store(&work, "third"));
    let reference = registry.reference("x:1");
    pull(&first, &reference, Cluster::default()).unwrap();
    registry.reset();
    let liar = neighbour("n1", &first, true, true);
    let image = pull(&second, &reference, Cluster { digest: None, nodes: vec![Arc::clone(&liar)] }).unwrap();
    assert_eq!(image.digest, built.digest());
    assert_eq!(liar.asked.load(Ordering::SeqCst), 1, "its manifest was wrong, that was enough");
    registry.reset();
    // One that lies about layers only: told from the honest one by trying.
    let (liar, honest) = (neighbour("n1", &first, false, true), neighbour("n2", &first, true, false));
    let nodes = vec![Arc::clone(&liar), Arc::clone(&honest)];
    pull(&third, &reference, Cluster { digest: None, nodes }).unwrap();
    assert_eq!(registry.log(), ["HEAD /v2/x/manifests/1"], "the honest node has all of it");
    for store in [&second, &third] {
        assert_tidy(store.root());
    }
}

#[test]
fn without_the_registry_a_name_means_what_a_node_knows() {
    let work = workplace("64m");
    let (registry, built) = (Registry::start(), Built::new(&[noise(1, 1, 300_000)]));
    registry.push("only-here", &built);
    let mut entry = built.descriptor();
    entry["platform"] = json!({ "os": "linux", "architecture": architecture() });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }).to_string().into_bytes();
    registry.push_index("1", &index);
    let (first, second, third) = (store(&work, "first"), store(&work, "second"), store(&work, "third"));
    let (reference, top) = (registry.reference("x:1"), Digest::of(&index));
    let image = pull(&first, &reference, Cluster::default()).unwrap();
    let held = first.held().unwrap();
    assert_eq!((held[0].digest, held[0].manifest), (top, built.digest()), "the index is kept");
    first.collect().unwrap();
    assert_eq!(first.held().unwrap(), held, "also when content is collected");
    stop(&registry);
    let cluster = |digest| Cluster { digest, nodes: vec![neighbour("n1", &first, true, false)] };
    let error = pull(&second, &reference, cluster(None)).unwrap_err();
    assert!(matches!(error, ImageError::Network { .. }), "no node knows the name: {error}");
    let again = pull(&second, &reference, cluster(Some(top))).unwrap();
    assert_eq!((again.digest, again.source_digests), (image.digest, vec![top]));
    // And from that one to the next, by its digest.
    let pinned: Reference = format!("{}/x@{top}", registry.address).parse().unwrap();
    let from_second = Cluster { digest: None, nodes: vec![neighbour("n2", &second, true, false)] };
    assert_eq!(pull(&third, &pinned, from_second).unwrap().digest, built.digest());
    // A registry that answers is believed, whatever nodes know.
    registry.reset();
    let error = pull(&third, &registry.reference("x:2"), cluster(Some(top))).unwrap_err();
    assert!(matches!(error, ImageError::NotInRegistry { .. }), "{error}");
}

#[test]
fn trust_holds_without_the_registry() {
    let work = workplace("64m");
    let (registry, built) = (Registry::start(), Built::new(&[noise(1, 1, 1_000)]));
    registry.push("1", &built);
    let keys = [(); 2].map(|()| KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap());
    let rules: Vec<Registries> = ["one", "two"]
        .iter()
        .zip(&keys)
        .map(|(name, key)| {
            let (key_file, file) = (work.join(format!("{name}.pub")), work.join(format!("{name}.toml")));
            fs::write(&key_file, key.public_key_pem()).unwrap();
            let text = format!("[[trust]]\nscope = \"*\"\nrequire = \"signature\"\nkeys = [{key_file:?}]");
            fs::write(&file, text).unwrap();
            Registries::read(&file).unwrap()
        })
        .collect();
    sign(&registry, &keys[0], built.digest(), built.digest());
    let reference = registry.reference("x:1");
    let (signed, unsigned) = (store(&work, "signed"), store(&work, "unsigned"));
    pull_with(&signed, &reference, &rules[0], None, &NoProgress).unwrap();
    pull_with(&unsigned, &reference, &Registries::default(), None, &NoProgress).unwrap();
    stop(&registry);
    for (at, (why, from, rule, good)) in [
        ("signed by a key that is trusted here", &signed, &rules[0], true),
        ("signed by another", &signed, &rules[1], false),
        ("the node never saw a signature", &unsigned, &rules[0], false),
        ("nothing is required here", &unsigned, &Registries::default(), true),
    ]
    .into_iter()
    .enumerate()
    {
        let to = store(&work, &format!("to{at}"));
        let cluster = Cluster { digest: Some(built.digest()), nodes: vec![neighbour("n1", from, true, false)] };
        let pulled = pull_with(&to, &reference, rule, Some(cluster), &NoProgress);
        assert_eq!(pulled.is_ok(), good, "{why}: {pulled:?}");
        assert_eq!(to.images().unwrap().len(), usize::from(good), "{why}");
        // What was verified stays so, and is there for the next node.
        assert_eq!(to.signatures(built.digest()).unwrap().len(), usize::from(at == 0), "{why}");
    }
}
