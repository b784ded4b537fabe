//! Events: one line each, oldest first.

use super::{one_line, time};
use gantry_api::http::Event;

/// `TIME KIND SUBJECT: MESSAGE`.
pub(crate) fn line(event: &Event) -> String {
    let head = format!("{}  {:<18}  {}", time::stamp(event.at_ms), one_line(&event.kind), one_line(&event.subject));
    match one_line(&event.message) {
        message if message.is_empty() => head,
        message => format!("{head}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::ids::Revision;

    #[test]
    fn an_event_is_one_line() {
        let mut event = Event {
            sequence: 1,
            at_ms: 1500,
            revision: Revision(3),
            kind: "replica.exited".to_owned(),
            subject: "shop-api-1".to_owned(),
            message: "exit code 1\nafter 3s".to_owned(),
        };
        assert_eq!(line(&event), "1970-01-01T00:00:01.500Z  replica.exited      shop-api-1: exit code 1 after 3s");
        event.message.clear();
        assert_eq!(line(&event), "1970-01-01T00:00:01.500Z  replica.exited      shop-api-1");
    }
}
