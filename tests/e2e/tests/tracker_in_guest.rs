//! The tracker against a stock kernel: `track-selftest` as the init of a guest of four disks.
//!
//! Controls that must lose data stand beside the tests that must not: a guest in which a broken
//! tracker passes would prove nothing about a whole one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, thread};

use anyhow::{Context, Result, bail};
use lab::kernel::{Kernel, debian_cloud};
use lab::run::run;
use tempfile::TempDir;

/// Name, size and file system. Sizes off the block, and one off the page.
const DISKS: [(&str, u64, &str); 4] = [
    ("vda", (160 << 20) + 5 * 512, "ext4"),
    ("vdb", (320 << 20) + (12 << 10), "xfs"),
    ("sda", (96 << 20) + (4 << 10), "ext4"),
    ("nvme0n1", 128 << 20, "ext4+discard"),
];

/// For discards and zeroes of gigabytes.
const RAW: (&str, u64) = ("vdc", 8 << 30);

const MODULES: [&str; 7] =
    ["virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "nvme", "ext4", "xfs"];

/// Hangs end here; a boot with its runs takes one to five minutes without KVM.
const PATIENCE: Duration = Duration::from_secs(1200);

#[test]
fn bpf_names_every_write_of_four_busy_disks() {
    let verdicts = boot(&["tracker=bpf", "runs=5"], &Disks::plain()).unwrap();
    verdicts.expect_count(5 * DISKS.len());
    for verdict in &verdicts.0 {
        assert_eq!(verdict.bad_pages, 0, "{verdict:?}");
        assert!(verdict.audits.iter().all(|audit| !audit.contains("doubt")), "{verdict:?}");
        assert!(verdict.written > 0, "{verdict:?}");
    }
}

#[test]
fn bpf_marks_long_discards_and_zeroes_exactly() {
    let console = boot_console(&["tracker=bpf", "runs=0"], &Disks { raw: true, ..Disks::plain() });
    assert_eq!(console.unwrap().matches("TRACK raw ").count(), 14);
}

#[test]
fn the_audit_makes_up_for_lost_completions() {
    let verdicts = boot(&["drop=16,0", "runs=4"], &Disks::plain()).unwrap();
    verdicts.expect_count(4 * DISKS.len());
    assert!(verdicts.0.iter().all(|verdict| verdict.bad_pages == 0), "{verdicts:?}");
    assert!(verdicts.any_audit("remarked"), "no audit noticed a loss: {verdicts:?}");
}

#[test]
fn losing_completions_and_issues_ends_in_a_doubt_and_a_rescan() {
    let verdicts = boot(&["drop=16,16", "runs=2"], &Disks::plain()).unwrap();
    verdicts.expect_count(2 * DISKS.len());
    assert!(verdicts.0.iter().all(|verdict| verdict.bad_pages == 0), "{verdicts:?}");
    assert!(verdicts.any_audit("doubt:Unbalanced"), "{verdicts:?}");
}

#[test]
fn without_the_audit_lost_completions_are_lost_data() {
    let verdicts = boot(&["drop=16,0", "audit=no", "runs=4"], &Disks::plain()).unwrap();
    assert!(verdicts.bad_pages() > 0, "the control lost nothing: {verdicts:?}");
}

#[test]
fn issue_marks_alone_lose_data_and_no_audit_sees_it() {
    let slow = Disks { throttled: true, ..Disks::plain() };
    let verdicts = boot(&["tracker=issue-only", "runs=4"], &slow).unwrap();
    assert!(verdicts.bad_pages() > 0, "the control lost nothing: {verdicts:?}");
    assert!(!verdicts.any_audit("doubt"), "{verdicts:?}");
}

#[test]
fn bpf_names_every_write_of_slow_disks() {
    let slow = Disks { throttled: true, ..Disks::plain() };
    let verdicts = boot(&["tracker=bpf", "runs=4"], &slow).unwrap();
    verdicts.expect_count(4 * DISKS.len());
    assert_eq!(verdicts.bad_pages(), 0, "{verdicts:?}");
    assert!(!verdicts.any_audit("doubt"), "{verdicts:?}");
}

#[test]
fn a_passthrough_write_is_doubted_and_made_up_for() {
    let verdicts = boot(&["tracker=bpf", "runs=2", "passthrough=sda"], &Disks::plain()).unwrap();
    verdicts.expect_count(2 * DISKS.len());
    assert_eq!(verdicts.bad_pages(), 0, "{verdicts:?}");
    for verdict in &verdicts.0 {
        let doubted = verdict.audits.iter().any(|audit| audit == "quiesced:doubt:Passthrough");
        assert_eq!(doubted, verdict.disk == "sda", "{verdict:?}");
    }
}

#[test]
fn rescan_needs_no_tracking() {
    let verdicts = boot(&["tracker=rescan", "runs=2"], &Disks::plain()).unwrap();
    verdicts.expect_count(2 * DISKS.len());
    assert_eq!(verdicts.bad_pages(), 0, "{verdicts:?}");
    assert!(verdicts.0.iter().all(|verdict| verdict.written > 0), "{verdicts:?}");
}

#[derive(Clone, Copy)]
struct Disks {
    throttled: bool,
    raw: bool,
}

impl Disks {
    fn plain() -> Self {
        Self { throttled: false, raw: false }
    }
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

fn boot(arguments: &[&str], disks: &Disks) -> Result<Verdicts> {
    let console = boot_console(arguments, disks)?;
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
fn boot_console(arguments: &[&str], disks: &Disks) -> Result<String> {
    let kernel = debian_cloud()?;
    let dir = tempfile::tempdir()?;
    let initramfs = initramfs(&kernel, dir.path())?;
    let mut append = String::from("console=ttyS0 quiet panic=-1 --");
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
    for (name, size, file_system) in DISKS {
        attach(&mut qemu, dir.path(), name, size, disks)?;
        make_file_system(&dir.path().join(name), file_system)?;
        append.push_str(&format!(" disk={name},{file_system}"));
    }
    if disks.raw {
        attach(&mut qemu, dir.path(), RAW.0, RAW.1, disks)?;
        append.push_str(&format!(" raw={}", RAW.0));
    }
    qemu.arg("-append").arg(&append);
    let console = to_its_end(&mut qemu, &dir)?;
    if !console.contains("TRACK selftest ended") {
        bail!("the guest did not end well:\n{console}");
    }
    Ok(console)
}

fn attach(qemu: &mut Command, dir: &Path, name: &str, size: u64, disks: &Disks) -> Result<()> {
    let image = dir.join(name);
    File::create(&image)?.set_len(size)?;
    let throttle = if disks.throttled { ",throttling.iops-write=60" } else { "" };
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

fn make_file_system(image: &Path, file_system: &str) -> Result<()> {
    let mut make = match file_system {
        "xfs" => Command::new("mkfs.xfs"),
        _ => Command::new("mkfs.ext4"),
    };
    run(make.arg("-q").arg(image)).map(drop)
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
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let target_dir =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    run(Command::new(env!("CARGO"))
        .args(["build", "--locked", "--profile", "lab", "--target", TARGET])
        .args(["-p", "track", "--example", "track-selftest", "--features", "fault-injection"])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_TARGET_DIR", &target_dir)
        .current_dir(workspace))?;
    Ok(target_dir.join(TARGET).join("lab/examples/track-selftest"))
}
