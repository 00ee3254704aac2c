//! The guests boot, are reached, and their ledgers notice what they must.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lab::{
    Boot, Format, Lab, VmSpec,
    guest::{
        Content, DiskFile, GuestOptions, LedgerOptions, Machine, Qemu, START_LEDGER, STOP_LEDGER,
        Ssh, Start, Witnessed, Writes, debian, small, verify_inside, verify_offline,
    },
    ledger::{Alarm, Chain, Problem, Verdict, Witness},
};

/// Long: a test is not to fail because the machine is busy.
const PATIENCE: Duration = Duration::from_secs(900);

/// 96 MiB and an odd number of sectors.
const ODD: u64 = (96 << 20) + 37 * 512;

/// A witness on this machine's loopback, which guests reach by QEMU's own network.
struct Scene {
    dir: tempfile::TempDir,
    notes: PathBuf,
    witness: Witness,
}

impl Scene {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        let notes = dir.path().join("witness");
        let witness = Witness::listen(address, &notes)?;
        Ok(Self { dir, notes, witness })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ledger(&self) -> LedgerOptions {
        let port = self.witness.addresses()[0].port();
        LedgerOptions::new(SocketAddr::from(([10, 0, 2, 2], port)))
    }

    fn boot(&self, disks: &[DiskFile], console: &str) -> Result<Qemu> {
        let (start, writes) = (Start::Disk, Writes::Keep);
        let machine = Machine { start, disks, writes, memory_mib: 256, vcpus: 1 };
        Qemu::start(&machine, &self.path(console))
    }

    /// Waits until the witness has heard of `more` records from now on.
    fn wait_for_records(&self, more: usize) -> Result<()> {
        let wanted = self.witness.records() + more;
        wait_until(|| self.witness.records() >= wanted)
    }

    fn verify(&self, disks: &[DiskFile]) -> Result<Verdict> {
        verify_offline(disks, Some(self.witnessed()))
    }

    fn witnessed(&self) -> Witnessed<'_> {
        Witnessed { file: &self.notes, vm: None }
    }
}

#[test]
fn the_small_guest_is_a_real_one() -> Result<()> {
    let scene = Scene::new()?;
    let options = GuestOptions::new("small1")
        .with_swap()
        .data(ODD, Content::Ext4, Format::Raw)
        .data(ODD + 512, Content::LvmXfs, Format::Qcow2);
    let disks = small::build(&options)?.clone_to(scene.dir.path(), &options)?;
    let mut qemu = scene.boot(&disks, "console")?;
    let ssh = qemu.ssh()?;
    ssh.wait(PATIENCE)?;
    assert_eq!(ssh.run("hostname")?, "small1\n");
    let mounts = ssh.run("cat /proc/mounts")?;
    for mount in
        ["/dev/vda1 / ext4", "/dev/vdb /data1 ext4", "/dev/vg_small1_data2/data /data2 xfs"]
    {
        assert!(mounts.contains(mount), "{mounts}");
    }
    assert!(ssh.run("cat /proc/swaps")?.contains("/dev/vda2"));
    assert_eq!(
        ssh.run("blockdev --getsize64 /dev/vdb; blockdev --getsize64 /dev/vdc")?,
        format!("{ODD}\n{}\n", ODD + 512)
    );
    assert_eq!(
        ssh.run("test -r /sys/kernel/btf/vmlinux && test -d /sys/fs/bpf && echo yes")?,
        "yes\n"
    );
    let ops = qemu.ssh()?.user("ops");
    assert_eq!(ops.run("id -un")?, "ops\n");
    ssh.run("poweroff")?;
    qemu.wait(PATIENCE)
}

#[test]
fn power_cuts_lose_nothing_that_was_acknowledged() -> Result<()> {
    let scene = Scene::new()?;
    let options = GuestOptions::new("cut")
        .ledger(scene.ledger())
        .data(ODD, Content::Ext4, Format::Qcow2)
        .data(ODD, Content::LvmXfs, Format::Raw);
    let disks = small::build(&options)?.clone_to(scene.dir.path(), &options)?;
    for boot in 0..3 {
        let qemu = scene.boot(&disks, &format!("console{boot}"))?;
        scene.wait_for_records(100)?;
        qemu.cut()?;
    }
    let verdict = scene.verify(&disks)?;
    assert!(verdict.ok, "{verdict}");
    assert_eq!(verdict.ledgers.len(), 3);
    assert!(verdict.ledgers.iter().all(|ledger| ledger.runs.len() == 3), "{verdict}");
    assert!(verdict.ledgers.iter().all(|ledger| ledger.blocks_durable > 0), "{verdict}");
    assert!(verdict.witness.is_some_and(|witness| witness.acknowledged >= 300));
    assert_eq!(scene.witness.alarms(), []);

    // The same from inside, while it goes on writing.
    let qemu = scene.boot(&disks, "console")?;
    let ssh = qemu.ssh()?;
    ssh.wait(PATIENCE)?;
    let verdict = verify_inside(&ssh, Some(scene.witnessed()))?;
    assert!(verdict.ok, "{verdict}");
    assert!(verdict.ledgers.iter().all(|ledger| ledger.runs.len() == 4), "{verdict}");

    ssh.run(STOP_LEDGER)?;
    let before = scene.witness.records();
    assert_eq!(ssh.answer("pidof ledger", b"")?.stdout, "");
    ssh.run(START_LEDGER)?;
    scene.wait_for_records(30)?;
    assert!(scene.witness.records() > before);
    assert_eq!(scene.witness.alarms(), []);
    Ok(())
}

#[test]
fn damage_to_a_disk_is_reported() -> Result<()> {
    let scene = Scene::new()?;
    let options = GuestOptions::new("damaged")
        .ledger(LedgerOptions { random_rate: 1 << 20, ..scene.ledger() })
        .data(ODD, Content::Ext4, Format::Raw);
    let disks = small::build(&options)?.clone_to(scene.dir.path(), &options)?;
    let mut qemu = scene.boot(&disks, "console")?;
    scene.wait_for_records(60)?;
    let ssh = qemu.ssh()?;
    ssh.wait(PATIENCE)?;
    ssh.run("poweroff")?;
    qemu.wait(PATIENCE)?;
    assert!(scene.verify(&disks)?.ok);

    let data = &disks[1].path;
    let chain = read_from_ext4(data, "/ledger/chain.ledger", &scene.path("chain"))?;

    // A record changed in the middle.
    let mut changed = chain.clone();
    changed[chain.len() / 2] ^= 1;
    write_to_ext4(data, "/ledger/chain.ledger", &changed, &scene.path("changed"))?;
    let problems = scene.verify(&disks)?.problems;
    assert!(problems.iter().any(|it| matches!(it, Problem::Broken { .. })), "{problems:?}");

    // The last records dropped, acknowledged ones among them (the very last may not have reached the
    // witness before the power went): nothing is wrong with the chain itself.
    let records = Chain::parse(&chain).records.len();
    let shorter = (1..).map(|cut| &chain[..chain.len() - cut]);
    let shorter = shorter
        .into_iter()
        .find(|bytes| {
            let chain = Chain::parse(bytes);
            chain.records.len() == records - 10 && chain.torn_tail == 0
        })
        .context("a chain has ten records")?;
    write_to_ext4(data, "/ledger/chain.ledger", shorter, &scene.path("shorter"))?;
    assert!(verify_offline(&disks, None)?.problems.iter().all(|problem| {
        // Its neighbour on the other disk may have seen the record.
        matches!(problem, Problem::Contradiction { .. })
    }));
    let problems = scene.verify(&disks)?.problems;
    assert!(problems.iter().any(|it| matches!(it, Problem::Missing { .. })), "{problems:?}");

    // A random file put back to its beginning.
    write_to_ext4(data, "/ledger/chain.ledger", &chain, &scene.path("whole"))?;
    let blank = vec![0; 2 << 20];
    write_to_ext4(data, "/ledger/random-0", &blank, &scene.path("blank"))?;
    let verdict = scene.verify(&disks)?;
    assert!(verdict.problems.iter().all(|it| matches!(it, Problem::Block { .. })), "{verdict}");
    assert!(!verdict.ok);
    Ok(())
}

#[test]
fn two_copies_at_once_raise_the_alarm() -> Result<()> {
    let scene = Scene::new()?;
    let options = GuestOptions::new("twin").ledger(scene.ledger());
    let disks = small::build(&options)?.clone_to(scene.dir.path(), &options)?;
    let first = scene.boot(&disks, "console1")?;
    scene.wait_for_records(20)?;
    first.cut()?;
    let copy = scene.path("copy.raw");
    fs::copy(&disks[0].path, &copy)?;
    let copies = [DiskFile { path: copy, ..disks[0].clone() }];
    let _left = scene.boot(&disks, "console2")?;
    let _right = scene.boot(&copies, "console3")?;
    wait_until(|| !scene.witness.alarms().is_empty())?;
    let alarms = scene.witness.alarms();
    assert!(
        matches!(alarms[0], Alarm::TwoRecords { .. } | Alarm::RunsOverlap { .. }),
        "{alarms:?}"
    );
    Ok(())
}

#[test]
#[ignore = "2 emulated minutes for the guest that `make demo` moves, in CI too; runs in `make more`"]
fn the_debian_guest_is_a_real_one() -> Result<()> {
    let scene = Scene::new()?;
    let options = debian::usual("web-1").ledger(scene.ledger());
    let disks = debian::build()?.clone_to(scene.dir.path(), &options)?;
    let (start, writes) = (Start::Disk, Writes::Keep);
    let machine = Machine { start, disks: &disks, writes, memory_mib: 1024, vcpus: 2 };
    let qemu = Qemu::start(&machine, &scene.path("console"))?;
    let ssh = qemu.ssh()?;
    ssh.wait(PATIENCE)?;
    assert_eq!(ssh.run("systemctl is-system-running --wait")?, "running\n");
    assert_eq!(ssh.run("hostname")?, "web-1\n");
    assert_eq!(ssh.run("findmnt --noheadings --output SOURCE,FSTYPE /")?.trim(), "/dev/vda1 ext4");
    let srv = ssh.run("findmnt --noheadings --output SOURCE,FSTYPE /srv")?;
    assert_eq!(srv.trim(), "/dev/mapper/vg_web_1_data1-data xfs");
    // Written here without LVM, so LVM itself is asked.
    ssh.run("vgck vg_web_1_data1 && pvck /dev/vdb")?;
    assert!(ssh.run("swapon --noheadings --show=NAME")?.contains("/dev/vda2"));
    assert_eq!(qemu.ssh()?.user("ops").run("sudo -n id -u")?, "0\n");
    ssh.run("update-grub 2>&1 && grep -q root=UUID= /boot/grub/grub.cfg")?;
    scene.wait_for_records(50)?;
    assert!(verify_inside(&ssh, Some(scene.witnessed()))?.ok);
    qemu.cut()?;
    let verdict = scene.verify(&disks)?;
    assert!(verdict.ok, "{verdict}");
    assert_eq!(verdict.ledgers.len(), 2);
    Ok(())
}

#[test]
fn a_guest_in_a_site_is_reached_by_its_operator_and_heard_by_the_witness() -> Result<()> {
    let lab = Lab::relay()?;
    let east = lab.site("east")?;
    let dir = tempfile::tempdir()?;
    let notes = dir.path().join("witness");
    let listener = lab.operator().listen(0)?;
    let address = SocketAddr::from((lab::OPERATOR, listener.local_addr()?.port()));
    let witness = Witness::start(vec![listener], &notes)?;

    let options = GuestOptions::new("web1").ledger(LedgerOptions::new(address)).data(
        ODD,
        Content::Xfs,
        Format::Qcow2,
    );
    let disks = small::build(&options)?.clone_to(dir.path(), &options)?;
    let spec = VmSpec::new("web1", Boot::Disk);
    let spec = disks.iter().fold(spec, |spec, disk| spec.disk(disk.into()));
    let vm = east.start(&spec)?;
    let ssh = Ssh::new(vm.address(east)?, |program| lab.operator().command(program))?;
    ssh.wait(PATIENCE)?;
    assert_eq!(ssh.run("hostname")?, "web1\n");
    wait_until(|| witness.records() >= 50)?;
    let verdict = verify_inside(&ssh, Some(Witnessed { file: &notes, vm: Some("web1") }))?;
    assert!(verdict.ok, "{verdict}");
    Ok(())
}

fn wait_until(happened: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        anyhow::ensure!(Instant::now() < deadline, "nothing happened in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// What `debugfs` reads from the ext4 that fills `image`.
fn read_from_ext4(image: &Path, path: &str, to: &Path) -> Result<Vec<u8>> {
    let dump = format!("dump {path} {}", to.display());
    Command::new("debugfs").arg("-R").arg(dump).arg(image).output()?;
    Ok(fs::read(to)?)
}

fn write_to_ext4(image: &Path, path: &str, bytes: &[u8], from: &Path) -> Result<()> {
    fs::write(from, bytes)?;
    for step in [format!("rm {path}"), format!("write {} {path}", from.display())] {
        Command::new("debugfs").args(["-w", "-R", &step]).arg(image).output()?;
    }
    Ok(())
}
