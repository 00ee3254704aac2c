//! What a platform keeps of a VM beside its definition and its disks.

use serde::{Deserialize, Serialize};

/// Of one VM, with what libvirt wants to know besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Belongings {
    /// `kvm` or `qemu`.
    pub kind: String,
    pub arch: String,
    pub variables: Option<UefiVariables>,
    /// The model of its TPM, which libvirt keeps by the VM's id.
    pub tpm: Option<String>,
}

/// Paths on the hypervisor's host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UefiVariables {
    /// The firmware's code.
    pub loader: String,
    /// In which they are; no other VM's.
    pub file: String,
}
