//! The guest: Debian, whose memory is full of programs, their data and files that were read. It is filled
//! once and saved, and every move begins with that.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::guest::{GuestOptions, Ssh, debian, load};
use lab::{Boot, Disk, Format, VmSpec};
use serde_json::Value;

use super::ground::{At, Ground, POOL};
use super::prober::Prober;
use crate::cli::Live;

pub const VM: &str = "web1";

/// Guests are emulated, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(600);

const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

const FILL: &str = "systemd-run --quiet --unit=words perl /root/work.pl && \
    systemd-run --quiet --unit=work sh -c 'exec python3 /root/work.py 0.1 /run/rate INDEX > /run/said' && \
    until grep -q ready /run/said; do systemctl is-active --quiet work || exit 1; sleep 1; done && \
    find /usr /var -xdev -type f | head -n 6000 | xargs -n 64 cat > /dev/null 2>&1; true";

pub struct Guest<'a> {
    ground: &'a Ground,
    address: Ipv4Addr,
    boot: String,
    /// Of files, so many MiB are in its index.
    index_mib: u32,
    /// Of its disk in the pool.
    name: String,
    definition: PathBuf,
    pub at: At,
    pub prober: Prober,
}

/// What libvirt says of a migration that has ended.
#[derive(Debug)]
pub struct Job {
    pub downtime_ms: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub rounds: Option<u64>,
}

impl<'a> Guest<'a> {
    pub fn start(ground: &'a Ground, order: &Live) -> Result<Self> {
        eprintln!("starting the guest (the first time its image takes some minutes)");
        let east = ground.site(At::East);
        let mut options = GuestOptions::new(VM);
        for (path, text) in [("/root/work.py", load::INDEX), ("/root/work.pl", load::WORDS)] {
            options.files.push((path.to_owned(), 0o644, text.as_bytes().to_vec()));
        }
        let disks = debian::build()?.clone_to(&east.pool_dir(), &options)?;
        let name = disks.first().and_then(|disk| disk.path.file_name()).context("a disk")?;
        let disk = format!("{POOL}/{}", name.to_string_lossy());
        let spec = VmSpec::new(VM, Boot::Disk).memory_mib(order.memory);
        let vm = east.start(&spec.disk(Disk::in_place(&disk, Format::Raw)))?;
        let address = vm.address(east)?;
        stretch_network(ground, address, vm.macs.first().context("a network card")?)?;
        let prober = Prober::start([east, ground.site(At::West)], address)?;
        let (boot, at, name) = (String::new(), At::East, name.to_string_lossy().into_owned());
        let definition = ground.scratch.join("guest.xml");
        let index_mib = (order.memory - 256) / 4;
        let mut guest = Self { ground, address, boot, index_mib, name, definition, at, prober };
        guest.fill()?;
        Ok(guest)
    }

    fn fill(&mut self) -> Result<()> {
        let ssh = self.ssh()?;
        ssh.wait(PATIENCE)?;
        eprintln!("filling its memory");
        ssh.run(&FILL.replace("INDEX", &self.index_mib.to_string()))?;
        self.boot = boot_id(&ssh)?;
        let east = self.ground.site(At::East);
        fs::write(&self.definition, east.virsh(&["dumpxml", "--inactive", VM])?)?;
        east.virsh(&["save", VM, &self.saved().display().to_string(), "--running"])?;
        let image = self.ground.site(At::East).pool_dir().join(&self.name);
        fs::rename(image, self.disk_then())?;
        Ok(())
    }

    fn saved(&self) -> PathBuf {
        self.ground.scratch.join("guest.saved")
    }

    /// The disk as it was when the guest was saved.
    fn disk_then(&self) -> PathBuf {
        self.ground.scratch.join("guest.raw")
    }

    /// As it was when it was saved, at east, and changing `rate` MiB a second, about.
    pub fn anew(&mut self, rate: f64) -> Result<()> {
        self.forget()?;
        let east = self.ground.site(At::East);
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--reflink=auto"]).arg(self.disk_then());
        lab::run::run(copy.arg(east.pool_dir().join(&self.name)))?;
        east.virsh(&["pool-refresh", "default"])?;
        east.virsh(&["define", &self.definition.display().to_string()])?;
        east.virsh(&["restore", &self.saved().display().to_string()])?;
        self.at = At::East;
        // Nobody writes for another.
        rustix::fs::syncfs(fs::File::open(&self.definition)?)?;
        self.has_arrived()?;
        self.ssh()?.run(&format!("echo {rate} > /run/rate"))?;
        Ok(())
    }

    /// Nothing of it is left at either site.
    fn forget(&self) -> Result<()> {
        for site in [At::East, At::West].map(|at| self.ground.site(at)) {
            for verb in ["destroy", "undefine"] {
                // What is not there cannot be ended.
                let _ = site.virsh(&[verb, VM]);
            }
            // Where it lives, as its agents keep it there.
            let table = site.virsh(&["secret-list"])?;
            // UUID and usage; virsh is quiet, and prints no headline.
            for uuid in table.lines().filter_map(|line| line.split_whitespace().next()) {
                site.virsh(&["secret-undefine", uuid])?;
            }
            for file in fs::read_dir(site.pool_dir())? {
                fs::remove_file(file?.path())?;
            }
            site.virsh(&["pool-refresh", "default"])?;
        }
        Ok(())
    }

    /// From the hypervisor that it runs on.
    fn ssh(&self) -> Result<Ssh<'a>> {
        let site = self.ground.site(self.at);
        Ssh::new(self.address, |program| site.command(program).expect("the site is up"))
    }

    /// MiB of its memory a second that are changed at least once, as QEMU finds by looking at every
    /// sixteenth page.
    pub fn changes(&self) -> Result<f64> {
        let ask = |command: &str| -> Result<Value> {
            let said = self.ground.site(self.at).virsh(&["qemu-monitor-command", VM, command])?;
            let answer: Value = serde_json::from_str(&said)?;
            Ok(answer["return"].clone())
        };
        ask(r#"{"execute":"calc-dirty-rate","arguments":{"calc-time":1,"sample-pages":16384}}"#)?;
        let began = Instant::now();
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let answer = ask(r#"{"execute":"query-dirty-rate"}"#)?;
            if let Some(rate) = answer["dirty-rate"].as_f64() {
                return Ok(rate);
            }
            ensure!(began.elapsed() < PATIENCE, "no rate: {answer}");
        }
    }

    pub fn disk_allocated_bytes(&self) -> Result<u64> {
        Ok(fs::metadata(self.disk_then())?.blocks() * 512)
    }

    /// Until libvirt says so there.
    pub fn runs_at(&mut self, at: At) -> Result<()> {
        let (began, site) = (Instant::now(), self.ground.site(at));
        while !site.is_running(VM)? {
            ensure!(began.elapsed() < PATIENCE, "it does not run at {}", at.name());
            std::thread::sleep(Duration::from_millis(20));
        }
        ensure!(!self.ground.site(at.other()).is_running(VM)?, "it runs at both");
        self.at = at;
        Ok(())
    }

    /// It goes on where it was: the same boot, and at work.
    pub fn has_arrived(&self) -> Result<()> {
        let began = self.prober.now();
        while !self.prober.has_heard_since(began) {
            let is_time = self.prober.now() - began < ANSWERS_WITHIN;
            ensure!(is_time, "it does not go on at {}: its console says why", self.at.name());
            std::thread::sleep(Duration::from_millis(20));
        }
        let ssh = self.ssh()?;
        ssh.wait(PATIENCE)?;
        ensure!(boot_id(&ssh)? == self.boot, "it did not move, it booted");
        ssh.run("systemctl is-active work words")?;
        Ok(())
    }

    /// Of the migration that brought it there.
    pub fn job(&self) -> Result<Job> {
        let said =
            self.ground.site(self.at).virsh(&["domjobinfo", VM, "--completed", "--rawstats"])?;
        Ok(Job {
            downtime_ms: field(&said, "downtime: "),
            memory_bytes: field(&said, "memory_processed: "),
            rounds: field(&said, "memory_iteration: "),
        })
    }
}

/// The guest keeps its address when it moves, and its gateway is where it is. What the path between the
/// sites needs is other addresses.
fn stretch_network(ground: &Ground, guest: Ipv4Addr, mac: &str) -> Result<()> {
    let (east, west) = (ground.site(At::East), ground.site(At::West));
    let bridge = lab::run::run(east.command("cat")?.arg("/sys/class/net/br0/address"))?;
    let (bridge, gateway) = (bridge.trim(), east.address());
    let lines = [
        (west, format!("link set br0 address {bridge}")),
        (west, format!("address add {gateway}/32 dev br0")),
        (west, format!("route add {guest}/32 dev br0 src {gateway}")),
        (west, format!("neighbour add {guest} lladdr {mac} dev br0 nud permanent")),
        (east, format!("neighbour replace {guest} lladdr {mac} dev br0 nud permanent")),
    ];
    for (site, line) in lines {
        lab::run::run(site.command("ip")?.args(line.split(' ')))?;
    }
    for site in [east, west] {
        // A bridge without any port has no carrier, and forgets whom it knows.
        for line in [
            "link add keep0 type veth peer name keep1",
            "link set keep1 up",
            "link set keep0 up master br0",
        ] {
            lab::run::run(site.command("ip")?.args(line.split(' ')))?;
        }
    }
    Ok(())
}

fn boot_id(ssh: &Ssh<'_>) -> Result<String> {
    ssh.run("cat /proc/sys/kernel/random/boot_id")
}

/// The value of the line that begins with `name`.
fn field<T: std::str::FromStr>(said: &str, name: &str) -> Option<T> {
    said.lines().find_map(|line| line.trim().strip_prefix(name)?.trim().parse().ok())
}
