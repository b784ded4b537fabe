//! A network for one container where there is no daemon: `gantry run`.
//!
//! Its own bridge and table, apart from a node's. They come with the first container and go with the last; a lock file
//! lets one command at a time change them.

use crate::attach::{self, Place};
use crate::conntrack::{self, Which};
use crate::dns;
use crate::error::NetError;
use crate::link::{self, Mac};
use crate::netlink::{Batch, Family, Netlink};
use crate::netns::{self, set_sysctl};
use crate::nft::{Nft, ruleset};
use crate::node::{no_redirects, remove_from_kernel};
use crate::plan::{self, Targets, no_overlap, port_text};
use crate::state::{self, Attachments, Durability, Record, check_id, netns_path};
use gantry_api::network::{AttachRequest, Attachment, Ipv4Net};
use gantry_api::spec::Protocol;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The bridge of containers without a daemon.
pub const BRIDGE: &str = "gantry-run0";
const PREFIX: &str = "gr";
const MTU: u32 = 1500;

/// Their network.
pub fn subnet() -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 209, 0, 0), 24).unwrap_or_else(|| unreachable!("10.209.0.0/24 is a prefix"))
}

/// A container's network, and what to write into its resolv.conf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Address and namespace. Its gateway is no name server.
    pub attachment: Attachment,
    /// The host's name servers that can be reached from inside; empty when the host has none but its own loopback.
    pub nameservers: Vec<IpAddr>,
    /// What may keep it from the outside, in words, for the person at the terminal.
    pub warnings: Vec<String>,
}

/// Give a container a network; the same request again answers the same.
///
/// Blocks for milliseconds. Published ports are open on all addresses of this host, 127.0.0.1 too.
///
/// - `run_dir`: the namespace is kept in its `netns/`.
/// - `data_dir`: what is attached is kept in its `netd/local/`.
///
/// # Errors
/// 10.209.0.0/24 is this host's, a port is taken, or the kernel refused; nothing is left of a new one then.
pub fn attach(run_dir: &Path, data_dir: &Path, request: &AttachRequest) -> Result<Local, NetError> {
    check_id(&request.id)?;
    let mut session = Session::open(run_dir, data_dir)?;
    let new = !session.all.records.contains_key(&request.id);
    if new {
        session.check_ports(request)?;
    }
    let bridge = session.ensure_bridge()?;
    let record = session.record(request)?;
    let place = Place {
        run_dir,
        bridge,
        group: link::RUN_GROUP,
        mtu: MTU,
        gateway: plan::gateway(subnet()),
        prefix_length: subnet().length(),
        // The host's setting for bridged frames stays as it is here: its other bridges may need it.
        hairpin: true,
    };
    let made = attach::ensure(&mut session.route, &place, &record).and_then(|()| session.ensure_rules());
    if let Err(error) = made {
        if new {
            let _ = session.remove(&request.id);
        }
        return Err(error);
    }
    let nameservers = dns::nameservers(Path::new("/etc/resolv.conf"));
    let warnings = Nft::open()?.forward_drops()?.iter().map(|chain| firewall(chain)).collect();
    Ok(Local { attachment: place.attachment(&record), nameservers, warnings })
}

fn firewall(chain: &str) -> String {
    format!(
        "this host's firewall ({chain}) drops forwarded packets by default: \
         unless it lets {BRIDGE} pass, the container does not reach the outside"
    )
}

/// Take a container's network away, and with the last one bridge and table; fine when it has none.
///
/// # Errors
/// The kernel refused; repeat it then.
pub fn detach(run_dir: &Path, data_dir: &Path, id: &str) -> Result<(), NetError> {
    check_id(id)?;
    Session::open(run_dir, data_dir)?.remove(id)
}

/// One change, under the lock.
struct Session {
    run_dir: PathBuf,
    path: PathBuf,
    all: Attachments,
    route: Netlink,
    _lock: File,
}

impl Session {
    fn open(run_dir: &Path, data_dir: &Path) -> Result<Self, NetError> {
        let directory = data_dir.join("netd").join("local");
        state::private_directory(&directory)?;
        let netns = run_dir.join("netns");
        std::fs::create_dir_all(&netns).map_err(|e| NetError::file("create directory", &netns, e))?;
        let lock = state::lock(&directory.join("lock"))?;
        let path = directory.join("attachments.json");
        let all = state::load(&path)?.unwrap_or_default();
        let route = Netlink::open(Family::Route)?;
        let mut session = Self { run_dir: run_dir.to_owned(), path, all, route, _lock: lock };
        session.drop_dead()?;
        Ok(session)
    }

    /// After a restart of the host.
    fn drop_dead(&mut self) -> Result<(), NetError> {
        let ids: Vec<String> = self.all.records.keys().cloned().collect();
        for id in ids {
            if netns::open(&netns_path(&self.run_dir, &id))?.is_none() {
                self.forget(&id);
            }
        }
        Ok(())
    }

    fn forget(&mut self, id: &str) {
        if let Some(record) = self.all.records.remove(id) {
            self.all.addresses.free(record.address);
        }
    }

    fn store(&self) -> Result<(), NetError> {
        state::store(&self.path, &self.all, Durability::Process)
    }

    fn check_ports(&self, request: &AttachRequest) -> Result<(), NetError> {
        for port in &request.ports {
            let key = (port.protocol, port.published);
            let others = self.all.records.values();
            let holder =
                others.map(|r| &r.request).find(|other| other.ports.iter().any(|p| (p.protocol, p.published) == key));
            if let Some(other) = holder {
                let problem = format!("container {} has it", other.id);
                return Err(NetError::Port { port: port_text(key), problem });
            }
            // Only a look: without a daemon nobody can hold it.
            let any = (Ipv4Addr::UNSPECIFIED, port.published);
            let free = match port.protocol {
                Protocol::Tcp => std::net::TcpListener::bind(any).map(drop),
                Protocol::Udp => std::net::UdpSocket::bind(any).map(drop),
            };
            if let Err(error) = free {
                let problem = match error.kind() {
                    std::io::ErrorKind::AddrInUse => "another program on this host holds it".to_owned(),
                    _ => error.to_string(),
                };
                return Err(NetError::Port { port: port_text(key), problem });
            }
        }
        Ok(())
    }

    fn record(&mut self, request: &AttachRequest) -> Result<Record, NetError> {
        if let Some(record) = self.all.records.get(&request.id) {
            return Ok(record.clone());
        }
        let link = self.all.link_name(PREFIX, &request.id);
        let address = self.all.addresses.take(subnet())?;
        let record = Record { request: request.clone(), address, link };
        self.all.records.insert(request.id.clone(), record.clone());
        self.store()?;
        Ok(record)
    }

    fn ensure_bridge(&mut self) -> Result<u32, NetError> {
        let gateway = plan::gateway(subnet());
        if let Some(bridge) = link::find(&mut self.route, BRIDGE)? {
            if bridge.group != link::RUN_GROUP {
                let object = format!("bridge {BRIDGE}: a link of this name exists that is not Gantry's");
                return Err(NetError::io("create", object, std::io::ErrorKind::AlreadyExists));
            }
        } else {
            let links = link::links(&mut self.route, None)?;
            let name = |index| links.iter().find(|l| l.index == index).map_or_else(String::new, |l| l.name.clone());
            no_overlap(&[("local network", subnet())], &link::routes(&mut self.route)?, &[], name)?;
            let mut batch = Batch::new();
            link::create_bridge(&mut batch, BRIDGE, Mac::of(gateway), link::RUN_GROUP);
            self.route.run(batch)?;
        }
        let absent = || NetError::io("find link", BRIDGE, std::io::ErrorKind::NotFound);
        let bridge = link::find(&mut self.route, BRIDGE)?.ok_or_else(absent)?;
        let mut batch = Batch::new();
        if !bridge.up {
            link::set_up(&mut batch, bridge.index, BRIDGE);
        }
        link::add_address(&mut batch, bridge.index, gateway, subnet().length());
        self.route.run(batch)?;
        set_sysctl("net/ipv4/ip_forward", "1")?;
        no_redirects(BRIDGE)?;
        // So that `-p 8080:80` works at 127.0.0.1:8080; the rules keep containers from using the way.
        set_sysctl(&format!("net/ipv4/conf/{BRIDGE}/route_localnet"), "1")?;
        Ok(bridge.index)
    }

    fn ensure_rules(&mut self) -> Result<(), NetError> {
        let mut targets = Targets::new();
        for record in self.all.records.values() {
            for port in &record.request.ports {
                targets.insert((port.protocol, port.published), vec![(record.address, port.target)]);
            }
        }
        // One slot: `gantry run` gives a port to one container.
        let elements = targets
            .iter()
            .flat_map(|((protocol, port), list)| {
                list.iter().map(|to| ruleset::published_slot(*protocol, *port, 0, *to))
            })
            .collect();
        let wanted = BTreeMap::from([(ruleset::PUBLISHED.name, Arc::new(elements))]);
        Nft::open()?.ensure(&ruleset::run(BRIDGE, subnet()), &wanted).map(|_| ())
    }

    fn remove(&mut self, id: &str) -> Result<(), NetError> {
        if let Some(record) = self.all.records.get(id).cloned() {
            attach::remove(&mut self.route, &self.run_dir, &record)?;
            if let Err(error) = conntrack::forget(record.address, Which::All) {
                tracing::warn!(error = %error.chain(), "connections cannot be forgotten");
            }
            self.forget(id);
            self.store()?;
        } else {
            netns::remove(&netns_path(&self.run_dir, id))?;
        }
        if !self.all.records.is_empty() {
            return self.ensure_rules();
        }
        remove_from_kernel(&[link::RUN_GROUP], &[ruleset::RUN_TABLE])
    }
}
