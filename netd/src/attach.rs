//! One container's network in the kernel: namespace, pair of links, address, default route. Every step may be repeated.

use crate::error::NetError;
use crate::link::{self, INNER, Mac, Pair};
use crate::netlink::{Batch, EEXIST, Netlink};
use crate::netns::{self, Namespace};
use crate::state::{Record, netns_path};
use gantry_api::network::Attachment;
use netlink_packet_route::link::LinkAttribute;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where containers are attached to.
#[derive(Debug, Clone)]
pub(crate) struct Place<'a> {
    pub(crate) run_dir: &'a Path,
    pub(crate) bridge: u32,
    pub(crate) group: u32,
    pub(crate) mtu: u32,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) prefix_length: u8,
    /// Whether frames may leave by the port they came in by. Needed where the host passes bridged frames through its
    /// IP rules: a published port is then translated inside the bridge, perhaps to the container that asked.
    pub(crate) hairpin: bool,
}

impl Place<'_> {
    /// The answer to an attach.
    pub(crate) fn attachment(&self, record: &Record) -> Attachment {
        Attachment {
            id: record.request.id.clone(),
            address: record.address,
            prefix_length: self.prefix_length,
            gateway: self.gateway,
            netns: netns_path(self.run_dir, &record.request.id).display().to_string(),
        }
    }
}

/// Make what is missing of a container's network. A namespace that exists is kept: a container may live in it.
pub(crate) fn ensure(route: &mut Netlink, place: &Place<'_>, record: &Record) -> Result<(), NetError> {
    let path = netns_path(place.run_dir, &record.request.id);
    let (mut inside, fresh) = match netns::open(&path)? {
        Some(namespace) => (namespace, false),
        None => {
            netns::remove(&path)?;
            (netns::create(&path)?, true)
        }
    };
    let host = if fresh { None } else { link::find(route, &record.link)? };
    let inner = match &host {
        Some(_) => link::find(&mut inside.route, INNER)?,
        None => None,
    };
    let inner = match (host, inner) {
        (Some(host), Some(inner)) => {
            if host.master != Some(place.bridge) || !host.up {
                let mut batch = Batch::new();
                let attributes = vec![LinkAttribute::Controller(place.bridge), LinkAttribute::Group(place.group)];
                link::change(&mut batch, host.index, &host.name, attributes);
                link::set_up(&mut batch, host.index, &host.name);
                route.run(batch)?;
            }
            inner.index
        }
        _ => create_pair(route, place, record, &mut inside)?,
    };
    if place.hairpin {
        let mut batch = Batch::new();
        link::allow_hairpin(&mut batch, &record.link);
        route.run(batch)?;
    }
    let mut batch = Batch::new();
    link::configure_inside(&mut batch, inner, record.address, place.prefix_length, place.gateway);
    inside.route.run(batch)
}

/// Answers the number of the inner end.
fn create_pair(
    route: &mut Netlink,
    place: &Place<'_>,
    record: &Record,
    inside: &mut Namespace,
) -> Result<u32, NetError> {
    let pair = |batch: &mut Batch| {
        let pair = Pair {
            host: &record.link,
            bridge: place.bridge,
            namespace: inside.descriptor.as_fd(),
            mac: Mac::of(record.address),
            mtu: place.mtu,
            group: place.group,
        };
        link::create_pair(batch, pair);
    };
    let mut batch = Batch::new();
    pair(&mut batch);
    match route.run(batch) {
        Err(error) if error.errno() == Some(EEXIST) => {
            // Left over from a namespace that lost its name but not its last process.
            let mut batch = Batch::new();
            link::delete(&mut batch, &record.link);
            pair(&mut batch);
            route.run(batch)?;
        }
        other => other?,
    }
    let inner = link::find(&mut inside.route, INNER)?;
    let absent = || NetError::io("find", format!("{INNER} of {}", record.request.id), io::ErrorKind::NotFound);
    inner.map(|inner| inner.index).ok_or_else(absent)
}

/// Remove all of a container's network; fine when it is gone. Done when the kernel has nothing left of it.
pub(crate) fn remove(route: &mut Netlink, run_dir: &Path, record: &Record) -> Result<(), NetError> {
    // Without its last holder a namespace goes by itself, and its links with it, many in one grace period of the
    // kernel. Deleting a link by name costs a grace period of its own: only when a process still holds the namespace.
    const PATIENCE: Duration = Duration::from_millis(250);
    netns::remove(&netns_path(run_dir, &record.request.id))?;
    let start = Instant::now();
    let mut pause = Duration::from_micros(500);
    while link::find(route, &record.link)?.is_some() {
        if start.elapsed() > PATIENCE {
            let mut batch = Batch::new();
            link::delete(&mut batch, &record.link);
            return route.run(batch);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}
