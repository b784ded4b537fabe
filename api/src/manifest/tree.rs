//! YAML text as a tree in which every node knows its place, so that an error can name file, line and column.
//!
//! Aliases are copied in, merge keys (`<<`) applied, duplicate keys refused. The tree is bounded in nodes and depth,
//! so that a few lines of nested aliases cannot eat the memory.

use super::problem::{Place, Problems};
use granit_parser::{Event, Parser, ScalarStyle};
use std::collections::HashMap;

/// Nodes of one file at most, aliases counted as often as they are used.
const NODES_MAX: usize = 200_000;
/// Nesting at most.
const DEPTH_MAX: usize = 64;

/// One value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    /// Text of a scalar, and whether it was written without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Node {
    /// The value of `key` when this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.node),
            _ => None,
        }
    }

    /// Nodes in this tree, itself included.
    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Scalar { .. } => 0,
            Value::List(items) => items.iter().map(Node::size).sum(),
            Value::Map(entries) => entries.iter().map(|e| e.node.size()).sum(),
        }
    }
}

/// The tree of the first document of `text`; `None`, with a problem recorded, when there is none.
pub(super) fn parse(file: usize, text: &str, problems: &mut Problems) -> Option<Node> {
    let options = granit_parser::options! { emit_comments: false };
    let builder = Builder {
        file,
        events: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        nodes: 0,
        problems,
    };
    builder.document()
}

struct Builder<'t, 'p> {
    file: usize,
    events: Parser<'t, granit_parser::StrInput<'t>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    problems: &'p mut Problems,
}

/// Reading stopped; the problem is recorded.
struct Stop;

impl<'t> Builder<'t, '_> {
    fn document(mut self) -> Option<Node> {
        loop {
            match self.next() {
                Ok((Event::StreamStart | Event::DocumentStart(..), _)) => {}
                Ok((Event::StreamEnd | Event::DocumentEnd, place)) => {
                    self.problems.add(place, "", "the file is empty", Some("begin with `services:`"));
                    return None;
                }
                Ok((event, place)) => {
                    let node = self.node(event, place, 0).ok()?;
                    return self.end().ok().map(|()| node);
                }
                Err(Stop) => return None,
            }
        }
    }

    /// Nothing but the end may follow: a second document would be ignored silently.
    fn end(&mut self) -> Result<(), Stop> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentStart(..), place) => {
                    self.problems.add(place, "", "a second YAML document", Some("keep one document per file"));
                    return Err(Stop);
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Place), Stop> {
        match self.events.next() {
            Some(Ok((event, span))) => {
                let place = Place { file: self.file, line: span.start.line(), column: span.start.col() + 1 };
                Ok((event, place))
            }
            Some(Err(error)) => {
                let mark = error.marker();
                let place = Place { file: self.file, line: mark.line(), column: mark.col() + 1 };
                self.problems.add(place, "", &format!("this is not valid YAML: {}", error.info()), None);
                Err(Stop)
            }
            None => Err(Stop),
        }
    }

    fn node(&mut self, event: Event<'t>, place: Place, depth: usize) -> Result<Node, Stop> {
        self.count(1, place)?;
        if depth > DEPTH_MAX {
            self.problems.add(place, "", &format!("nested deeper than {DEPTH_MAX} levels"), None);
            return Err(Stop);
        }
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.tag(tag.is_some_and(|tag| !tag.is_yaml_core_schema()), place)?;
                (anchor, scalar(text.into_owned(), style))
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tag(tag.is_some_and(|tag| !tag.is_yaml_core_schema()), place)?;
                (anchor, self.list(depth)?)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tag(tag.is_some_and(|tag| !tag.is_yaml_core_schema()), place)?;
                (anchor, self.map(depth)?)
            }
            Event::Alias(id) => {
                let Some(target) = self.anchors.get(&id).cloned() else {
                    self.problems.add(place, "", "an alias inside the value it names", None);
                    return Err(Stop);
                };
                self.count(target.size(), place)?;
                return Ok(Node { place, value: target.value });
            }
            other => {
                self.problems.add(place, "", &format!("unexpected {other:?}"), None);
                return Err(Stop);
            }
        };
        let node = Node { place, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn tag(&mut self, foreign: bool, place: Place) -> Result<(), Stop> {
        if foreign {
            self.problems.add(place, "", "YAML tags such as `!reset` are not supported", Some("remove the tag"));
            return Err(Stop);
        }
        Ok(())
    }

    fn count(&mut self, more: usize, place: Place) -> Result<(), Stop> {
        self.nodes += more;
        if self.nodes > NODES_MAX {
            let what = format!("more than {NODES_MAX} values once aliases are expanded");
            self.problems.add(place, "", &what, None);
            return Err(Stop);
        }
        Ok(())
    }

    fn list(&mut self, depth: usize) -> Result<Value, Stop> {
        let mut items = Vec::new();
        loop {
            let (event, place) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(Value::List(items));
            }
            items.push(self.node(event, place, depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, Stop> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged: Vec<Entry> = Vec::new();
        loop {
            let (event, place) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let key = match self.node(event, place, depth + 1)?.value {
                Value::Scalar { text, .. } => text,
                _ => {
                    self.problems.add(place, "", "a key must be a plain word", None);
                    return Err(Stop);
                }
            };
            let (event, at) = self.next()?;
            let node = self.node(event, at, depth + 1)?;
            if key == "<<" {
                self.merge(node, &mut merged)?;
            } else if let Some(first) = entries.iter().find(|e| e.key == key) {
                let what = format!("`{key}` stands here a second time (first on line {})", first.place.line);
                self.problems.add(place, &key, &what, Some("keep one of the two"));
            } else {
                entries.push(Entry { key, place, node });
            }
        }
        for entry in merged {
            if !entries.iter().any(|e| e.key == entry.key) {
                entries.push(entry);
            }
        }
        Ok(Value::Map(entries))
    }

    /// `<<: *map` or `<<: [*a, *b]`; of equal keys the first counts (YAML 1.1 merge key).
    fn merge(&mut self, node: Node, into: &mut Vec<Entry>) -> Result<(), Stop> {
        let maps = match node.value {
            Value::Map(entries) => vec![entries],
            Value::List(items) => {
                let each = items.into_iter().map(|item| match item.value {
                    Value::Map(entries) => Some(entries),
                    _ => None,
                });
                each.collect::<Option<Vec<_>>>().unwrap_or_default()
            }
            _ => Vec::new(),
        };
        if maps.is_empty() {
            self.problems.add(node.place, "<<", "the merge key takes a map or a list of maps", None);
            return Err(Stop);
        }
        for entry in maps.into_iter().flatten() {
            if !into.iter().any(|e| e.key == entry.key) {
                into.push(entry);
            }
        }
        Ok(())
    }
}

fn scalar(text: String, style: ScalarStyle) -> Value {
    let plain = style == ScalarStyle::Plain;
    if plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    Value::Scalar { text, plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// JSON-like text of a tree, to compare with.
    fn show(node: &Node) -> String {
        match &node.value {
            Value::Null => "null".to_owned(),
            Value::Scalar { text, .. } => text.clone(),
            Value::List(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
            Value::Map(entries) => {
                let each: Vec<String> = entries.iter().map(|e| format!("{}:{}", e.key, show(&e.node))).collect();
                format!("{{{}}}", each.join(" "))
            }
        }
    }

    fn read(text: &str) -> Result<String, String> {
        let mut problems = Problems::new(vec!["f.yaml".into()]);
        let node = parse(0, text, &mut problems);
        if problems.is_empty() { Ok(show(&node.unwrap())) } else { Err(problems.to_string()) }
    }

    #[test]
    fn merge_keys_and_aliases_are_expanded() {
        for (text, want) in [
            ("a: 1\nb: [x, ~]", "{a:1 b:[x null]}"),
            ("d: &d {x: 1, y: 2}\ne: {<<: *d, y: 3}", "{d:{x:1 y:2} e:{y:3 x:1}}"),
            ("a: &a {x: 1}\nb: &b {x: 2, z: 3}\nc: {<<: [*a, *b]}", "{a:{x:1} b:{x:2 z:3} c:{x:1 z:3}}"),
            ("a: \"null\"", "{a:null}"),
        ] {
            assert_eq!(read(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn what_is_no_manifest_says_where() {
        for (text, want) in [
            ("", "f.yaml:1:1: the file is empty"),
            ("a: 1\na: 2", "f.yaml:2:1: a: `a` stands here a second time (first on line 1)"),
            ("a: [1", "f.yaml:"),
            ("a: !reset x", "f.yaml:1:"),
            ("a: 1\n---\nb: 2", "f.yaml:2:1: a second YAML document"),
            ("a: &a [*a]", "f.yaml:1:"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(want), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..12 {
            let before = i - 1;
            let many = vec![format!("*a{before}"); 9].join(",");
            text += &format!("a{i}: &a{i} [{many}]\n");
        }
        assert!(read(&text).unwrap_err().contains("more than 200000 values"));
        let deep = "[".repeat(100) + &"]".repeat(100);
        assert!(read(&deep).is_err());
    }
}
