//! Apps and their services.

use super::{brief, count, one_line, table::table};
use gantry_api::http::{AppSummary, ServiceSummary};
use gantry_api::network::Published;
use gantry_api::spec::Protocol;

/// `gantry apps`.
pub(crate) fn listing(apps: &[AppSummary]) -> String {
    let rows = apps.iter().map(|app| {
        let sum = |number: fn(&ServiceSummary) -> u32| app.services.iter().map(|s| u64::from(number(s))).sum::<u64>();
        [
            app.name.to_string(),
            app.services.len().to_string(),
            format!("{}/{}", sum(|service| service.ready + service.completed), sum(|service| service.wanted)),
            brief(&status(app)),
            ports(app.services.iter().flat_map(|service| &service.ports)),
        ]
    });
    table(["NAME", "SERVICES", "READY", "STATUS", "PORTS"], rows)
}

/// `gantry apps APP`.
pub(crate) fn services(app: &AppSummary) -> String {
    let rows = app.services.iter().map(|service| {
        [
            service.name.to_string(),
            service.image.clone(),
            ready(service),
            format!("{}/{}", service.updated, service.wanted),
            service_status(service),
            service.address.map_or_else(String::new, |address| address.to_string()),
            ports(&service.ports),
        ]
    });
    table(["SERVICE", "IMAGE", "READY", "UPDATED", "STATUS", "ADDRESS", "PORTS"], rows)
}

/// `2/3`: ready, or ended well, of wanted.
pub(crate) fn ready(service: &ServiceSummary) -> String {
    format!("{}/{}", service.ready + service.completed, service.wanted)
}

/// One service in one or a few words, and why where it is not as wanted.
fn service_status(service: &ServiceSummary) -> String {
    let state = match service.settled {
        true if service.wanted > 0 && service.completed == service.wanted => "completed",
        true if service.wanted == 0 => "stopped",
        true => "settled",
        false => "changing",
    };
    match service.message.as_deref().map(one_line) {
        Some(message) if !message.is_empty() => format!("{state}: {message}"),
        _ => state.to_owned(),
    }
}

fn status(app: &AppSummary) -> String {
    let open: Vec<&ServiceSummary> = app.services.iter().filter(|service| !service.settled).collect();
    match open.as_slice() {
        [] => "settled".to_owned(),
        [one] => format!("{}: {}", one.name, service_status(one)),
        more => format!("{} changing", count(more.len() as u64, "service")),
    }
}

fn ports<'a>(ports: impl IntoIterator<Item = &'a Published>) -> String {
    ports.into_iter().map(port).collect::<Vec<_>>().join(", ")
}

/// `8080->80/tcp`.
fn port(port: &Published) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{}->{}/{protocol}", port.published, port.target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::{detail, port, service};

    fn shop() -> AppSummary {
        let mut web = service("web", 2, 2);
        web.ports = vec![port(8080, 80)];
        let mut api = service("api", 3, 1);
        api.message = Some("waits for db to be healthy".to_owned());
        let mut job = service("job", 1, 0);
        (job.completed, job.updated, job.settled) = (1, 1, true);
        detail(vec![api, job, web], Vec::new()).summary
    }

    #[test]
    fn an_app_is_one_line() {
        let mut two = shop();
        two.services[2].settled = false;
        let mut settled = shop();
        settled.services.truncate(0);
        let want = "
NAME   SERVICES   READY   STATUS                                      PORTS
shop   3          4/6     api: changing: waits for db to be healthy   8080->80/tcp
shop   3          4/6     2 services changing                         8080->80/tcp
shop   0          0/0     settled
";
        assert_eq!(listing(&[shop(), two, settled]), want.trim_start());
    }

    #[test]
    fn a_service_is_one_line() {
        let want = "
SERVICE   IMAGE   READY   UPDATED   STATUS                                 ADDRESS      PORTS
api       api:1   1/3     1/3       changing: waits for db to be healthy   10.211.0.7
job       job:1   1/1     1/1       completed                              10.211.0.7
web       web:1   2/2     2/2       settled                                10.211.0.7   8080->80/tcp
";
        assert_eq!(services(&shop()), want.trim_start());
    }
}
