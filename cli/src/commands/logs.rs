//! `gantry logs`.

use crate::client::{Client, LogsQuery, block_on, nowhere};
use crate::error::{CliError, Outcome};
use crate::global::Global;
use crate::local;
use crate::render::logs::{Prefix, Prefixer};
use crate::render::style::Style;
use crate::render::{out, time};
use crate::target;
use gantry_api::http::{LogLine, Replica};
use gantry_api::ids::{AppName, ReplicaName, ServiceName};

/// Show what replicas wrote to their standard output and error.
///
/// Lines of an app or of services begin with `SERVICE-NUMBER |`; those of one replica are as it wrote them.
///
/// Exit codes: 0 done, 1 refused, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// App and some of its services, `APP/SERVICE`, or a replica; with `-p APP`, services only.
    #[arg(required_unless_present = "project_name", value_name = "APP [SERVICE]... | REPLICA")]
    names: Vec<String>,
    /// App that the names are services of.
    #[arg(short, long, value_name = "APP")]
    project_name: Option<AppName>,
    /// Go on as lines come.
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines of each replica, or `all`.
    #[arg(short = 'n', long, value_name = "N", default_value = "all", value_parser = tail)]
    tail: Tail,
    /// Only lines since a time: `10m` back, or `2026-11-24T08:00:00Z`.
    #[arg(long, value_name = "TIME", value_parser = |text: &str| time::moment(text, time::now_ms()))]
    since: Option<u64>,
    /// Show when each line was written.
    #[arg(short, long)]
    timestamps: bool,
    /// No `SERVICE-NUMBER |` before lines.
    #[arg(long)]
    no_log_prefix: bool,
    /// No colours.
    #[arg(long)]
    no_color: bool,
}

/// How many of the last lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    All,
    Last(u64),
}

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail::All),
        _ => text.parse().map(Tail::Last).map_err(|_| "write a number of lines or `all`".to_owned()),
    }
}

/// Whose lines are wanted.
#[derive(Debug, PartialEq)]
enum Scope {
    /// Those of an app; of some services when there are any.
    App(AppName, Vec<ServiceName>),
    /// Those of one replica.
    Replica(Box<Replica>),
}

/// Does it.
pub(crate) fn run(args: Logs, global: &Global) -> Outcome {
    // A container of this host, made by `gantry run`; replicas of a cluster are asked for by the rest.
    if let ([name], None) = (args.names.as_slice(), &args.project_name)
        && local::knows(global, name)
    {
        let tail = match args.tail {
            Tail::All => None,
            Tail::Last(count) => Some(count as usize),
        };
        let options = local::LogOptions { follow: args.follow, tail, timestamps: args.timestamps };
        return local::logs(global, name, &options);
    }
    let client = Client::new(global)?;
    block_on(async {
        let (scope, known) = resolve(&client, &args).await.map_err(|error| match args.names.as_slice() {
            [name] if args.project_name.is_none() => nowhere(error, name),
            _ => error,
        })?;
        show(&client, &args, &scope, &known).await
    })
}

/// Finds out what the names mean, and which replicas there are at first.
async fn resolve(client: &Client, args: &Logs) -> Result<(Scope, Vec<ReplicaName>), CliError> {
    let replicas = client.replicas(None).await?;
    let apps: Vec<AppName> = client.apps().await?.into_iter().map(|app| app.name).collect();
    let scope = scope(&apps, &replicas, args.project_name.as_ref(), &args.names)?;
    let known = match &scope {
        Scope::Replica(replica) => vec![replica.name.clone()],
        Scope::App(app, services) => {
            let wanted =
                |name: &&ReplicaName| name.app == *app && (services.is_empty() || services.contains(&name.service));
            replicas.iter().map(|replica| &replica.name).filter(wanted).cloned().collect()
        }
    };
    Ok((scope, known))
}

fn scope(apps: &[AppName], replicas: &[Replica], app: Option<&AppName>, names: &[String]) -> Result<Scope, CliError> {
    let services = |names: &[String]| -> Result<Vec<ServiceName>, CliError> {
        names.iter().map(|name| name.parse().map_err(|error| CliError::chain(&error))).collect()
    };
    if let Some(app) = app {
        return Ok(Scope::App(app.clone(), services(names)?));
    }
    let [first, rest @ ..] = names else {
        return Err(CliError::new("no app is named").code(crate::error::USAGE));
    };
    if let Some(app) = apps.iter().find(|app| app.as_str() == first) {
        return Ok(Scope::App(app.clone(), services(rest)?));
    }
    if !rest.is_empty() {
        return Err(CliError::new(format!("there is no app `{first}`")).hint("`gantry apps` lists what there is"));
    }
    let found = target::candidates(replicas, first, None)?;
    let best = target::best(&found);
    let one = best.id.as_str() == first || best.name.to_string() == *first || first.split('/').count() == 3;
    match one {
        true => Ok(Scope::Replica(Box::new(best.clone()))),
        false => Ok(Scope::App(best.name.app.clone(), vec![best.name.service.clone()])),
    }
}

async fn show(client: &Client, args: &Logs, scope: &Scope, known: &[ReplicaName]) -> Outcome {
    let tail = match args.tail {
        Tail::All => None,
        Tail::Last(lines) => Some(lines),
    };
    let mut query = LogsQuery { follow: args.follow, tail, since_ms: args.since, ..LogsQuery::default() };
    let mut prefix = Prefix::Name;
    // The API takes one service: of several, the app's lines are asked for and the others' are passed over.
    let mut several: &[ServiceName] = &[];
    match scope {
        Scope::App(app, services) => {
            query.app = Some(app.clone());
            match services.as_slice() {
                [one] => query.service = Some(one.clone()),
                more => several = more,
            }
        }
        Scope::Replica(replica) => {
            (query.app, query.replica) = (Some(replica.name.app.clone()), Some(replica.id.clone()));
            prefix = Prefix::None;
        }
    }
    if args.no_log_prefix {
        prefix = Prefix::None;
    }
    let style = if args.no_color { Style::Plain } else { Style::stdout() };
    let mut prefixer = Prefixer::new(prefix, args.timestamps, style, known);
    let mut lines = client.logs(&query).await?;
    while let Some(log) = lines.next_json::<LogLine>().await? {
        if several.is_empty() || several.contains(&log.name.service) {
            out::write(&prefixer.line(&log))?;
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::replica;
    use gantry_api::wire::ReplicaState;

    #[test]
    fn names_are_an_app_its_services_or_a_replica() {
        let replicas = [replica("api", 1, ReplicaState::Running), replica("api", 2, ReplicaState::Failed)];
        let apps: Vec<AppName> = vec!["shop".parse().unwrap()];
        let app = |services: &[&str]| {
            let services = services.iter().map(|service| service.parse().unwrap()).collect();
            Ok(Scope::App(apps[0].clone(), services))
        };
        let one = |index: usize| Ok(Scope::Replica(Box::new(replicas[index].clone())));
        for (given, names, want) in [
            (None, vec!["shop"], app(&[])),
            (None, vec!["shop", "api", "db"], app(&["api", "db"])),
            (Some(&apps[0]), vec!["api"], app(&["api"])),
            (Some(&apps[0]), vec![], app(&[])),
            (None, vec!["shop/api"], app(&["api"])),
            (None, vec!["api"], app(&["api"])),
            (None, vec!["shop/api/2"], one(1)),
            (None, vec!["shop-api-2"], one(1)),
            (None, vec!["shop-api-1-ab0001"], one(0)),
            (None, vec!["blog"], Err("there is no replica or service `blog`")),
            (None, vec!["blog", "api"], Err("there is no app `blog`")),
            (None, vec!["shop", "A"], Err("`A` is not a valid service name")),
        ] {
            let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
            match (scope(&apps, &replicas, given, &names), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{names:?}"),
                (Err(got), Err(want)) => assert!(got.message.starts_with(want), "{}", got.message),
                (got, want) => panic!("{names:?}: {got:?}, wanted {want:?}"),
            }
        }
    }

    #[test]
    fn tail_is_a_number_or_all() {
        assert_eq!(tail("all"), Ok(Tail::All));
        assert_eq!(tail("0"), Ok(Tail::Last(0)));
        assert!(tail("-1").is_err() && tail("some").is_err());
    }
}
