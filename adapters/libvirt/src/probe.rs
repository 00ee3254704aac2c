//! What a libvirt site can do.

use model::{Capability, Firmware, NetworkOffer, NetworkRef, PoolOffer, SiteReport};
use units::Bytes;
use virt::connect::Connect;
use virt::storage_pool::StoragePool;

use crate::fault::{Fault, Op};
use crate::verdict::verdict;
use crate::xml::{DomainCaps, Host, HostCaps, PoolXml};
use crate::{Acceleration, LibvirtConfig, records, storage};

/// The oldest libvirt whose answers these modules were read from; older ones are told to the
/// operator. Channels, metadata and volume streams are older than both.
const LIBVIRT_KNOWN: u32 = 7_002_000;

/// Ubuntu 20.04's, the oldest pair that a distribution still maintains. Nobody has tried older ones
/// with a VM that matters.
const LIBVIRT_OLDEST: u32 = 6_000_000;
const QEMU_OLDEST: u32 = 4_002_000;

pub(crate) fn probe(connection: &Connect, config: &LibvirtConfig) -> Result<SiteReport, Fault> {
    let host = host_caps(connection, config)?;
    let caps = domain_caps(connection, &host, &host.arch, "q35")
        .or_else(|_| domain_caps(connection, &host, &host.arch, ""))?;
    let libvirt = connection.lib_version()?;
    let qemu = connection.hyp_version()?;
    let mut warnings = Vec::new();
    if !host.kvm {
        warnings
            .push("no KVM here: VMs run on an imitated processor, many times slower".to_owned());
    }
    let outdated = outdated(libvirt, qemu);
    if libvirt < LIBVIRT_KNOWN && outdated.is_empty() {
        warnings.push(format!("libvirt {} is older than tried", version(libvirt)));
    }
    let mut firmwares = vec![Firmware::Bios];
    if caps.uefi || config.uefi.is_some() {
        firmwares.push(Firmware::Uefi { secure_boot: false });
        if caps.secure_boot {
            firmwares.push(Firmware::Uefi { secure_boot: true });
        }
    }
    let (pools, networks) =
        (pools(connection, &mut warnings)?, networks(connection, &mut warnings));
    let capabilities = capabilities(connection, config, &mut warnings)?;
    Ok(SiteReport {
        platform: format!("libvirt {}, QEMU {}", version(libvirt), version(qemu)),
        host: connection.hostname()?,
        arch: host.arch,
        machines: host.machines,
        firmwares,
        cpu_models: caps.cpu_models,
        vcpus_max: caps.vcpus_max,
        memory_free: connection.free_memory().ok().map(Bytes),
        pools,
        networks,
        capabilities,
        outdated,
        warnings,
    })
}

fn capabilities(
    connection: &Connect,
    config: &LibvirtConfig,
    warnings: &mut Vec<String>,
) -> Result<Vec<Capability>, Fault> {
    let mut capabilities = vec![
        Capability::HelperByKernel,
        Capability::ManagementChannel,
        Capability::WriteCounters,
        Capability::Suspend,
    ];
    if config.host.is_some() {
        capabilities.push(Capability::HostAccess);
    }
    match records::can_be_kept(connection) {
        Ok(()) => capabilities.push(Capability::Records),
        Err(Fault::Said(said)) if !verdict(&said, Op::Look).broken => {
            warnings.push(format!("no records can be kept: {}", said.message()));
        }
        Err(fault) => return Err(fault),
    }
    Ok(capabilities)
}

/// What goes into definitions made for this host.
pub(crate) fn host(
    connection: &Connect,
    config: &LibvirtConfig,
    arch: &str,
    machine: &str,
) -> Result<Host, Fault> {
    let host = host_caps(connection, config)?;
    let caps = domain_caps(connection, &host, arch, machine)?;
    // A VM of another architecture is imitated whatever the host's processor can do.
    let kvm = host.kvm && host.arch == arch;
    Ok(Host { kvm, caps, loader: config.uefi.clone() })
}

fn host_caps(connection: &Connect, config: &LibvirtConfig) -> Result<HostCaps, Fault> {
    let caps = HostCaps::parse(&connection.capabilities()?)?;
    let kvm = caps.kvm && config.acceleration == Acceleration::Offered;
    Ok(HostCaps { kvm, ..caps })
}

fn domain_caps(
    connection: &Connect,
    host: &HostCaps,
    arch: &str,
    machine: &str,
) -> Result<DomainCaps, Fault> {
    let kind = if host.kvm && host.arch == arch { "kvm" } else { "qemu" };
    let machine = (!machine.is_empty()).then_some(machine);
    let text = connection.domain_capabilities(None, Some(arch), machine, Some(kind), 0)?;
    DomainCaps::parse(&text)
}

fn outdated(libvirt: u32, qemu: u32) -> Vec<String> {
    let pairs = [("libvirt", libvirt, LIBVIRT_OLDEST), ("QEMU", qemu, QEMU_OLDEST)];
    let old = pairs.into_iter().filter(|(_, found, oldest)| found < oldest);
    old.map(|(name, found, oldest)| {
        format!("{name} {} is too old: at least {} is needed", version(found), version(oldest))
    })
    .collect()
}

/// `9_000_000` as `9.0.0`.
fn version(number: u32) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1000 % 1000, number % 1000)
}

fn pools(connection: &Connect, warnings: &mut Vec<String>) -> Result<Vec<PoolOffer>, Fault> {
    let mut offers = Vec::new();
    for pool in connection.list_all_storage_pools(0)? {
        let name = pool.name()?;
        match offer(&pool, &name) {
            Ok(offer) => offers.push(offer),
            Err(Fault::Said(said)) => {
                warnings.push(format!("pool {name} does not answer: {}", said.message()));
            }
            Err(fault) => return Err(fault),
        }
    }
    offers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(offers)
}

/// # Errors
/// There is none of that name, or it does not answer.
pub(crate) fn pool(connection: &Connect, name: &str) -> Result<PoolOffer, Fault> {
    offer(&storage::pool(connection, name)?, name)
}

fn offer(pool: &StoragePool, name: &str) -> Result<PoolOffer, Fault> {
    let info = pool.info()?;
    Ok(PoolOffer {
        name: name.to_owned(),
        capacity: Bytes(info.capacity),
        available: Bytes(info.available),
        active: pool.is_active()?,
        kind: PoolXml::parse(&pool.xml_desc(0)?)?.kind,
    })
}

/// Networks that libvirt manages, and bridges of the host where this libvirt can list them.
fn networks(connection: &Connect, warnings: &mut Vec<String>) -> Vec<NetworkOffer> {
    let mut offers = Vec::new();
    let mut own_bridges = Vec::new();
    match connection.list_all_networks(0) {
        Ok(networks) => {
            for network in networks {
                let Ok(name) = network.name() else { continue };
                own_bridges.extend(network.bridge_name().ok());
                let active = network.is_active().unwrap_or(false);
                offers.push(NetworkOffer { network: NetworkRef::Network(name), active });
            }
        }
        Err(said) => warnings.push(format!("networks cannot be listed: {}", said.message())),
    }
    // The interface driver is absent from many builds; bridges can then still be named in a plan.
    for interface in connection.list_all_interfaces(0).unwrap_or_default() {
        let Ok(name) = interface.name() else { continue };
        let is_bridge = interface.xml_desc(0).is_ok_and(|xml| xml.contains("type='bridge'"));
        if is_bridge && !own_bridges.contains(&name) {
            let active = interface.is_active().unwrap_or(false);
            offers.push(NetworkOffer { network: NetworkRef::Bridge(name), active });
        }
    }
    offers.sort_by(|a, b| a.network.cmp(&b.network));
    offers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_old_is_named_with_what_is_needed() {
        assert!(outdated(9_000_000, 7_002_022).is_empty());
        assert!(outdated(LIBVIRT_OLDEST, QEMU_OLDEST).is_empty());
        let old = outdated(LIBVIRT_OLDEST - 1, 2_012_000);
        assert_eq!(old.len(), 2);
        assert_eq!(old[1], "QEMU 2.12.0 is too old: at least 4.2.0 is needed");
    }
}
