//! What may keep a copy of this guest from booting, or from being reached, at another site.
//!
//! The agent does not know the other site: a finding says what the guest depends on, and the plan
//! judges. [`Severity::Blocking`] is for what fails wherever the copy goes.

mod cpio;
mod initramfs;
mod loader;
mod names;
mod network;
mod special;
mod tables;

use wire::control::{BootFinding, Severity};

use super::Tree;
use super::filesystems::Mounted;

pub fn findings(tree: &Tree, mounted: &[Mounted]) -> Vec<BootFinding> {
    let mut findings = initramfs::check(tree);
    findings.extend(tables::fstab(tree));
    findings.extend(tables::crypttab(tree));
    findings.extend(loader::command_line(tree));
    findings.extend(loader::grub(tree));
    findings.extend(loader::efi(tree));
    findings.extend(network::check(tree));
    findings.extend(special::check(tree, mounted));
    findings
}

fn fine(check: &str, text: impl Into<String>) -> BootFinding {
    BootFinding {
        check: check.to_owned(),
        severity: Severity::Fine,
        text: text.into(),
        remedy: None,
    }
}

fn warning(check: &str, text: impl Into<String>, remedy: impl Into<String>) -> BootFinding {
    BootFinding {
        check: check.to_owned(),
        severity: Severity::Warning,
        text: text.into(),
        remedy: Some(remedy.into()),
    }
}

fn blocking(check: &str, text: impl Into<String>, remedy: impl Into<String>) -> BootFinding {
    BootFinding { severity: Severity::Blocking, ..warning(check, text, remedy) }
}
