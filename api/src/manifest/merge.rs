//! Several Compose files as one: later files win (Compose Specification, "Merge").

use super::tree::{Entry, Node, Value};

/// `over` laid on `base`: maps merge key by key, lists grow, except those that are one value written as a list.
pub(super) fn merge(base: Node, over: Node) -> Node {
    merge_at("", base, over)
}

/// Lists that are one value: the later file's replaces the earlier one's.
fn replaces(key: &str) -> bool {
    matches!(key, "command" | "entrypoint" | "test" | "args")
}

fn merge_at(key: &str, base: Node, over: Node) -> Node {
    let place = over.place;
    let value = match (base.value, over.value) {
        (Value::Map(low), Value::Map(high)) => Value::Map(merge_maps(low, high)),
        (Value::List(low), Value::List(high)) if !replaces(key) => Value::List(low.into_iter().chain(high).collect()),
        // `K=V` lists and maps mean the same: bring the list to a map
        (Value::List(low), Value::Map(high)) if pairs(&low) => Value::Map(merge_maps(entries(low), high)),
        (Value::Map(low), Value::List(high)) if pairs(&high) => Value::Map(merge_maps(low, entries(high))),
        (low, Value::Null) => low,
        (_, high) => high,
    };
    Node { place, value }
}

fn merge_maps(mut low: Vec<Entry>, high: Vec<Entry>) -> Vec<Entry> {
    for entry in high {
        match low.iter().position(|e| e.key == entry.key) {
            Some(at) => {
                let old = low[at].node.clone();
                let node = merge_at(&entry.key, old, entry.node);
                low[at] = Entry { key: entry.key, place: entry.place, node };
            }
            None => low.push(entry),
        }
    }
    low
}

fn pairs(items: &[Node]) -> bool {
    items.iter().all(|item| matches!(item.value, Value::Scalar { .. }))
}

fn entries(items: Vec<Node>) -> Vec<Entry> {
    let entry = |item: Node| {
        let Value::Scalar { text, .. } = item.value else { return None };
        let place = item.place;
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key.to_owned(), Value::Scalar { text: value.to_owned(), plain: false }),
            None => (text, Value::Null),
        };
        Some(Entry { key, place, node: Node { place, value } })
    };
    items.into_iter().filter_map(entry).collect()
}
