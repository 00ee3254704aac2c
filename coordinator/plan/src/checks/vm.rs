//! Machine, processor, firmware, network, names.

use model::{Capability, Cpu, Firmware, Power, SiteReport, Vm};

use crate::facts::{Facts, network_named};
use crate::plan::PlannedNic;
use crate::refusal::Refusal;
use crate::request::{Request, Route};

/// Whether the destination can be this VM.
pub(crate) fn vm(
    request: &Request,
    facts: &Facts,
    vm: &Vm,
    destination: &SiteReport,
    refusals: &mut Vec<Refusal>,
) {
    let mut refuse = |code: &str, text: String, remedy: &str| {
        refusals.push(Refusal::new(code, text, remedy));
    };
    if vm.power != Power::Running {
        refuse(
            "not-running",
            format!(
                "{} is {} at {}; agents copy from inside a running guest",
                vm.name, vm.power, request.from
            ),
            "start it first",
        );
    }
    // At its own site it is there, of course.
    let taken = facts.taken.iter().filter(|_| request.from != request.to);
    for taken in taken {
        let what = match (taken.same_id, taken.same_name) {
            (true, true) => "name and UUID",
            (true, false) => "UUID",
            _ => "name",
        };
        let remedy = match &taken.kept_by {
            Some(id) => format!(
                "it is the source that {id} keeps; delete it with its disks: causeway discard {id}"
            ),
            None if taken.same_id => format!(
                "see what it is before you touch it: it may be this very VM, what a migration made of it there (causeway status), or the VM itself, if {} and {} are one host (causeway site check)",
                request.from, request.to
            ),
            None => "remove or rename it there if nobody needs it, or rename this one".to_owned(),
        };
        refuse(
            if taken.same_id { "uuid-taken" } else { "name-taken" },
            format!("{} already has a VM {} with the same {what}", request.to, taken.name),
            &remedy,
        );
    }
    for (site, report) in
        [(&request.from, facts.source.as_ref().ok()), (&request.to, Some(destination))]
    {
        for outdated in report.map_or(&[][..], |report| &report.outdated) {
            refuse("version", format!("{site}: {outdated}"), "upgrade it, or use another host");
        }
    }
    if destination.arch != vm.arch {
        refuse(
            "architecture",
            format!("{} needs {}, {} offers {}", vm.name, vm.arch, request.to, destination.arch),
            "choose a destination of the same architecture",
        );
    }
    if machine(vm, destination).is_none() {
        refuse(
            "machine-type",
            format!("{} cannot start machine type {}", request.to, vm.machine),
            "change the VM's machine type to one that both sites have (`causeway site check` lists them)",
        );
    }
    if !destination.firmwares.contains(&vm.firmware) {
        let firmware = match vm.firmware {
            Firmware::Bios => "BIOS",
            Firmware::Uefi { secure_boot: false } => "UEFI",
            Firmware::Uefi { secure_boot: true } => "UEFI with secure boot",
        };
        refuse(
            "firmware-missing",
            format!("{} has no {firmware} firmware for {}", request.to, vm.machine),
            "install it at the destination (Debian: package ovmf)",
        );
    }
    if let Cpu::Model(model) = &vm.cpu
        && !destination.cpu_models.is_empty()
        && !destination.cpu_models.contains(model)
    {
        refuse(
            "cpu-missing",
            format!("{} cannot start CPU model {model}", request.to),
            "give the VM a CPU model that both sites have (`causeway site check` lists them)",
        );
    }
    if destination.vcpus_max > 0 && vm.vcpus > destination.vcpus_max {
        refuse(
            "vcpus",
            format!(
                "{} has {} virtual CPUs, {} allows {}",
                vm.name, vm.vcpus, request.to, destination.vcpus_max
            ),
            "give the VM fewer",
        );
    }
    if let Some(free) = destination.memory_free
        && free < vm.memory
    {
        refuse(
            "no-memory",
            format!("{} has {} memory, {} has {free} free", vm.name, vm.memory, request.to),
            "free memory at the destination",
        );
    }
    for device in vm.devices.iter().filter(|device| device.essential) {
        refuse(
            "device",
            format!("{} has a device that cannot move: {}", vm.name, device.kind),
            "detach it from the VM first",
        );
    }
    capabilities(request, facts, destination, &mut refuse);
    if let Route::Direct { network, .. } = &request.options.route
        && network_named(destination, network).is_none()
    {
        refuse(
            "direct-network",
            format!("{} has no active network {network} for the helper", request.to),
            "name one that it has with --direct, or leave it out to relay through this machine",
        );
    }
}

/// The machine type that the VM gets: its own, or else the destination's version of its family.
pub(crate) fn machine<'a>(vm: &'a Vm, destination: &SiteReport) -> Option<&'a str> {
    const FAMILIES: [(&str, &str); 2] = [("pc-i440fx-", "pc"), ("pc-q35-", "q35")];
    let family = FAMILIES.iter().find(|(versioned, _)| vm.machine.starts_with(versioned));
    let wanted = [Some(vm.machine.as_str()), family.map(|(_, alias)| *alias)];
    let known = |machine: &&str| destination.machines.iter().any(|known| known == machine);
    wanted.into_iter().flatten().find(known)
}

/// What the guest method needs of the two platforms.
fn capabilities(
    request: &Request,
    facts: &Facts,
    destination: &SiteReport,
    refuse: &mut impl FnMut(&str, String, &str),
) {
    if let Ok(source) = &facts.source {
        // Without them nothing would prove that the guest wrote nothing between drain and fence.
        for needed in [Capability::Suspend, Capability::WriteCounters] {
            if !source.capabilities.contains(&needed) {
                refuse(
                    "source-capability",
                    format!("{} cannot do what a fence needs: {needed:?}", request.from),
                    "this kind of site can only be a destination",
                );
            }
        }
    }
    for needed in [Capability::HelperByKernel, Capability::ManagementChannel] {
        if !destination.capabilities.contains(&needed) {
            refuse(
                "destination-capability",
                format!("{} cannot run the helper: it lacks {needed:?}", request.to),
                "this kind of site can only be a source",
            );
        }
    }
    // Without them nobody could go on where the state directory was lost.
    for (code, site, report) in [
        ("source-capability", &request.from, facts.source.as_ref().ok()),
        ("destination-capability", &request.to, Some(destination)),
    ] {
        let needed = Capability::Records;
        if report.is_some_and(|report| !report.capabilities.contains(&needed)) {
            refuse(
                code,
                format!(
                    "{site} cannot keep what a coordinator is rebuilt from: it lacks {needed:?}"
                ),
                "see what `causeway site check` warns of; libvirt needs its secret driver for it, \
                 and a user who may use that",
            );
        }
    }
}

/// Every card onto a network that exists. An unmapped one is refused: a guess could join a VM to
/// the wrong people.
pub(crate) fn nics(
    request: &Request,
    vm: &Vm,
    destination: &SiteReport,
    refusals: &mut Vec<Refusal>,
) -> Vec<PlannedNic> {
    let offered = || {
        let names: Vec<_> = destination
            .networks
            .iter()
            .filter(|offer| offer.active)
            .map(|offer| offer.network.name())
            .collect();
        names.join(", ")
    };
    let mut planned = Vec::new();
    for nic in &vm.nics {
        let from = nic.network.name();
        let Some(to) = request.networks.get(from) else {
            refusals.push(Refusal::new(
                "network-unmapped",
                format!(
                    "card {} is on {from}, and nothing says where that is at {}; it has: {}",
                    nic.mac,
                    request.to,
                    offered()
                ),
                format!("add --network {from}=NAME"),
            ));
            continue;
        };
        let Some(network) = network_named(destination, to) else {
            refusals.push(Refusal::new(
                "network-missing",
                format!(
                    "{} has no active network or bridge {to}; it has: {}",
                    request.to,
                    offered()
                ),
                format!("create or start it, or map {from} to another"),
            ));
            continue;
        };
        planned.push(PlannedNic {
            mac: nic.mac.clone(),
            model: nic.model.clone(),
            from: from.to_owned(),
            network,
            address: nic.address,
        });
    }
    planned
}

/// Odd, and agreed to by whoever agrees to the plan.
pub(crate) fn warnings(
    request: &Request,
    facts: &Facts,
    vm: &Vm,
    destination: &SiteReport,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if vm.cpu == Cpu::HostPassthrough {
        warnings.push(
            "the VM uses its host's processor as it is (host-passthrough): programs built for it may fail elsewhere".to_owned(),
        );
    }
    if let Some(machine) = machine(vm, destination).filter(|machine| *machine != vm.machine) {
        warnings.push(format!(
            "{} does not have machine type {}: the VM becomes a {machine} there, whose devices may differ in detail",
            request.to, vm.machine
        ));
    }
    for device in vm.devices.iter().filter(|device| !device.essential) {
        warnings.push(format!("left behind: {}", device.kind));
    }
    for disk in &vm.disks {
        if matches!(disk.usage, model::DiskUse::Cdrom | model::DiskUse::Floppy) {
            warnings.push(format!("left behind: medium in {}", disk.target));
        }
    }
    if !vm.persistent {
        warnings.push(
            "the VM is transient: its definition is kept only in the ledger once it is off"
                .to_owned(),
        );
    }
    if let Ok(source) = &facts.source {
        warnings.extend(source.warnings.iter().map(|text| format!("{}: {text}", request.from)));
    }
    warnings.extend(destination.warnings.iter().map(|text| format!("{}: {text}", request.to)));
    warnings
}
