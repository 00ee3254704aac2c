//! What libvirt keeps of a VM beside its definition: the variables of its firmware, the state of its TPM.
//! It removes them with a definition; of a VM that came without one they may stay behind.

use model::VmId;
use site::{Belongings, UefiVariables};
use units::{Epoch, MigrationId};
use virt::connect::Connect;
use virt_sys as sys;

use crate::fault::{Fault, maybe};
use crate::look;
use crate::placeholder::unwritable;
use crate::xml::{OursState, Written, element, ours_uri};

/// A definition is made that has nothing else, and they go with it. Should it stay, it is known as the
/// migration's.
///
/// Where there is a VM of that id, the TPM is that one's and is left alone.
pub(crate) fn remove(
    connection: &Connect,
    (migration, epoch): (&MigrationId, Epoch),
    vm: VmId,
    belongings: &Belongings,
) -> Result<(), Fault> {
    let is_taken = look::find(connection, vm)?.is_some();
    if is_taken && belongings.variables.is_none() {
        return Ok(());
    }
    let vm = (!is_taken).then_some(vm);
    let xml = definition((migration, epoch), vm, belongings).map_err(unwritable)?;
    let domain = connection.define_domain_xml(&xml)?;
    maybe(domain.undefine_flags(sys::VIR_DOMAIN_UNDEFINE_NVRAM))?;
    Ok(())
}

fn definition(
    (migration, epoch): (&MigrationId, Epoch),
    vm: Option<VmId>,
    Belongings { kind, arch, variables, tpm }: &Belongings,
) -> Written {
    let epoch = epoch.to_string();
    let ours = [
        ("xmlns:causeway", ours_uri()),
        ("migration", migration.as_str()),
        ("epoch", &epoch),
        ("state", OursState::Held.word()),
    ];
    element("domain", &[("type", kind)], |domain| {
        domain.text("name", &format!("causeway-belongings-{migration}"))?;
        if let Some(vm) = vm {
            domain.text("uuid", &vm.to_string())?;
        }
        domain.nested("metadata", &[], |metadata| metadata.empty("causeway:placeholder", &ours))?;
        domain.text_with("memory", &[("unit", "MiB")], "1")?;
        domain.nested("os", &[], |os| {
            os.text_with("type", &[("arch", arch)], "hvm")?;
            let Some(UefiVariables { loader, file }) = variables else { return Ok(()) };
            os.text_with("loader", &[("readonly", "yes"), ("type", "pflash")], loader)?;
            os.text("nvram", file)
        })?;
        // Without it there is no UEFI for libvirt.
        domain.nested("features", &[], |features| features.empty("acpi", &[]))?;
        domain.nested("devices", &[], |devices| match tpm.as_ref().filter(|_| vm.is_some()) {
            Some(model) => devices.nested("tpm", &[("model", model)], |tpm| {
                tpm.empty("backend", &[("type", "emulator")])
            }),
            None => Ok(()),
        })
    })
}
