//! What each node is told: its replicas, and the network as all must see it.
//!
//! Only a ready replica on a ready node may be given connections; a suspect node's leave every table at once. A
//! revision is spent only when something changed, and one that was published never comes again with other content.

use super::world::{AppRecord, Node, Now, Phase, Replica, World};
use gantry_api::http::NodeState;
use gantry_api::ids::{AppName, NodeId, ReplicaId, Revision, ServiceName};
use gantry_api::network::{Endpoint, NodeRoute, Published as Port, Service, Table};
use gantry_api::spec;
use gantry_api::wire::{AssignedReplica, Assignment};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An assignment that is not in force after so long is sent again: netd may have been away.
const RESEND_MS: u64 = 2_000;

/// What was last published.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Published {
    routes: Vec<NodeRoute>,
    services: Arc<Vec<Service>>,
    nodes: BTreeMap<NodeId, Share>,
}

/// One node's own part.
#[derive(Debug, Clone, Default, PartialEq)]
struct Share {
    replicas: Vec<ReplicaId>,
    remove_volumes: Vec<String>,
}

impl World {
    /// Assignments that changed since the last call, all with one new revision, and those to send again.
    pub fn publish(&mut self, now: Now) -> Vec<(NodeId, Arc<Assignment>)> {
        let picture = Published {
            routes: routes(self),
            services: Arc::new(services(self)),
            nodes: self.nodes.keys().map(|id| (id.clone(), Share::default())).collect(),
        };
        let picture = with_shares(self, picture);
        let common = picture.routes != self.published.routes || picture.services != self.published.services;
        let differs = |id: &NodeId| common || picture.nodes.get(id) != self.published.nodes.get(id);
        let changed: BTreeSet<NodeId> = self.nodes.keys().filter(|id| differs(id)).cloned().collect();
        if !changed.is_empty() {
            self.revision.0 += 1;
        }
        self.published = picture;
        self.mark(&changed);
        let revision = self.revision;
        let mut send = Vec::new();
        for (id, node) in &mut self.nodes {
            let late =
                node.state == NodeState::Ready && node.applied() < node.assigned && now.since(node.sent) >= RESEND_MS;
            if changed.contains(id) {
                node.assigned = revision;
            }
            if changed.contains(id) || late {
                node.sent = now;
                send.push(id.clone());
            }
        }
        send.into_iter().filter_map(|id| self.assignment(&id).map(|assignment| (id, assignment))).collect()
    }

    /// Replicas whose phase is new are from now on published in it.
    fn mark(&mut self, changed: &BTreeSet<NodeId>) {
        let revision = self.revision;
        for replica in self.replicas.values_mut().filter(|r| r.published.is_none() && !r.wanted()) {
            // A node whose own part did not change needs no newer revision than the one it has.
            let assigned = self.nodes.get(&replica.record.node).map(|node| node.assigned);
            let own = matches!(replica.record.phase, Phase::Stopping { .. }) && !changed.contains(&replica.record.node);
            replica.published = Some(if own { assigned.unwrap_or(revision) } else { revision });
        }
    }

    /// What a node must run, as last published; `None` before the first time.
    pub fn assignment(&self, id: &NodeId) -> Option<Arc<Assignment>> {
        let (node, share) = (self.nodes.get(id)?, self.published.nodes.get(id)?);
        if node.assigned == Revision(0) {
            return None;
        }
        let replicas = share.replicas.iter().filter_map(|id| {
            let record = &self.replicas.get(id)?.record;
            let template = self.template(&record.name, record.generation)?.clone();
            Some(AssignedReplica { id: id.clone(), name: record.name.clone(), template })
        });
        Some(Arc::new(Assignment {
            revision: node.assigned,
            node: id.clone(),
            replicas: replicas.collect(),
            network: self.table(node),
            remove_volumes: share.remove_volumes.clone(),
        }))
    }

    fn table(&self, node: &Node) -> Table {
        Table {
            revision: node.assigned,
            local: node.record.id.clone(),
            replica_net: self.settings.replica_net,
            service_net: self.settings.service_net,
            nodes: self.published.routes.clone(),
            services: self.published.services.as_ref().clone(),
        }
    }
}

fn with_shares(world: &World, mut picture: Published) -> Published {
    for replica in world.replicas.values() {
        let told = !matches!(replica.record.phase, Phase::Stopping { .. });
        if told && let Some(share) = picture.nodes.get_mut(&replica.record.node) {
            share.replicas.push(replica.record.id.clone());
        }
    }
    for (volume, places) in &world.condemned {
        for place in places {
            if let Some(share) = picture.nodes.get_mut(place) {
                share.remove_volumes.push(volume.clone());
            }
        }
    }
    picture
}

fn routes(world: &World) -> Vec<NodeRoute> {
    let route = |node: &Node| NodeRoute {
        node: node.record.id.clone(),
        name: node.record.name.clone(),
        underlay: node.record.underlay,
        subnet: node.record.subnet,
    };
    world.nodes.values().map(route).collect()
}

fn services(world: &World) -> Vec<Service> {
    let mut endpoints: BTreeMap<(&AppName, &ServiceName), Vec<Endpoint>> = BTreeMap::new();
    for replica in world.replicas.values() {
        if let Some(endpoint) = endpoint(world, replica) {
            let name = &replica.record.name;
            endpoints.entry((&name.app, &name.service)).or_default().push(endpoint);
        }
    }
    let mut services = Vec::new();
    for app in world.apps.values() {
        for (name, spec) in &app.spec.services {
            let endpoints = endpoints.remove(&(&app.spec.name, name)).unwrap_or_default();
            services.extend(service(app, name, spec, endpoints));
        }
    }
    services
}

fn service(app: &AppRecord, name: &ServiceName, spec: &spec::Service, endpoints: Vec<Endpoint>) -> Option<Service> {
    let aliases: BTreeSet<&String> = spec.networks.values().flat_map(|network| &network.aliases).collect();
    // The ports of an app that goes are free for the next one at once.
    let ports = if app.removing.is_some() { Vec::new() } else { ports(spec) };
    Some(Service {
        app: app.spec.name.clone(),
        service: name.clone(),
        address: app.services.get(name)?.address,
        aliases: aliases.into_iter().cloned().collect(),
        ports,
        sticky: false,
        networks: Vec::new(),
        endpoints,
    })
}

pub(super) fn ports(spec: &spec::Service) -> Vec<Port> {
    let port = |p: &spec::PublishedPort| Port { published: p.published, target: p.target, protocol: p.protocol };
    spec.ports.iter().map(port).collect()
}

fn endpoint(world: &World, replica: &Replica) -> Option<Endpoint> {
    if matches!(replica.record.phase, Phase::Stopping { .. }) {
        return None;
    }
    Some(Endpoint {
        replica: replica.record.id.clone(),
        name: replica.record.name.clone(),
        node: replica.record.node.clone(),
        address: replica.status.as_ref()?.address?,
        ready: world.ready(replica),
    })
}
