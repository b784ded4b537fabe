//! `gantry up`.

use crate::client::{Client, block_on};
use crate::error::Outcome;
use crate::global::Global;
use crate::project::Project;
use crate::render::style::Style;
use crate::render::{out, plan};
use crate::wait::{self, Limit};
use gantry_api::http::ChangeAction;
use gantry_api::spec::App;

/// Deploy an app from its manifest, or change it to what the manifest says.
///
/// Done when every service is as described: its replicas run, are healthy where they have a check, and are of the
/// present description. With `--detach`, done when the scheduler has recorded it.
///
/// Exit codes: 0 done, 1 refused, 2 wrong usage, 3 not ready in time, 130 interrupted (the deploy goes on).
#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    #[command(flatten)]
    project: Project,
    /// Return when the change is recorded.
    #[arg(short, long, visible_alias = "no-wait")]
    detach: bool,
    /// Wait until all is as described; the default.
    #[arg(long, conflicts_with = "detach")]
    wait: bool,
    #[command(flatten)]
    limit: Limit,
}

/// Does it.
pub(crate) fn run(args: Up, global: &Global) -> Outcome {
    let app = args.project.load()?;
    let client = Client::new(global)?;
    block_on(async {
        let changes = client.put_app(&app, false).await?;
        for change in changes.changes.iter().filter(|change| change.action != ChangeAction::Keep) {
            out::note(plan::headline(change, Style::stderr()));
        }
        if args.detach {
            let what = if plan::is_empty(&changes) { "is as described already" } else { "is recorded" };
            out::note(format_args!("{} {what}", app.name));
            return Ok(0);
        }
        let code = wait::until_settled(&client, &app.name, changes.revision, None, args.limit).await?;
        if code == 0 {
            out::note(format_args!("{} is up{}", app.name, published(&app)));
            let ports = app.services.values().flat_map(|service| &service.ports);
            let ports: Vec<_> = ports.map(|port| (port.published, port.protocol)).collect();
            for problem in crate::lab::port_problems(client.socket(), &ports).await {
                out::note(format_args!("gantry: warning: {problem}; it is opened on 127.0.0.1 as soon as it is free"));
            }
        }
        Ok(code)
    })
}

/// Where the app is reached from outside.
fn published(app: &App) -> String {
    let ports: Vec<String> = app
        .services
        .iter()
        .flat_map(|(name, service)| service.ports.iter().map(move |port| format!("{} for {name}", port.published)))
        .collect();
    match ports.len() {
        0 => String::new(),
        1 => format!("; on every node: port {}", ports.join(", ")),
        _ => format!("; on every node: ports {}", ports.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::spec::{Protocol, PublishedPort, Service, Template};
    use std::collections::BTreeMap;

    #[test]
    fn ports_are_named_with_their_service() {
        let port = |published| PublishedPort { published, target: 80, protocol: Protocol::Tcp };
        let service = |ports| Service {
            template: Template::default(),
            replicas: 1,
            ports,
            depends_on: BTreeMap::new(),
            placement: Default::default(),
            update: Default::default(),
            networks: BTreeMap::new(),
            labels: BTreeMap::new(),
        };
        let mut app = App { name: "shop".parse().unwrap(), services: BTreeMap::new(), volumes: BTreeMap::new() };
        assert_eq!(published(&app), "");
        app.services.insert("web".parse().unwrap(), service(vec![port(8080)]));
        assert_eq!(published(&app), "; on every node: port 8080 for web");
        app.services.insert("api".parse().unwrap(), service(vec![port(81)]));
        assert_eq!(published(&app), "; on every node: ports 81 for api, 8080 for web");
    }
}
