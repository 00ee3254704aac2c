//! Is the network's configuration bound to a card's slot or address?

use wire::control::BootFinding;

use super::{fine, warning};
use crate::inspect::Tree;

/// One line of configuration that names a card.
#[derive(Debug, PartialEq, Eq)]
enum Binding {
    Name(String),
    Mac(String),
}

pub fn check(tree: &Tree) -> Vec<BootFinding> {
    let mut findings = Vec::new();
    let mut read = Vec::new();
    for file in files(tree) {
        let Some(text) = tree.text(&file) else { continue };
        for binding in bindings(&text) {
            findings.extend(judge(&file, &binding));
        }
        read.push(file);
    }
    for rules in
        ["etc/udev/rules.d/70-persistent-net.rules", "etc/udev/rules.d/75-net-description.rules"]
    {
        let bound = tree.text(rules).is_some_and(|text| {
            text.lines().any(|line| !line.trim_start().starts_with('#') && line.contains("NAME="))
        });
        if bound {
            findings.push(warning(
                "persistent-net-rules",
                format!("/{rules} gives names to cards by address or slot"),
                "keep the addresses of the cards at the destination, or remove the file",
            ));
        }
    }
    findings.dedup();
    if findings.is_empty() {
        findings.push(fine(
            "interface-names",
            format!(
                "no slot name or address of a card in {} files of network configuration",
                read.len()
            ),
        ));
    }
    findings
}

fn files(tree: &Tree) -> Vec<String> {
    let mut files = vec!["etc/network/interfaces".to_owned()];
    for (dir, suffix) in [
        ("etc/network/interfaces.d", ""),
        ("etc/systemd/network", ".network"),
        ("etc/systemd/network", ".link"),
        ("etc/netplan", ".yaml"),
        ("etc/NetworkManager/system-connections", ".nmconnection"),
        ("etc/sysconfig/network-scripts", ""),
    ] {
        let names = tree.names(dir).into_iter().filter(|name| name.ends_with(suffix));
        files.extend(names.map(|name| format!("{dir}/{name}")));
    }
    files
}

/// Every dialect at once: their keywords do not collide.
fn bindings(text: &str) -> Vec<Binding> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    lines.filter_map(binding).collect()
}

fn binding(line: &str) -> Option<Binding> {
    let value = |keys: &[&str]| {
        let found = keys.iter().find_map(|key| line.strip_prefix(key))?;
        Some(found.trim().trim_matches(['"', '\'']).to_owned())
    };
    if let Some(mac) =
        value(&["MACAddress=", "PermanentMACAddress=", "mac-address=", "HWADDR=", "macaddress:"])
    {
        return Some(Binding::Mac(mac));
    }
    // A card's name by slot is what matters, wherever it stands as a word of its own.
    let named = value(&[
        "Name=",
        "interface-name=",
        "DEVICE=",
        "OriginalName=",
        "iface ",
        "auto ",
        "allow-hotplug ",
    ])
    .or_else(|| line.strip_suffix(':').map(str::to_owned))?;
    let name = named.split_whitespace().find(|word| is_slot_name(word))?;
    Some(Binding::Name(name.to_owned()))
}

/// `ens3`, `enp1s0`, `eno1`: names that follow the card's place. `eth0`, `en*` and `lan0` do not.
fn is_slot_name(name: &str) -> bool {
    ["ens", "enp", "eno", "enP"].iter().any(|start| {
        name.strip_prefix(start).is_some_and(|rest| {
            rest.starts_with(|c: char| c.is_ascii_digit())
                && rest.chars().all(|c| c.is_ascii_alphanumeric())
        })
    })
}

fn judge(file: &str, binding: &Binding) -> Option<BootFinding> {
    Some(match binding {
        Binding::Name(name) => warning(
            "interface-names",
            format!("/{file} configures {name}, a name that follows the card's slot"),
            format!(
                "keep the card's slot at the destination, or match it by type or address instead of {name}"
            ),
        ),
        Binding::Mac(mac) if mac.is_empty() => return None,
        Binding::Mac(mac) => warning(
            "interface-address",
            format!("/{file} matches a card by its address {mac}"),
            "keep the addresses of the cards at the destination",
        ),
    })
}

#[cfg(test)]
mod tests {
    use wire::control::Severity;

    use super::*;
    use crate::inspect::testing::FakeSystem;

    #[test]
    fn slot_names_are_found_in_every_dialect() {
        for text in [
            "auto ens3\n",
            "iface ens3 inet dhcp\n",
            "[Match]\nName=ens3\n",
            "interface-name=ens3\n",
            "DEVICE=\"ens3\"\n",
            "network:\n  ethernets:\n    ens3:\n      dhcp4: true\n",
        ] {
            assert_eq!(bindings(text), [Binding::Name("ens3".to_owned())], "{text}");
        }
        for text in ["# auto ens3\n", "auto lo eth0\n", "Name=en*\n", "Type=ether\n", "ensemble:\n"]
        {
            assert_eq!(bindings(text), [], "{text}");
        }
    }

    #[test]
    fn a_guest_that_matches_by_type_is_fine() {
        let system = FakeSystem::new();
        system
            .file("etc/systemd/network/all.network", "[Match]\nType=ether\n[Network]\nDHCP=yes\n");
        assert_eq!(check(&system.tree())[0].severity, Severity::Fine);
    }

    #[test]
    fn persistent_rules_and_addresses_are_warned_of() {
        let system = FakeSystem::new();
        system.file(
            "etc/udev/rules.d/70-persistent-net.rules",
            "ATTR{address}==\"52:54\", NAME=\"eth0\"\n",
        );
        system.file("etc/netplan/50.yaml", "  match:\n    macaddress: '52:54:00:00:00:01'\n");
        let found = check(&system.tree());
        let checks: Vec<&str> = found.iter().map(|finding| finding.check.as_str()).collect();
        assert_eq!(checks, ["interface-address", "persistent-net-rules"]);
    }
}
