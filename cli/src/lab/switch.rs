//! The switch: a bridge in a network namespace without uplink, held by one process that does nothing.

use super::cgroup::Join;
use super::error::LabError;
use super::helper::{self, BootFile};
use super::netlink::{self, Drop};
use super::state::{Paths, Process, State};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;

const BRIDGE: &str = "br0";

/// What the switch is to be.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Boot {
    /// Its cgroups.
    pub join: Join,
    /// Its address, the nodes' gateway.
    pub gateway: Ipv4Addr,
}

/// Holds the namespace until it is killed.
pub fn run(file: &BootFile) -> u8 {
    if let Err(error) = file.read::<Boot>().and_then(|boot| set_up(&boot)) {
        return helper::not_ready(&error);
    }
    if helper::ready().is_err() {
        return crate::error::REFUSED;
    }
    loop {
        nix::unistd::pause();
    }
}

fn set_up(boot: &Boot) -> Result<(), LabError> {
    boot.join.enter_root()?;
    boot.join.enter_leaf()?;
    netlink::up("lo").map_err(LabError::kernel("take up the switch's loopback"))?;
    netlink::ensure_bridge(BRIDGE).map_err(LabError::kernel("make the switch's bridge"))?;
    netlink::ensure_address(BRIDGE, boot.gateway).map_err(LabError::kernel("give the switch its address"))?;
    // It forwards to nowhere: so it says `unreachable` at once to whoever wants out, instead of letting him wait.
    let file = "/proc/sys/net/ipv4/ip_forward";
    fs::write(file, "1").map_err(LabError::file("write", file))
}

/// The network namespace of a process.
///
/// # Errors
/// It is gone.
pub fn namespace(process: Process) -> io::Result<File> {
    let file = File::open(format!("/proc/{}/ns/net", process.pid))?;
    if process.lives() { Ok(file) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

/// The switch's namespace.
///
/// # Errors
/// Its holder is gone.
pub fn open(paths: &Paths, state: &State) -> Result<File, LabError> {
    let holder = state.switch.and_then(|holder| namespace(holder).ok());
    holder.ok_or_else(|| LabError::SwitchDown(paths.name.clone()))
}

/// Plugs a node in: a cable from a port of the switch, named like the node, to the node's `eth0`. May be repeated.
///
/// # Errors
/// The kernel refused a step.
pub fn ensure_cable(paths: &Paths, state: &State, number: u32, node: Process) -> Result<(), LabError> {
    let name = super::state::name(number);
    let (switch, inside) = (open(paths, state)?, namespace(node).map_err(LabError::kernel(format!("reach {name}")))?);
    let (address, gateway) = (state.address(number), state.gateway());
    let plug = || {
        if netlink::index(&name).is_ok() {
            return Ok(());
        }
        // The same hardware address after each start: neighbours remember it.
        let [.., subnet, host] = address.octets();
        netlink::add_cable(BRIDGE, &name, &inside, [0x02, 0x58, 10, 88, subnet, host])
    };
    netlink::inside(&switch, plug).map_err(LabError::kernel(format!("plug {name} into the switch")))?;
    let address_it = || {
        netlink::up("lo")?;
        netlink::ensure_address("eth0", address)?;
        netlink::up("eth0")?;
        netlink::ensure_default_route(gateway)
    };
    netlink::inside(&inside, address_it).map_err(LabError::kernel(format!("give {name} its address")))
}

/// Takes a node's cable away, so that a dying node says no last word.
///
/// # Errors
/// The kernel refused.
pub fn unplug(paths: &Paths, state: &State, node: &str) -> Result<(), LabError> {
    let switch = open(paths, state)?;
    netlink::inside(&switch, || netlink::remove_link(node)).map_err(LabError::kernel(format!("unplug {node}")))
}

/// Makes the switch drop what the state says is cut.
///
/// # Errors
/// The kernel has no nf_tables for bridges.
pub fn apply_cuts(paths: &Paths, state: &State) -> Result<(), LabError> {
    let switch = open(paths, state)?;
    let drops = drops(&state.cuts);
    netlink::inside(&switch, || netlink::set_drops(&drops)).map_err(LabError::kernel("change what the switch drops"))
}

/// One name: all that comes from it or goes to it. Two names: what goes from one to the other.
fn drops(cuts: &BTreeSet<Vec<String>>) -> Vec<Drop> {
    let rule = |from: Option<&String>, to: Option<&String>| Drop { from: from.cloned(), to: to.cloned() };
    let both = cuts.iter().flat_map(|cut| match cut.as_slice() {
        [one] => vec![rule(Some(one), None), rule(None, Some(one))],
        [one, other] => vec![rule(Some(one), Some(other)), rule(Some(other), Some(one))],
        _ => Vec::new(),
    });
    both.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_become_rules() {
        let cut = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (cuts, want) in [
            (vec![], ""),
            (vec![cut(&["n1"])], "n1>* *>n1 "),
            (vec![cut(&["n1", "n2"])], "n1>n2 n2>n1 "),
            (vec![cut(&["n3"]), cut(&["n1", "n2"])], "n1>n2 n2>n1 n3>* *>n3 "),
        ] {
            let side = |port: &Option<String>| port.clone().unwrap_or_else(|| "*".into());
            let text: String = drops(&cuts.into_iter().collect())
                .iter()
                .map(|d| format!("{}>{} ", side(&d.from), side(&d.to)))
                .collect();
            assert_eq!(text, want);
        }
    }
}
