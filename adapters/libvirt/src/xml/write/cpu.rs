//! `<cpu>`: what the VM's own wish becomes on this host.

use model::Cpu;

use super::element::{Inside, WriteError};
use crate::xml::DomainCaps;

pub(super) fn cpu(
    domain: &mut Inside<'_>,
    wish: &Cpu,
    caps: &DomainCaps,
) -> Result<(), WriteError> {
    match wish {
        Cpu::Default => Ok(()),
        Cpu::Model(model) => {
            // `forbid`: a lesser model would take features from under a guest that runs on them.
            domain.nested("cpu", &[("mode", "custom"), ("match", "exact")], |cpu| {
                cpu.text_with("model", &[("fallback", "forbid")], model)
            })
        }
        // Without the processor's virtualisation there is no host CPU to pass: all that QEMU can
        // imitate is the nearest.
        Cpu::HostModel if caps.host_model => mode(domain, "host-model"),
        Cpu::HostPassthrough if caps.host_passthrough => mode(domain, "host-passthrough"),
        Cpu::HostModel | Cpu::HostPassthrough if caps.maximum => mode(domain, "maximum"),
        Cpu::HostModel | Cpu::HostPassthrough => Ok(()),
    }
}

fn mode(domain: &mut Inside<'_>, mode: &str) -> Result<(), WriteError> {
    domain.empty("cpu", &[("mode", mode)])
}
