//! The world as people are shown it.

use super::network;
use super::world::{AppRecord, Node, Phase, Replica, Rollout, World};
use gantry_api::http::{self, AppDetail, AppSummary, NodeState, ServiceSummary};
use gantry_api::ids::{AppName, ServiceName};
use gantry_api::wire::{Capacity, Exit, ReplicaState};

impl World {
    /// Every node. `wall_ms` is the wall clock at `now`.
    pub fn show_nodes(&self, now: super::Now, wall_ms: u64) -> Vec<http::Node> {
        let reserved = self.reserved();
        let mut nodes: Vec<http::Node> = self
            .nodes
            .values()
            .map(|node| {
                let (reserved, _) = reserved.get(&node.record.id).copied().unwrap_or_default();
                let seen_ms = node.seen.map_or(0, |seen| wall_ms.saturating_sub(now.since(seen)));
                self.show_node(node, reserved, seen_ms)
            })
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    fn show_node(&self, node: &Node, reserved: Capacity, seen_ms: u64) -> http::Node {
        let hello = node.record.hello.as_ref();
        let report = node.report.as_ref();
        let running = report.map_or(0, |r| r.replicas.iter().filter(|s| s.state == ReplicaState::Running).count());
        let mut problems = report.map(|r| r.problems.clone()).unwrap_or_default();
        if hello.is_none() {
            problems.push("it joined but its agent has never called".to_owned());
        }
        http::Node {
            id: node.record.id.clone(),
            name: node.record.name.clone(),
            state: node.state,
            underlay: node.record.underlay,
            capacity: node.capacity(),
            reserved,
            used: report.map_or_else(Capacity::default, |r| Capacity { cpu: r.cpu_used, memory: r.memory_used }),
            replicas: running as u32,
            labels: hello.map(|h| h.labels.clone()).unwrap_or_default(),
            version: hello.map(|h| h.version.clone()).unwrap_or_default(),
            arch: hello.map(|h| h.arch.clone()).unwrap_or_default(),
            kernel: hello.map(|h| h.kernel.clone()).unwrap_or_default(),
            problems,
            seen_ms,
        }
    }

    /// Every app.
    pub fn show_apps(&self) -> Vec<AppSummary> {
        self.apps.values().map(|app| self.summary(app)).collect()
    }

    /// One app in full; contents of secret files are left out.
    pub fn show_app(&self, name: &AppName) -> Option<AppDetail> {
        let app = self.apps.get(name)?;
        let mut spec = app.spec.clone();
        for service in spec.services.values_mut() {
            for file in service.template.files.iter_mut().filter(|file| file.secret) {
                file.content.clear();
            }
        }
        Some(AppDetail { summary: self.summary(app), spec, replicas: self.show_replicas(Some(name)) })
    }

    /// Every replica, of one app or of all, by app, service and number.
    pub fn show_replicas(&self, app: Option<&AppName>) -> Vec<http::Replica> {
        let of_app = self.replicas.values().filter(|r| app.is_none_or(|app| r.record.name.app == *app));
        let mut replicas: Vec<&Replica> = of_app.collect();
        replicas.sort_by(|a, b| (&a.record.name, a.record.order).cmp(&(&b.record.name, b.record.order)));
        replicas.into_iter().map(|replica| self.show_replica(replica)).collect()
    }

    fn show_replica(&self, replica: &Replica) -> http::Replica {
        let record = &replica.record;
        let status = replica.status.as_ref();
        let node = self.nodes.get(&record.node);
        let unheard = if replica.wanted() { ReplicaState::Preparing } else { ReplicaState::Stopping };
        let state = match (record.phase, record.completed) {
            (Phase::Stopping { .. }, _) => ReplicaState::Stopping,
            (_, true) => ReplicaState::Completed,
            _ => status.map_or(unheard, |s| s.state),
        };
        let present = self.apps.get(&record.name.app).and_then(|app| app.services.get(&record.name.service));
        let away = node
            .filter(|n| n.state != NodeState::Ready)
            .map(|n| format!("node {} is {}", n.record.name, super::nodes::state_text(n.state)));
        http::Replica {
            id: record.id.clone(),
            name: record.name.clone(),
            node: node.map(|n| n.record.name.clone()),
            state,
            ready: self.ready(replica),
            healthy: status.and_then(|s| s.healthy),
            current: present.is_some_and(|p| p.generation == record.generation),
            image: self.template(&record.name, record.generation).map(|t| t.image.clone()).unwrap_or_default(),
            address: status.and_then(|s| s.address),
            message: away.or_else(|| status.and_then(|s| s.message.clone())),
            restarts: status.map_or(0, |s| s.restarts),
            started_at_ms: status.and_then(|s| s.started_at_ms),
            last_exit: status.and_then(|s| s.last_exit.clone()),
            used: status.map_or_else(Capacity::default, |s| Capacity { cpu: s.cpu_used, memory: s.memory_used }),
        }
    }

    fn summary(&self, app: &AppRecord) -> AppSummary {
        let services = app.spec.services.keys().filter_map(|name| self.service_summary(app, name)).collect();
        AppSummary { name: app.spec.name.clone(), services, revision: app.revision }
    }

    fn service_summary(&self, app: &AppRecord, name: &ServiceName) -> Option<ServiceSummary> {
        let (spec, record) = (app.spec.services.get(name)?, app.services.get(name)?);
        let all =
            self.replicas.values().filter(|r| r.record.name.app == app.spec.name && r.record.name.service == *name);
        let (mut running, mut ready, mut updated, mut completed, mut good, mut others) = (0, 0, 0, 0, 0, 0);
        for replica in all {
            let current = replica.record.generation == record.generation && replica.wanted();
            let is_ready = self.ready(replica);
            running += u32::from(replica.state() == Some(ReplicaState::Running));
            ready += u32::from(is_ready);
            updated += u32::from(is_ready && current);
            completed += u32::from(replica.record.completed && replica.wanted());
            let fine = current && (is_ready || replica.record.completed);
            good += u32::from(fine);
            others += u32::from(!fine);
        }
        let wanted = if app.removing.is_some() { 0 } else { spec.replicas };
        Some(ServiceSummary {
            name: name.clone(),
            image: spec.template.image.clone(),
            wanted,
            running,
            ready,
            updated,
            completed,
            address: Some(record.address),
            ports: network::ports(spec),
            settled: good == wanted && others == 0 && record.rollout == Rollout::Done && app.removing.is_none(),
            message: self.messages.get(&(app.spec.name.clone(), name.clone())).cloned(),
        })
    }
}

/// `exit code 1`, `killed by signal 9, out of memory`.
pub(super) fn exit_text(exit: &Exit) -> String {
    let mut text = match (exit.code, exit.signal) {
        (_, Some(signal)) => format!("killed by signal {signal}"),
        (Some(code), None) => format!("exit code {code}"),
        (None, None) => "ended".to_owned(),
    };
    if exit.oom_killed {
        text.push_str(", over its memory limit");
    }
    if let Some(cause) = &exit.cause {
        text.push_str(": ");
        text.push_str(cause);
    }
    text
}
