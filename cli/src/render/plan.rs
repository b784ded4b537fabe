//! What a deploy changes: `+` new, `~` changed, `-` removed.

use super::style::{Colour, Style};
use super::{count, one_line};
use gantry_api::http::{Change, ChangeAction, Plan};

/// `gantry plan`: a line per changed service, its fields below it, and the sum.
pub(crate) fn text(plan: &Plan, style: Style) -> String {
    let mut text = String::new();
    for change in plan.changes.iter().filter(|change| change.action != ChangeAction::Keep) {
        text.push_str(&headline(change, style));
        text.push('\n');
        for detail in &change.details {
            text.push_str(&format!("    {}\n", one_line(detail)));
        }
    }
    text.push_str(&sum(plan));
    text.push('\n');
    text
}

/// `~ api (replaces its replicas)`.
pub(crate) fn headline(change: &Change, style: Style) -> String {
    let (mark, colour, note) = match change.action {
        ChangeAction::Create => ("+", Colour::Green, ""),
        ChangeAction::Replace => ("~", Colour::Yellow, " (replaces its replicas)"),
        ChangeAction::Update => ("~", Colour::Yellow, " (keeps its replicas)"),
        ChangeAction::Remove => ("-", Colour::Red, ""),
        ChangeAction::Keep => return format!("  {}", change.service),
    };
    style.paint(colour, &format!("{mark} {}{note}", change.service))
}

/// Whether a plan changes anything.
pub(crate) fn is_empty(plan: &Plan) -> bool {
    plan.changes.iter().all(|change| change.action == ChangeAction::Keep)
}

/// `1 to create, 2 to replace, 3 unchanged`.
fn sum(plan: &Plan) -> String {
    let number = |action| plan.changes.iter().filter(|change| change.action == action).count();
    let parts: Vec<String> = [
        (ChangeAction::Create, "to create"),
        (ChangeAction::Replace, "to replace"),
        (ChangeAction::Update, "to update"),
        (ChangeAction::Remove, "to remove"),
        (ChangeAction::Keep, "unchanged"),
    ]
    .into_iter()
    .filter(|(action, _)| number(*action) > 0)
    .map(|(action, words)| format!("{} {words}", number(action)))
    .collect();
    match parts.is_empty() || is_empty(plan) {
        true => format!("nothing to change ({} as described)", count(plan.changes.len() as u64, "service")),
        false => parts.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::ids::Revision;

    fn change(service: &str, action: ChangeAction, details: &[&str]) -> Change {
        let details = details.iter().map(|detail| (*detail).to_owned()).collect();
        Change { service: service.parse().unwrap(), action, details }
    }

    #[test]
    fn each_kind_of_change_has_its_mark() {
        let plan = Plan {
            changes: vec![
                change("api", ChangeAction::Replace, &["image: api:1 → api:2", "command: \n a → b"]),
                change("cache", ChangeAction::Keep, &[]),
                change("db", ChangeAction::Create, &["image: postgres:16"]),
                change("old", ChangeAction::Remove, &[]),
                change("web", ChangeAction::Update, &["replicas: 2 → 3"]),
            ],
            revision: Revision(0),
        };
        let want = "
~ api (replaces its replicas)
    image: api:1 → api:2
    command: a → b
+ db
    image: postgres:16
- old
~ web (keeps its replicas)
    replicas: 2 → 3
1 to create, 1 to replace, 1 to update, 1 to remove, 1 unchanged
";
        assert_eq!(text(&plan, Style::Plain), want.trim_start());
        assert!(text(&plan, Style::Colour).contains("\x1b[31m- old\x1b[0m\n"));
    }

    #[test]
    fn no_change_says_so() {
        let plan = Plan { changes: vec![change("api", ChangeAction::Keep, &[])], revision: Revision(0) };
        assert_eq!(text(&plan, Style::Plain), "nothing to change (1 service as described)\n");
        assert_eq!(text(&Plan::default(), Style::Plain), "nothing to change (0 services as described)\n");
    }
}
