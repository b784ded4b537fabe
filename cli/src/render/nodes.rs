//! Nodes.

use super::{one_line, table::table, time};
use gantry_api::http::{Node, NodeState};

/// `gantry node ls`.
pub(crate) fn listing(nodes: &[Node], now_ms: u64) -> String {
    let rows = nodes.iter().map(|node| {
        [
            node.name.to_string(),
            state(node.state).to_owned(),
            node.replicas.to_string(),
            format!("{} / {}", node.used.cpu, node.capacity.cpu),
            format!("{} / {}", node.used.memory, node.capacity.memory),
            node.underlay.to_string(),
            node.version.clone(),
            time::ago(now_ms, node.seen_ms),
        ]
    });
    table(["NAME", "STATUS", "REPLICAS", "CPU", "MEMORY", "ADDRESS", "VERSION", "LAST SEEN"], rows)
}

/// What is wrong on nodes, one line each; empty when all is well.
pub(crate) fn problems(nodes: &[Node]) -> String {
    let lines = nodes
        .iter()
        .flat_map(|node| node.problems.iter().map(move |problem| format!("{}: {}\n", node.name, one_line(problem))));
    lines.collect()
}

const fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Ready => "ready",
        NodeState::Suspect => "suspect",
        NodeState::Lost => "lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::{NOW_MS, node};

    #[test]
    fn nodes_are_one_line_each_and_their_problems_apart() {
        let mut lost = node("worker-1", NodeState::Lost);
        lost.seen_ms = NOW_MS - 61_000;
        lost.problems = vec!["disk\nfull".to_owned(), "no nftables".to_owned()];
        let nodes = [node("n1", NodeState::Ready), lost];
        let want = "
NAME       STATUS   REPLICAS   CPU        MEMORY        ADDRESS        VERSION   LAST SEEN
n1         ready    3          0.25 / 4   1GiB / 8GiB   192.168.1.10   0.1.0     less than a second ago
worker-1   lost     3          0.25 / 4   1GiB / 8GiB   192.168.1.10   0.1.0     1 minute ago
";
        assert_eq!(listing(&nodes, NOW_MS), want.trim_start());
        assert_eq!(problems(&nodes), "worker-1: disk full\nworker-1: no nftables\n");
    }
}
