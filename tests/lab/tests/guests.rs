//! The guests boot, are reached, and their ledgers notice what they must.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use lab::{
    Format,
    guest::{
        Content, DiskFile, GuestOptions, LedgerOptions, Machine, Qemu, STOP_LEDGER, Start,
        Witnessed, Writes, debian, small, verify_offline,
    },
    ledger::{Alarm, Problem, Verdict, Witness},
};

const PATIENCE: Duration = Duration::from_secs(300);

/// 96 MiB and an odd number of sectors.
const ODD: u64 = (96 << 20) + 37 * 512;

/// A witness on this machine's loopback, which guests reach by QEMU's own network.
struct Scene {
    dir: tempfile::TempDir,
    witness: Witness,
}

impl Scene {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        let witness = Witness::listen(address, &dir.path().join("witness"))?;
        Ok(Self { dir, witness })
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
    fn wait_for_records(&self, more: usize) {
        let wanted = self.witness.records() + more;
        while self.witness.records() < wanted {
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn verify(&self, disks: &[DiskFile]) -> Result<Verdict> {
        let file = self.path("witness");
        verify_offline(disks, Some(Witnessed { file: &file, vm: None }))
    }
}

#[test]
fn the_small_guest_is_a_real_one() -> Result<()> {
    let scene = Scene::new()?;
    let options = GuestOptions::new("small1")
        .with_swap()
        .data(ODD, Content::Ext4, Format::Raw)
        .data(ODD + 512, Content::LvmXfs, Format::Qcow2);
    let disks = small::build()?.clone_to(scene.dir.path(), &options)?;
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
        .data(ODD, Content::Xfs, Format::Raw);
    let disks = small::build()?.clone_to(scene.dir.path(), &options)?;
    for boot in 0..3 {
        let qemu = scene.boot(&disks, &format!("console{boot}"))?;
        scene.wait_for_records(100);
        qemu.cut()?;
    }
    let verdict = scene.verify(&disks)?;
    assert!(verdict.ok, "{verdict}");
    assert_eq!(verdict.ledgers.len(), 3);
    assert!(verdict.ledgers.iter().all(|ledger| ledger.runs.len() == 3), "{verdict}");
    assert!(verdict.ledgers.iter().all(|ledger| ledger.blocks_durable > 0), "{verdict}");
    assert!(verdict.witness.is_some_and(|witness| witness.acknowledged >= 300));
    assert_eq!(scene.witness.alarms(), []);

    // The same from inside, and after an orderly end.
    let mut qemu = scene.boot(&disks, "console")?;
    let ssh = qemu.ssh()?;
    ssh.wait(PATIENCE)?;
    ssh.run(STOP_LEDGER)?;
    let dirs = "/var/lib/ledger,/data1/ledger,/data2/ledger";
    let verify = format!("ledger verify --dir {dirs} --witness-file - --vm cut");
    let answer = ssh.answer(&verify, &fs::read(scene.path("witness"))?)?;
    let verdict: Verdict = serde_json::from_str(&answer.stdout).context(answer.stderr)?;
    assert!(verdict.ok && answer.code == 0, "{verdict}");
    ssh.run("poweroff")?;
    qemu.wait(PATIENCE)
}

#[test]
fn damage_to_a_disk_is_reported() -> Result<()> {
    let scene = Scene::new()?;
    let options = GuestOptions::new("damaged")
        .ledger(LedgerOptions { random_rate: 1 << 20, ..scene.ledger() })
        .data(ODD, Content::Ext4, Format::Raw);
    let disks = small::build()?.clone_to(scene.dir.path(), &options)?;
    let mut qemu = scene.boot(&disks, "console")?;
    scene.wait_for_records(60);
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

    // The last acknowledged record dropped: nothing is wrong with the chain itself.
    let records = lab::ledger::Chain::parse(&chain).records.len();
    let shorter = (1..).map(|cut| &chain[..chain.len() - cut]);
    let shorter = shorter
        .into_iter()
        .find(|bytes| {
            let chain = lab::ledger::Chain::parse(bytes);
            chain.records.len() == records - 1 && chain.torn_tail == 0
        })
        .context("a chain has a last record")?;
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
    let disks = small::build()?.clone_to(scene.dir.path(), &options)?;
    let first = scene.boot(&disks, "console1")?;
    scene.wait_for_records(20);
    first.cut()?;
    let copy = scene.path("copy.raw");
    fs::copy(&disks[0].path, &copy)?;
    let copies = [DiskFile { path: copy, ..disks[0].clone() }];
    let _left = scene.boot(&disks, "console2")?;
    let _right = scene.boot(&copies, "console3")?;
    while scene.witness.alarms().is_empty() {
        thread::sleep(Duration::from_millis(50));
    }
    let alarms = scene.witness.alarms();
    assert!(
        matches!(alarms[0], Alarm::TwoRecords { .. } | Alarm::RunsOverlap { .. }),
        "{alarms:?}"
    );
    Ok(())
}

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

#[test]
fn the_debian_guest_is_a_real_one() -> Result<()> {
    let scene = Scene::new()?;
    let start = std::time::Instant::now();
    let image = debian::build()?;
    eprintln!("built in {:?}", start.elapsed());
    let start = std::time::Instant::now();
    let disks = image.clone_to(scene.dir.path(), &debian::usual("web-1").ledger(scene.ledger()))?;
    eprintln!("cloned in {:?}", start.elapsed());
    let machine =
        Machine { start: Start::Disk, disks: &disks, writes: Writes::Keep, memory_mib: 1024, vcpus: 2 };
    let qemu = Qemu::start(&machine, &scene.path("console"))?;
    let ssh = qemu.ssh()?;
    let r = ssh.wait(PATIENCE);
    if r.is_err() { eprintln!("{}", qemu.console()); }
    eprintln!("ssh {:?}", r?);
    eprintln!("{}", ssh.run("systemctl is-system-running --wait; systemctl --failed; mount; df -h; swapon; lvs; pvs; vgck -v; ls -la /srv/ledger /var/lib/ledger; systemd-analyze; systemd-analyze blame|head; free -m; ip a; systemctl status ledger; networkctl")?);
    eprintln!("{}", qemu.ssh()?.user("ops").run("sudo -n id")?);
    scene.wait_for_records(50);
    qemu.cut()?;
    let verdict = scene.verify(&disks)?;
    assert!(verdict.ok, "{verdict}");
    eprintln!("{verdict}");
    Ok(())
}
