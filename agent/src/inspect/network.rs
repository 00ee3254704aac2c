//! Network cards.

use std::net::IpAddr;

use wire::control::NetworkInterface;

use super::devices::pci_address;
use super::tree::Tree;

/// Every interface that stands for a device; no bridges, tunnels or `lo`.
pub fn interfaces(tree: &Tree, addresses: &[(String, IpAddr, u8)]) -> Vec<NetworkInterface> {
    let real = |name: &String| tree.exists(format!("sys/class/net/{name}/device"));
    let describe = |name: String| NetworkInterface {
        mac: tree.text(format!("sys/class/net/{name}/address")).unwrap_or_default(),
        addresses: addresses
            .iter()
            .filter(|(owner, _, _)| *owner == name)
            .map(|(_, address, prefix)| format!("{address}/{prefix}"))
            .collect(),
        pci: tree.link(format!("sys/class/net/{name}")).as_deref().and_then(pci_address),
        name,
    };
    tree.names("sys/class/net").into_iter().filter(real).map(describe).collect()
}

/// The addresses of this system: interface, address, length of the prefix.
pub fn addresses() -> Vec<(String, IpAddr, u8)> {
    let Ok(found) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    found
        .filter_map(|one| Some((one.interface_name, ip(one.address?)?, prefix(one.netmask?)?)))
        .collect()
}

fn ip(address: nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
        (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
        _ => None,
    }
}

fn prefix(mask: nix::sys::socket::SockaddrStorage) -> Option<u8> {
    let ones = match ip(mask)? {
        IpAddr::V4(mask) => u32::from(mask).count_ones(),
        IpAddr::V6(mask) => u128::from(mask).count_ones(),
    };
    u8::try_from(ones).ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::FakeSystem;
    use super::*;

    #[test]
    fn a_card_is_reported_with_its_address_and_slot_and_lo_is_not() {
        let system = FakeSystem::new();
        let card = "sys/devices/pci0000:00/0000:00:02.0/virtio0/net/ens2";
        system.file(&format!("{card}/address"), "52:54:00:00:00:01\n");
        system.file(&format!("{card}/device/vendor"), "");
        system.link("sys/class/net/ens2", "../../devices/pci0000:00/0000:00:02.0/virtio0/net/ens2");
        system.file("sys/devices/virtual/net/lo/address", "00:00:00:00:00:00");
        system.link("sys/class/net/lo", "../../devices/virtual/net/lo");
        let addresses = [("ens2".to_owned(), "10.0.0.5".parse().unwrap(), 24)];
        let found = interfaces(&system.tree(), &addresses);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].addresses, ["10.0.0.5/24"]);
        assert_eq!(found[0].pci.as_deref(), Some("0000:00:02.0"));
    }
}
