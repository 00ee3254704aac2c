//! The tracker against a stock kernel: `track-selftest` as the init of a guest of four disks.
//!
//! Controls that must lose data stand beside the tests that must not: a guest in which a broken
//! tracker passes would prove nothing about a whole one.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, thread};

use anyhow::{Context, Result, bail};
use lab::kernel::{Kernel, debian_cloud};
use lab::run::run;
use tempfile::TempDir;

/// Sizes off the block, and one off the page; one file system lies on a partition.
const DISKS: [Disk; 4] = [
    Disk { name: "vda", size: (96 << 20) + 5 * 512, mounted: "vda", file_system: "ext4" },
    // About the least that mkfs.xfs takes.
    Disk { name: "vdb", size: (304 << 20) + (12 << 10), mounted: "vdb", file_system: "xfs" },
    Disk { name: "sda", size: (80 << 20) + (4 << 10), mounted: "sda1", file_system: "ext4" },
    Disk { name: "nvme0n1", size: 64 << 20, mounted: "nvme0n1", file_system: "ext4+discard" },
];

struct Disk {
    name: &'static str,
    size: u64,
    mounted: &'static str,
    file_system: &'static str,
}

const PARTITION_OFFSET: u64 = 1 << 20;

/// For discards and zeroes of gigabytes.
const RAW: (&str, u64) = ("vdc", 8 << 30);

const MODULES: [&str; 7] =
    ["virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "nvme", "ext4", "xfs"];

/// Hangs end here; a boot with its runs takes one to five minutes without KVM.
const PATIENCE: Duration = Duration::from_secs(1200);

/// How often each guest freezes and compares. `TRACKER_RUNS=100` for a night.
fn runs(least: usize) -> usize {
    env::var("TRACKER_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(least)
}

#[test]
fn bpf_names_every_write_of_four_busy_disks() {
    let runs = runs(3);
    let verdicts = boot(&["tracker=bpf"], runs, Hardware::default()).unwrap();
    verdicts.expect_count(runs * DISKS.len());
    for verdict in &verdicts.0 {
        assert_eq!(verdict.bad_pages, 0, "{verdict:?}");
        assert!(verdict.audits.iter().all(|audit| !audit.contains("doubt")), "{verdict:?}");
        assert!(verdict.written > 0, "{verdict:?}");
    }
}

#[test]
fn bpf_marks_long_discards_and_zeroes_exactly() {
    let console = boot_console(&["tracker=bpf"], 0, Hardware { raw: true, ..Hardware::default() });
    assert_eq!(console.unwrap().matches("TRACK raw ").count(), 14);
}

#[test]
fn the_audit_makes_up_for_lost_completions() {
    let runs = runs(2);
    let verdicts = boot(&["drop=16,0"], runs, Hardware::default()).unwrap();
    verdicts.expect_count(runs * DISKS.len());
    assert!(verdicts.0.iter().all(|verdict| verdict.bad_pages == 0), "{verdicts:?}");
    assert!(verdicts.any_audit("remarked"), "no audit noticed a loss: {verdicts:?}");
}

#[test]
fn losing_completions_and_issues_ends_in_a_doubt_and_a_rescan() {
    let runs = runs(1);
    let verdicts = boot(&["drop=16,16"], runs, Hardware::default()).unwrap();
    verdicts.expect_count(runs * DISKS.len());
    assert!(verdicts.0.iter().all(|verdict| verdict.bad_pages == 0), "{verdicts:?}");
    assert!(verdicts.any_audit("doubt:Unbalanced"), "{verdicts:?}");
}

#[test]
fn without_the_audit_lost_completions_are_lost_data() {
    let runs = runs(2);
    let verdicts = boot(&["drop=16,0", "audit=no"], runs, Hardware::default()).unwrap();
    assert!(verdicts.bad_pages() > 0, "the control lost nothing: {verdicts:?}");
}

#[test]
fn issue_marks_alone_lose_data_and_no_audit_sees_it() {
    let runs = runs(2);
    let slow = Hardware { throttled: true, ..Hardware::default() };
    let verdicts = boot(&["tracker=issue-only"], runs, slow).unwrap();
    assert!(verdicts.bad_pages() > 0, "the control lost nothing: {verdicts:?}");
    assert!(!verdicts.any_audit("doubt"), "{verdicts:?}");
}

#[test]
fn bpf_names_every_write_of_slow_disks() {
    let runs = runs(2);
    let slow = Hardware { throttled: true, ..Hardware::default() };
    let verdicts = boot(&["tracker=bpf"], runs, slow).unwrap();
    verdicts.expect_count(runs * DISKS.len());
    assert_eq!(verdicts.bad_pages(), 0, "{verdicts:?}");
    assert!(!verdicts.any_audit("doubt"), "{verdicts:?}");
}

#[test]
fn a_passthrough_write_is_doubted_and_made_up_for() {
    let runs = runs(1);
    let verdicts = boot(&["tracker=bpf", "passthrough=sda"], runs, Hardware::default()).unwrap();
    verdicts.expect_count(runs * DISKS.len());
    assert_eq!(verdicts.bad_pages(), 0, "{verdicts:?}");
    for verdict in &verdicts.0 {
        let doubted = verdict.audits.iter().any(|audit| audit == "quiesced:doubt:Passthrough");
        assert_eq!(doubted, verdict.disk == "sda", "{verdict:?}");
    }
}

#[test]
fn rescan_needs_no_tracking() {
    let runs = runs(1);
    let verdicts = boot(&["tracker=rescan"], runs, Hardware::default()).unwrap();
    verdicts.expect_count(runs * DISKS.len());
    assert_eq!(verdicts.bad_pages(), 0, "{verdicts:?}");
    assert!(verdicts.0.iter().all(|verdict| verdict.written > 0), "{verdicts:?}");
}

#[derive(Clone, Copy, Default)]
struct Hardware {
    /// Disks of 60 writes a second: a read easily falls between issue and landing.
    throttled: bool,
    /// One more disk, without a file system.
    raw: bool,
}

#[derive(Debug)]
struct Verdict {
    disk: String,
    bad_pages: u64,
    written: u64,
    audits: Vec<String>,
}

#[derive(Debug)]
struct Verdicts(Vec<Verdict>);

impl Verdicts {
    fn expect_count(&self, count: usize) {
        assert_eq!(self.0.len(), count, "runs are missing: {self:?}");
    }

    fn bad_pages(&self) -> u64 {
        self.0.iter().map(|verdict| verdict.bad_pages).sum()
    }

    fn any_audit(&self, wanted: &str) -> bool {
        self.0.iter().flat_map(|verdict| &verdict.audits).any(|audit| audit.contains(wanted))
    }
}

fn boot(arguments: &[&str], runs: usize, hardware: Hardware) -> Result<Verdicts> {
    let console = boot_console(arguments, runs, hardware)?;
    let lines = console.lines().filter_map(|line| line.split_once("TRACK verdict "));
    lines.map(|(_, fields)| verdict(fields)).collect::<Result<_>>().map(Verdicts)
}

fn verdict(fields: &str) -> Result<Verdict> {
    let field = |name: &str| {
        let found = fields.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        found.map(|value| value.trim().to_owned()).with_context(|| format!("no {name}: {fields}"))
    };
    Ok(Verdict {
        disk: field("disk")?,
        bad_pages: field("bad_pages")?.parse()?,
        written: field("written")?.parse()?,
        audits: field("audits")?.split(',').map(str::to_owned).collect(),
    })
}

/// Boots the guest to its end and returns what it said. An error when it did not end well.
fn boot_console(arguments: &[&str], runs: usize, hardware: Hardware) -> Result<String> {
    let kernel = debian_cloud()?;
    let dir = tempfile::tempdir()?;
    let initramfs = initramfs(&kernel, dir.path())?;
    let mut append = format!("console=ttyS0 quiet panic=-1 -- runs={runs}");
    for argument in arguments {
        append.push_str(&format!(" {argument}"));
    }
    // Ends with the test, however that ends.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1536"])
        .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .args(["-device", "virtio-scsi-pci,id=scsi"])
        .arg("-kernel")
        .arg(&kernel.vmlinuz)
        .arg("-initrd")
        .arg(initramfs);
    for disk in DISKS {
        attach(&mut qemu, dir.path(), disk.name, disk.size, hardware)?;
        make_file_system(&dir.path().join(disk.name), &disk)?;
        append.push_str(&format!(" disk={}:{},{}", disk.name, disk.mounted, disk.file_system));
    }
    if hardware.raw {
        attach(&mut qemu, dir.path(), RAW.0, RAW.1, hardware)?;
        append.push_str(&format!(" raw={}", RAW.0));
    }
    qemu.arg("-append").arg(&append);
    let console = to_its_end(&mut qemu, &dir)?;
    if !console.contains("TRACK selftest ended") {
        bail!("the guest did not end well:\n{console}");
    }
    Ok(console)
}

fn attach(qemu: &mut Command, dir: &Path, name: &str, size: u64, hardware: Hardware) -> Result<()> {
    let image = dir.join(name);
    File::create(&image)?.set_len(size)?;
    let throttle = if hardware.throttled { ",throttling.iops-write=60" } else { "" };
    let device = match name {
        "sda" => "scsi-hd,bus=scsi.0",
        "nvme0n1" => "nvme,serial=track",
        _ => "virtio-blk-pci",
    };
    qemu.arg("-drive").arg(format!(
        "id={name},if=none,format=raw,cache=unsafe,discard=unmap,file={}{throttle}",
        image.display()
    ));
    qemu.arg("-device").arg(format!("{device},drive={name}"));
    Ok(())
}

fn make_file_system(image: &Path, disk: &Disk) -> Result<()> {
    let mut make = match disk.file_system {
        "xfs" => Command::new("mkfs.xfs"),
        _ => Command::new("mkfs.ext4"),
    };
    make.arg("-q");
    if disk.mounted == disk.name {
        return run(make.arg(image)).map(drop);
    }
    let sectors = (disk.size - PARTITION_OFFSET) / 512;
    File::options().write(true).open(image)?.write_all_at(&partition_table(sectors)?, 0)?;
    make.args(["-E", &format!("offset={PARTITION_OFFSET}")]);
    run(make.arg(image).arg(format!("{sectors}s"))).map(drop)
}

/// An MBR with one Linux partition.
fn partition_table(sectors: u64) -> Result<[u8; 512]> {
    let mut table = [0; 512];
    table[450] = 0x83;
    table[454..458].copy_from_slice(&u32::try_from(PARTITION_OFFSET / 512)?.to_le_bytes());
    table[458..462].copy_from_slice(&u32::try_from(sectors)?.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(table)
}

fn to_its_end(qemu: &mut Command, dir: &TempDir) -> Result<String> {
    let console = dir.path().join("console");
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(File::create(&console)?)
        .spawn()
        .context("cannot run qemu-system-x86_64")?;
    let pause = Duration::from_millis(200);
    let mut waited = Duration::ZERO;
    while child.try_wait()?.is_none() {
        thread::sleep(pause);
        waited += pause;
        if waited > PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!("the guest hangs:\n{}", String::from_utf8_lossy(&fs::read(&console)?));
        }
    }
    let console = String::from_utf8_lossy(&fs::read(&console)?).into_owned();
    if let Some(folder) = env::var_os("TRACKER_CONSOLES") {
        let name = thread::current().name().unwrap_or("guest").replace("::", "-");
        fs::write(PathBuf::from(folder).join(name), &console)?;
    }
    Ok(console)
}

/// The selftest as /init, busybox, and the modules that the disks need.
fn initramfs(kernel: &Kernel, dir: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    fs::create_dir_all(root.join("bin"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static is missing")?;
    fs::copy(selftest()?, root.join("init"))?;

    let modules = root.join("lib/modules").join(&kernel.version);
    let dependencies = fs::read_to_string(kernel.modules_dir.join("modules.dep"))?;
    // Not those that are built in.
    let loaded = MODULES.iter().filter(|name| !files_of(name, &dependencies).is_empty());
    fs::write(root.join("modules"), loaded.copied().collect::<Vec<_>>().join("\n"))?;
    for path in MODULES.iter().flat_map(|name| files_of(name, &dependencies)) {
        let to = modules.join(path);
        fs::create_dir_all(to.parent().context("modules lie in folders")?)?;
        fs::copy(kernel.modules_dir.join(path), to)?;
    }
    fs::copy(kernel.modules_dir.join("modules.dep"), modules.join("modules.dep"))?;

    let archive = dir.join("initramfs");
    let pack = format!("find . | busybox cpio -o -H newc > {}", archive.display());
    run(Command::new("sh").args(["-c", &pack]).current_dir(&root))?;
    Ok(archive)
}

/// A module's file and those it depends on; nothing for one that is built in.
fn files_of<'a>(name: &str, dependencies: &'a str) -> Vec<&'a str> {
    let file = format!("/{name}.ko");
    let line = dependencies.lines().find_map(|line| {
        let (path, needs) = line.split_once(':')?;
        path.ends_with(&file).then_some((path, needs))
    });
    line.into_iter()
        .flat_map(|(path, needs)| std::iter::once(path).chain(needs.split_ascii_whitespace()))
        .collect()
}

/// Builds the selftest, once per run of the tests.
fn selftest() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_selftest().map_err(|error| format!("{error:#}")));
    built.as_deref().map_err(|text| anyhow::anyhow!("{text}"))
}

fn build_selftest() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let target_dir =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    // Static, as all that runs in guests (.cargo/link-static.sh).
    run(Command::new(env!("CARGO"))
        .args(["build", "--locked", "--profile", "lab"])
        .args(["-p", "track", "--example", "track-selftest", "--features", "fault-injection"])
        .env("CARGO_TARGET_DIR", &target_dir)
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER")
        .current_dir(workspace))?;
    Ok(target_dir.join("lab/examples/track-selftest"))
}
