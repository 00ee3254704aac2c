//! Judges the ledgers of a guest: from inside while it runs, and on its disks while it is off. For
//! the latter a guest of its own mounts them: it replays journals and activates volumes as any
//! Linux does, and what it writes is thrown away.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};

use super::{
    KERNEL_WORDS,
    disk::DiskFile,
    modules::Modules,
    program,
    qemu::{Machine, Qemu, Start, Writes},
    small,
    ssh::Ssh,
    tree::Tree,
};
use crate::{cache, kernel, kernel::Kernel, ledger::Verdict};

const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "xfs", "dm-mod"];

/// Long, for disks with much to read on a busy machine.
const PATIENCE: Duration = Duration::from_secs(900);

/// Which records must be there besides.
#[derive(Debug, Clone, Copy)]
pub struct Witnessed<'a> {
    /// What a witness collected.
    pub file: &'a Path,
    /// Only what this VM acknowledged; all, if absent.
    pub vm: Option<&'a str>,
}

/// Verifies the ledgers of a running guest, which may go on writing.
pub fn verify_inside(ssh: &Ssh<'_>, witnessed: Option<Witnessed<'_>>) -> Result<Verdict> {
    // The writer's own orders say where its ledgers are.
    let mut script = "dirs=$(sed -n 's/.*--dir \\([^ ]*\\).*/\\1/p' /etc/ledger.conf); \
                      PATH=$PATH:/usr/local/bin; ledger verify --dir \"$dirs\""
        .to_owned();
    let mut notes = Vec::new();
    if let Some(Witnessed { file, vm }) = witnessed {
        notes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        script += " --witness-file -";
        if let Some(vm) = vm {
            script += &format!(" --vm {vm}");
        }
    }
    let answer = ssh.answer(&script, &notes)?;
    serde_json::from_str(&answer.stdout)
        .with_context(|| format!("no verdict, exit code {}: {}", answer.code, answer.stderr.trim()))
}

/// Verifies all ledgers on `disks`, which stay as they are. The guests that use them must be off.
pub fn verify_offline(disks: &[DiskFile], witnessed: Option<Witnessed<'_>>) -> Result<Verdict> {
    let scratch = tempfile::tempdir()?;
    let kernel = kernel::debian_cloud()?;
    let mut initrd = fs::read(verifier(&kernel)?)?;
    if let Some(Witnessed { file, vm }) = witnessed {
        let mut tree = Tree::default();
        tree.copy("witness", file)?;
        if let Some(vm) = vm {
            tree.file("vm", 0o644, vm);
        }
        // The kernel unpacks one archive after the other, each from a multiple of four.
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        initrd.extend_from_slice(&tree.cpio()?);
    }
    let path = scratch.path().join("initrd");
    fs::write(&path, initrd)?;
    let start = Start::Kernel {
        vmlinuz: kernel.vmlinuz,
        initrd: path,
        cmdline: format!("{KERNEL_WORDS} quiet panic=-1"),
    };
    let machine = Machine { start, disks, writes: Writes::Discard, memory_mib: 512, vcpus: 1 };
    let mut qemu = Qemu::start(&machine, &scratch.path().join("console"))?;
    qemu.wait_for("VERDICT ENDS", PATIENCE)?;
    let console = qemu.console();
    let text = console.split("VERDICT BEGINS").nth(1).unwrap_or_default();
    let text = text.split("VERDICT ENDS").next().unwrap_or_default();
    let start = text.find('{').with_context(|| format!("no verdict: {}", text.trim()))?;
    let verdict: Verdict = serde_json::from_str(&text[start..])
        .with_context(|| format!("no verdict: {}", text.trim()))?;
    anyhow::ensure!(
        verdict.witness.is_some() == witnessed.is_some(),
        "the verifier did not ask the witness"
    );
    Ok(verdict)
}

fn verifier(kernel: &Kernel) -> Result<std::path::PathBuf> {
    let mut tree = Tree::default();
    small::add_busybox(&mut tree)?;
    tree.program("lvm")?;
    for dir in ["dev", "proc", "sys", "mnt", "run/lock/lvm", "tmp"] {
        tree.dir(dir, 0o755);
    }
    tree.file("etc/lvm/lvm.conf", 0o644, small::LVM_CONF);
    tree.copy("bin/ledger", &program::ledger()?)?;
    tree.file("init", 0o755, include_str!("offline/init.sh"));
    tree.file("conf/modules", 0o644, MODULES.join("\n") + "\n");
    Modules::of(kernel)?.add_to(&mut tree, MODULES)?;
    let name = format!("verifier/initrd-{}", &tree.hash().to_hex()[..16]);
    let path = cache::entry(&name, |path| Ok(fs::write(path, tree.initrd()?)?))?;
    super::forget_old(&path, "initrd-")?;
    Ok(path)
}
