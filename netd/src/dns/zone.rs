//! Which names there are, made from a table; and who may use which short ones, made from the attachments.

use crate::plan::Isolation;
use gantry_api::ids::AppName;
use gantry_api::network::{Ipv4Net, Table};
use std::collections::HashMap;
use std::net::Ipv4Addr;

/// The zone that is ours alone.
pub(crate) const ZONE: &str = "gantry";

/// A container that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) app: Option<AppName>,
    pub(crate) hostname: String,
}

/// Containers of this node by address.
pub(crate) type Clients = HashMap<Ipv4Addr, Client>;

/// Names of one app and their addresses. A name without addresses exists all the same.
type Names = HashMap<String, Vec<Ipv4Addr>>;

/// All names.
#[derive(Debug, Default)]
pub(crate) struct Zone {
    apps: HashMap<String, Names>,
    reverse: HashMap<Ipv4Addr, String>,
    nets: Vec<Ipv4Net>,
    isolation: Isolation,
}

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// These addresses; none when no replica is ready.
    Addresses(&'a [Ipv4Addr]),
    /// A name of ours that nothing has.
    Nothing,
    /// Not ours to say.
    Elsewhere,
}

impl Zone {
    /// The names of a table.
    ///
    /// In an app: a service, its aliases, `tasks.SERVICE` (its ready replicas), and each replica as `shop-api-2` and
    /// `api-2`. Where two have the same name a service wins over an alias, and an alias over a replica.
    pub(crate) fn new(table: &Table, isolation: &Isolation) -> Self {
        let nets = vec![table.replica_net, table.service_net];
        let mut zone = Self { nets, isolation: isolation.clone(), ..Self::default() };
        for service in &table.services {
            let app = zone.apps.entry(service.app.to_string()).or_default();
            app.insert(service.service.to_string(), vec![service.address]);
            zone.reverse.insert(service.address, format!("{}.{}", service.service, service.app));
        }
        for service in &table.services {
            let app = zone.apps.entry(service.app.to_string()).or_default();
            for alias in &service.aliases {
                app.entry(alias.to_ascii_lowercase()).or_insert_with(|| vec![service.address]);
            }
            let mut ready: Vec<_> = service.endpoints.iter().filter(|e| e.ready).map(|e| e.address).collect();
            ready.sort_unstable();
            app.entry(format!("tasks.{}", service.service)).or_insert(ready);
            for endpoint in &service.endpoints {
                let names = [endpoint.name.to_string(), format!("{}-{}", endpoint.name.service, endpoint.name.number)];
                for name in &names {
                    // Of a replica and its replacement, which share a name, the ready one.
                    let addresses = app.entry(name.clone()).or_default();
                    if addresses.is_empty() || (endpoint.ready && !ready_is(service, addresses)) {
                        *addresses = vec![endpoint.address];
                    }
                }
                zone.reverse.insert(endpoint.address, format!("{}.{}", names[0], service.app));
            }
        }
        zone
    }

    /// Look up a lower-case name without its last dot, as asked by a container of `app` at `source`. What shares no
    /// network with that one has no name for it.
    pub(crate) fn find(&self, name: &str, app: Option<&AppName>, source: Ipv4Addr) -> Found<'_> {
        match self.anybody(name, app) {
            Found::Addresses([first, ..]) if !self.isolation.allows(source, *first) => Found::Nothing,
            found => found,
        }
    }

    fn anybody(&self, name: &str, app: Option<&AppName>) -> Found<'_> {
        if name == ZONE {
            return Found::Addresses(&[]);
        }
        if let Some(inner) = name.strip_suffix(ZONE).and_then(|rest| rest.strip_suffix('.')) {
            return match inner.rsplit_once('.') {
                Some((name, app)) => self.in_app(app, name).map_or(Found::Nothing, Found::Addresses),
                None if self.apps.contains_key(inner) => Found::Addresses(&[]),
                None => Found::Nothing,
            };
        }
        let short = app.and_then(|app| self.in_app(app.as_str(), name));
        let long = || name.rsplit_once('.').and_then(|(name, app)| self.in_app(app, name));
        short.or_else(long).map_or(Found::Elsewhere, Found::Addresses)
    }

    fn in_app(&self, app: &str, name: &str) -> Option<&[Ipv4Addr]> {
        self.apps.get(app)?.get(name).map(Vec::as_slice)
    }

    /// The full name of an address, without its last dot; `None` when it is not ours to say, `Some(None)` when ours and
    /// nobody's.
    pub(crate) fn name_of(&self, address: Ipv4Addr, clients: &Clients) -> Option<Option<String>> {
        if let Some(name) = self.reverse.get(&address) {
            return Some(Some(format!("{name}.{ZONE}")));
        }
        if let Some(client) = clients.get(&address) {
            return Some(Some(format!("{}.{ZONE}", client.hostname.to_ascii_lowercase())));
        }
        self.nets.iter().any(|net| net.contains(address)).then_some(None)
    }
}

fn ready_is(service: &gantry_api::network::Service, addresses: &[Ipv4Addr]) -> bool {
    service.endpoints.iter().any(|endpoint| endpoint.ready && addresses.contains(&endpoint.address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::table;

    #[test]
    fn who_sees_which_name() {
        let mut table = table(1, &[("api", &[(0, true), (1, false), (2, true)]), ("db", &[(3, false)])]);
        let other = gantry_api::network::Service {
            app: "blog".parse().unwrap(),
            address: Ipv4Addr::new(10, 211, 0, 9),
            aliases: vec![],
            endpoints: vec![],
            ..table.services[0].clone()
        };
        table.services.push(other);
        let zone = Zone::new(&table, &Isolation::default());
        let shop = "shop".parse().unwrap();
        let blog = "blog".parse().unwrap();
        for (name, app, expected) in [
            ("api", Some(&shop), "10.211.0.1"),
            ("api-alias", Some(&shop), "10.211.0.1"),
            ("api", Some(&blog), "10.211.0.9"),
            ("api", None, "elsewhere"),
            ("db", Some(&shop), "10.211.0.2"),
            ("db", Some(&blog), "elsewhere"),
            ("db.shop", Some(&blog), "10.211.0.2"),
            ("db.shop.gantry", None, "10.211.0.2"),
            ("tasks.api", Some(&shop), "10.210.1.2 10.210.1.4"),
            ("tasks.db", Some(&shop), ""),
            ("tasks.api.shop", None, "10.210.1.2 10.210.1.4"),
            ("shop-api-2", Some(&shop), "10.210.1.3"),
            ("api-3", Some(&shop), "10.210.1.4"),
            ("api-3.shop.gantry", None, "10.210.1.4"),
            ("nothing.shop.gantry", None, "nothing"),
            ("nothing.gantry", None, "nothing"),
            ("shop.gantry", None, ""),
            ("gantry", None, ""),
            ("nike.shop", None, "elsewhere"),
            ("nogantry", None, "elsewhere"),
            ("example.com", Some(&shop), "elsewhere"),
        ] {
            let found = match zone.find(name, app, Ipv4Addr::UNSPECIFIED) {
                Found::Addresses(list) => list.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(" "),
                Found::Nothing => "nothing".into(),
                Found::Elsewhere => "elsewhere".into(),
            };
            assert_eq!(found, expected, "{name} asked by {app:?}");
        }
    }

    #[test]
    fn names_of_addresses() {
        let zone = Zone::new(&table(1, &[("api", &[(0, true)])]), &Isolation::default());
        let at = |n| Ipv4Addr::new(10, 210, 1, n);
        let clients = Clients::from([(at(9), Client { app: None, hostname: "Box".into() })]);
        for (address, expected) in [
            (at(2), Some(Some("shop-api-1.shop.gantry"))),
            (Ipv4Addr::new(10, 211, 0, 1), Some(Some("api.shop.gantry"))),
            (at(9), Some(Some("box.gantry"))),
            (at(77), Some(None)),
            (Ipv4Addr::new(8, 8, 8, 8), None),
        ] {
            assert_eq!(zone.name_of(address, &clients).as_ref().map(|n| n.as_deref()), expected, "{address}");
        }
    }

    #[test]
    fn a_replacement_has_the_name_once_it_is_ready() {
        let mut table = table(1, &[("api", &[(0, false), (1, true)])]);
        table.services[0].endpoints[1].name = table.services[0].endpoints[0].name.clone();
        let shop = "shop".parse().unwrap();
        let expected = [Ipv4Addr::new(10, 210, 1, 3)];
        assert_eq!(
            Zone::new(&table, &Isolation::default()).find("api-1", Some(&shop), Ipv4Addr::UNSPECIFIED),
            Found::Addresses(&expected)
        );
        table.services[0].endpoints.reverse();
        assert_eq!(
            Zone::new(&table, &Isolation::default()).find("api-1", Some(&shop), Ipv4Addr::UNSPECIFIED),
            Found::Addresses(&expected)
        );
    }
}
