//! `<capabilities>` and `<domainCapabilities>`: what a host can run.

use std::collections::BTreeSet;

use roxmltree::Node;

use super::node::{Xml, at, children, text_at};
use crate::fault::Fault;

/// What the host is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostCaps {
    pub arch: String,
    /// Can VMs of this architecture use the processor's virtualisation?
    pub kvm: bool,
    /// Machine types of VMs of the host's own architecture, aliases included.
    pub machines: Vec<String>,
}

impl HostCaps {
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let xml = Xml::parse(text)?;
        let root = xml.root("capabilities")?;
        let arch = text_at(root, "host/cpu/arch").unwrap_or_default();
        let mut caps = Self { arch, ..Self::default() };
        let mut machines = BTreeSet::new();
        let guests = children(root, "guest").filter(|guest| {
            text_at(*guest, "os_type").as_deref() == Some("hvm")
                && at(*guest, "arch").and_then(|arch| arch.attribute("name")) == Some(&caps.arch)
        });
        for arch in guests.filter_map(|guest| at(guest, "arch")) {
            machines.extend(machine_types(arch));
            for domain in children(arch, "domain") {
                caps.kvm |= domain.attribute("type") == Some("kvm");
                machines.extend(machine_types(domain));
            }
        }
        caps.machines = machines.into_iter().collect();
        Ok(caps)
    }
}

fn machine_types(node: Node<'_, '_>) -> Vec<String> {
    children(node, "machine").filter_map(|machine| machine.text().map(str::to_owned)).collect()
}

/// What one machine type can have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DomainCaps {
    pub emulator: String,
    pub vcpus_max: u32,
    pub uefi: bool,
    pub secure_boot: bool,
    pub host_passthrough: bool,
    pub host_model: bool,
    pub maximum: bool,
    /// Models that a VM can be started with here.
    pub cpu_models: Vec<String>,
}

impl DomainCaps {
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let xml = Xml::parse(text)?;
        let root = xml.root("domainCapabilities")?;
        let mode = |name: &str| {
            at(root, "cpu").and_then(|cpu| {
                children(cpu, "mode").find(|mode| mode.attribute("name") == Some(name))
            })
        };
        let supported =
            |name: &str| mode(name).is_some_and(|mode| mode.attribute("supported") == Some("yes"));
        let models = mode("custom").map(|custom| {
            children(custom, "model")
                .filter(|model| model.attribute("usable") == Some("yes"))
                .filter_map(|model| model.text().map(str::to_owned))
                .collect()
        });
        let secure = at(root, "os/loader").is_some_and(|loader| has(loader, "secure", "yes"));
        Ok(Self {
            emulator: text_at(root, "path").unwrap_or_default(),
            vcpus_max: at(root, "vcpu")
                .and_then(|vcpu| vcpu.attribute("max")?.parse().ok())
                .unwrap_or(1),
            uefi: at(root, "os").is_some_and(|os| has(os, "firmware", "efi")),
            secure_boot: secure,
            host_passthrough: supported("host-passthrough"),
            host_model: supported("host-model"),
            maximum: supported("maximum"),
            cpu_models: models.unwrap_or_default(),
        })
    }
}

/// Does an `<enum>` of this name list this value?
fn has(node: Node<'_, '_>, name: &str, value: &str) -> bool {
    children(node, "enum")
        .filter(|list| list.attribute("name") == Some(name))
        .flat_map(|list| children(list, "value").collect::<Vec<_>>())
        .any(|listed| listed.text() == Some(value))
}
