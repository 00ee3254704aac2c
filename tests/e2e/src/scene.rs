//! A scene: sites east and west, the VM `web1` running and writing at east, an operator who can
//! reach both.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::guest::{
    Content, DiskFile, GuestOptions, Keys, LedgerOptions, Ssh, Witnessed, debian, small,
};
use lab::ledger::Witness;
use lab::{Boot, Builder, Disk, Firmware, Format, Lab, OPERATOR, Site, Vm, VmSpec};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Gate, Programs, images};

/// The VM's name.
pub const VM: &str = "web1";

/// Guests without hardware acceleration on a busy machine; nothing is asserted about it.
const PATIENCE: Duration = Duration::from_secs(240);
const WITNESS_PORT: u16 = 7117;

/// Which guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guest {
    /// Busybox; boots in seconds.
    #[default]
    Small,
    /// Debian 12 with systemd; LVM and XFS on the second disk, swap.
    Debian,
}

/// Which way it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    EastToWest,
    WestToEast,
}

/// What the guest is like.
#[derive(Clone, Debug)]
pub struct SceneOptions {
    pub guest: Guest,
    /// Format of the root disk and of each further disk, with its size and content.
    pub root: Format,
    pub data: Vec<(u64, Content, Format)>,
    /// Each further disk, in qcow2 then, is an overlay of another image.
    pub overlays: bool,
    pub swap: bool,
    /// Of the small guest.
    pub firmware: Firmware,
    /// More elements for its `<devices>`.
    pub devices: String,
    /// Bytes of random writes per second and disk.
    pub write_rate: u64,
    /// Records per second and disk.
    pub records: u32,
}

impl Default for SceneOptions {
    fn default() -> Self {
        Self {
            guest: Guest::Small,
            root: Format::Raw,
            data: Vec::new(),
            overlays: false,
            swap: false,
            firmware: Firmware::default(),
            devices: String::new(),
            write_rate: 256 << 10,
            records: 10,
        }
    }
}

pub struct Scene {
    pub lab: Lab,
    pub witness: Witness,
    pub programs: Programs,
    pub vm: Vm,
    /// At east.
    pub disks: Vec<DiskFile>,
    /// The VM's address at each site.
    pub at_east: Ipv4Addr,
    pub at_west: Ipv4Addr,
    /// The coordinator's state directory.
    pub state: PathBuf,
    /// What `causeway` is to log; nothing but what it says by itself, unless a test says otherwise.
    pub log: Option<&'static str>,
    dir: TempDir,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails the test with all that was printed.
    #[track_caller]
    pub fn must_exit(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// The lines of `--json` output.
    pub fn json(&self) -> Vec<Value> {
        self.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// A migration under way. What it prints is taken from it as it comes: at the most verbose level
/// it would soon wait for whoever does not read.
pub struct Halfway {
    child: Child,
    lines: Receiver<String>,
    pub printed: String,
}

impl Halfway {
    /// Until it prints a line with `words`.
    pub fn wait_for(&mut self, words: &str) -> Result<()> {
        loop {
            let Ok(line) = self.lines.recv() else {
                bail!("causeway ended before it printed {words:?}:\n{}", self.printed);
            };
            self.printed += &line;
            if line.contains(words) {
                return Ok(());
            }
        }
    }

    pub const fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// It goes on; nobody reads its progress any more.
    pub fn into_child(self) -> Child {
        self.child
    }

    /// As a power cut of the operator's machine would end it.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Lets it end by itself.
    pub fn finish(mut self) -> Result<Ran> {
        self.printed.extend(self.lines.iter());
        let mut ran = Ran::of(&self.child.wait_with_output()?);
        ran.stderr = self.printed;
        Ok(ran)
    }
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-aT").args([from, to]).status()?;
    ensure!(copied.success(), "{} cannot be copied", from.display());
    Ok(())
}

/// The lines as they come, each with its end. Whoever does not want them any more closes the pipe.
fn lines_of(stderr: ChildStderr) -> Receiver<String> {
    let (to, lines) = channel();
    std::thread::spawn(move || {
        let mut stderr = BufReader::new(stderr);
        loop {
            let mut line = Vec::new();
            match stderr.read_until(b'\n', &mut line) {
                Ok(1..) if to.send(String::from_utf8_lossy(&line).into_owned()).is_ok() => {}
                _ => return,
            }
        }
    });
    lines
}

impl Scene {
    /// Everything up, the guest writing, both sites registered.
    pub fn start(builder: Builder, options: &SceneOptions) -> Result<Self> {
        let programs = Programs::find()?;
        let dir = tempfile::tempdir()?;
        let lab = builder.start()?;
        let witness = Witness::start(
            vec![lab.operator().listen(WITNESS_PORT)?],
            &dir.path().join("witness"),
        )?;
        let ledger = LedgerOptions {
            rate: options.records,
            random_rate: options.write_rate,
            ..LedgerOptions::new(SocketAddr::new(IpAddr::V4(OPERATOR), WITNESS_PORT))
        };
        let east = lab.site("east")?;
        let mut guest = match options.guest {
            Guest::Small => GuestOptions::new(VM),
            Guest::Debian => debian::usual(VM),
        };
        guest = guest.root_format(options.root).ledger(ledger);
        for (bytes, content, format) in &options.data {
            guest = guest.data(*bytes, *content, *format);
        }
        if options.swap {
            guest = guest.with_swap();
        }
        if options.firmware != Firmware::Bios {
            guest = guest.with_uefi();
        }
        let mut spec = VmSpec::new(VM, Boot::Disk).firmware(options.firmware);
        spec.devices.clone_from(&options.devices);
        let disks = match options.guest {
            Guest::Small => small::build(&guest)?.clone_to(&east.pool_dir(), &guest)?,
            Guest::Debian => {
                spec = spec.memory_mib(768).vcpus(2);
                debian::build()?.clone_to(&east.pool_dir(), &guest)?
            }
        };
        for disk in disks.iter().skip(1).filter(|_| options.overlays) {
            images::lay_over_base(&disk.path)?;
        }
        for disk in &disks {
            spec = spec.disk(Disk::in_place(disk.path.clone(), disk.format));
        }
        let vm = east.start(&spec)?;
        let at_east = vm.address(east)?;
        let at_west = vm.address(lab.site("west")?)?;
        let state = dir.path().join("state");
        let scene =
            Self { lab, witness, programs, vm, disks, at_east, at_west, state, log: None, dir };
        scene.ssh(scene.at_east)?.wait(PATIENCE).context("the guest does not come up")?;
        scene.witness_hears(1)?;
        scene.register_sites()?;
        Ok(scene)
    }

    fn register_sites(&self) -> Result<()> {
        for name in ["east", "west"] {
            let uri = self.lab.operator().uri(self.lab.site(name)?);
            self.causeway(&["site", "add", name, "--uri", &uri])?.must_exit(0);
        }
        Ok(())
    }

    /// The operator's machine is gone, with all that the coordinator kept; another one knows the
    /// sites' names and nothing else.
    pub fn on_another_machine(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.state)?;
        self.register_sites()
    }

    /// Copies what the coordinator keeps, as a backup of a machine on which nothing runs.
    pub fn back_up(&self) -> Result<()> {
        copy_tree(&self.state, &self.backup())
    }

    /// Everything since is gone.
    pub fn put_back(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.state)?;
        copy_tree(&self.backup(), &self.state)
    }

    fn backup(&self) -> PathBuf {
        self.dir().join("backup")
    }

    pub fn east(&self) -> &Site {
        self.lab.site("east").expect("every scene has it")
    }

    pub fn west(&self) -> &Site {
        self.lab.site("west").expect("every scene has it")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn ssh(&self, address: Ipv4Addr) -> Result<Ssh<'_>> {
        Ssh::new(IpAddr::V4(address), |program| self.lab.operator().command(program))
    }

    /// `causeway` as the operator would run it; a test may do with its streams what it likes.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let program = self.programs.causeway();
        let mut command = self.lab.operator().command(&program.display().to_string());
        command
            .env("CAUSEWAY_STATE", &self.state)
            .env("CAUSEWAY_AGENT", self.programs.agent())
            .env("CAUSEWAY_APPLIANCE", self.programs.appliance())
            .args(arguments)
            .envs(self.log.map(|filter| ("CAUSEWAY_LOG", filter)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// As a person runs it, at a terminal, until it asks: its input is what is typed then.
    pub fn at_the_question(&self, arguments: &[&str]) -> Result<Child> {
        let mut typed = format!("exec '{}'", self.programs.causeway().display());
        for word in arguments {
            typed += &format!(" '{word}'");
        }
        let plain = self.command(&[]);
        let mut script = self.lab.operator().command("script");
        script
            .envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .args(["-qefc", &typed, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut asking = script.spawn().context("cannot run script")?;
        let screen = asking.stdout.as_mut().context("stdout is piped")?;
        let mut seen = Vec::new();
        while !seen.ends_with(b"Go ahead? [y/N] ") {
            let mut byte = [0];
            let read = screen.read(&mut byte)?;
            ensure!(read > 0, "it did not ask:\n{}", String::from_utf8_lossy(&seen));
            seen.extend(byte);
        }
        Ok(asking)
    }

    /// The process id of the coordinator that asks, a child of the terminal's program.
    pub fn who_asks(asking: &Child) -> Result<String> {
        let children = format!("/proc/{0}/task/{0}/children", asking.id());
        let children = std::fs::read_to_string(&children).context(children)?;
        Ok(children.trim().to_owned())
    }

    pub fn causeway(&self, arguments: &[&str]) -> Result<Ran> {
        Ok(Ran::of(&self.command(arguments).output().context("cannot run causeway")?))
    }

    /// What every plan of this scene needs, with `more` behind it.
    pub fn ask(&self, verb: &str, more: &[&str]) -> Result<Vec<String>> {
        self.ask_for(Way::EastToWest, verb, more)
    }

    pub fn ask_for(&self, way: Way, verb: &str, more: &[&str]) -> Result<Vec<String>> {
        let keys = Keys::get()?;
        let (from, to, is_at, comes_to) = match way {
            Way::EastToWest => ("east", "west", self.at_east, self.at_west),
            Way::WestToEast => ("west", "east", self.at_west, self.at_east),
        };
        // The lab gives the VM a bridge; the VM that Causeway makes is on a network.
        let mut arguments: Vec<String> = [verb, VM, "--from", from, "--to", to]
            .into_iter()
            .chain(["--network", "br0=default", "--network", "default=default"])
            .chain(["--pool", "default"])
            .map(ToOwned::to_owned)
            .collect();
        // Out of the way: what emulated guests take on a busy machine is nobody's claim.
        if !more.contains(&"--max-downtime") {
            arguments.extend(["--max-downtime".to_owned(), "900s".to_owned()]);
        }
        arguments.extend(["--guest".to_owned(), format!("root@{is_at}")]);
        arguments.extend(["--identity".to_owned(), keys.private().display().to_string()]);
        arguments.extend(["--known-hosts".to_owned(), keys.known_hosts().display().to_string()]);
        arguments.extend(["--probe".to_owned(), format!("ssh:{comes_to}:22")]);
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        Ok(arguments)
    }

    /// `causeway migrate --yes` to its end.
    pub fn migrate(&self, more: &[&str]) -> Result<Ran> {
        let arguments = self.ask("migrate", &[&["--yes"], more].concat())?;
        self.causeway(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// As [`Self::migrate`]; on the way, before the destination starts, every byte is compared.
    pub fn migrate_comparing(&self, more: &[&str]) -> Result<Ran> {
        let gate = Gate::new(self.dir())?;
        let command = gate.command();
        let mut moving = self.spawn_migrate(&[more, &["--gate", &command]].concat())?;
        if gate.is_reached(&mut moving)? {
            self.disks_are_equal()?;
            gate.open()?;
        }
        Self::finish(moving)
    }

    /// `causeway migrate --yes`, going on by itself.
    pub fn spawn_migrate(&self, more: &[&str]) -> Result<Child> {
        let arguments = self.ask("migrate", &[&["--yes"], more].concat())?;
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        self.command(&arguments).spawn().context("cannot run causeway")
    }

    /// `causeway migrate --yes` until it prints `words`; it goes on meanwhile. What it printed so
    /// far comes along.
    pub fn migrate_until(&self, words: &str, more: &[&str]) -> Result<Halfway> {
        self.until(words, &self.ask("migrate", &[&["--yes"], more].concat())?)
    }

    /// `causeway` with these arguments until it prints `words`.
    pub fn until(&self, words: &str, arguments: &[String]) -> Result<Halfway> {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let mut child = self.command(&arguments).spawn().context("cannot run causeway")?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let lines = lines_of(stderr);
        let mut halfway = Halfway { child, lines, printed: String::new() };
        halfway.wait_for(words)?;
        Ok(halfway)
    }

    /// The first migration's id.
    pub fn id(&self) -> Result<String> {
        Ok(self.ids()?.first().context("no migration is listed")?.clone())
    }

    /// Of all migrations, the oldest first.
    pub fn ids(&self) -> Result<Vec<String>> {
        let listed = self.causeway(&["status", "--json"])?;
        let ids =
            listed.json().into_iter().filter_map(|value| Some(value["id"].as_str()?.to_owned()));
        Ok(ids.collect())
    }

    /// Nothing of a migration is left at west but the helper's kernel, which is kept for the next.
    pub fn west_is_clean(&self) -> Result<()> {
        let domains = self.west().virsh(&["list", "--all", "--name"])?;
        ensure!(domains.trim().is_empty(), "left at west: {domains}");
        let volumes = self.west().virsh(&["vol-list", "default"])?;
        let left: Vec<_> = volumes.lines().filter(|line| line.contains(VM)).collect();
        ensure!(left.is_empty(), "left at west: {left:?}");
        Ok(())
    }

    /// No agent is left in the guest.
    pub fn guest_is_clean(&self, address: Ipv4Addr) -> Result<()> {
        let look = "cat /proc/[0-9]*/comm | grep causeway; ls -d /run/causeway* /dev/shm/causeway* \
                    /tmp/causeway* 2>/dev/null; true";
        let left = self.ssh(address)?.run(look)?;
        ensure!(left.trim().is_empty(), "left in the guest: {left}");
        Ok(())
    }

    /// Kills every process of the agent in the guest.
    pub fn kill_agent(&self, address: Ipv4Addr) -> Result<()> {
        let all = "for f in /proc/[0-9]*/comm; do case $(cat $f) in \
                   causeway*) p=${f#/proc/}; kill -9 ${p%/comm};; esac; done";
        self.ssh(address)?.run(all)?;
        Ok(())
    }

    /// The bytes of both sides' disks, while neither VM runs.
    pub fn disks_are_equal(&self) -> Result<()> {
        let disks: Vec<_> = self.disks.iter().map(|disk| disk.path.clone()).collect();
        self.are_equal(&disks, self.west())
    }

    /// The images at a site of a VM that Causeway made there.
    pub fn volumes(&self, site: &Site) -> Result<Vec<PathBuf>> {
        let files = std::fs::read_dir(site.pool_dir())?.collect::<Result<Vec<_>, _>>()?;
        let mut paths: Vec<_> = files.into_iter().map(|file| file.path()).collect();
        paths.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{VM}-vd"))
        });
        paths.sort();
        Ok(paths)
    }

    /// As [`Self::disks_are_equal`], for these images and those that were made for them at `site`.
    pub fn are_equal(&self, disks: &[PathBuf], site: &Site) -> Result<()> {
        images::are_equal(disks, &self.volumes(site)?)
    }

    /// What the operator's machine has sent so far, over any line.
    pub fn operator_bytes(&self) -> Result<u64> {
        let read = self.lab.operator().command("cat").arg("/proc/net/dev").output()?;
        let table = String::from_utf8(read.stdout)?;
        // Two lines of headings; then a name, a colon, eight counts of what was received and, first
        // of those of what was sent, its bytes.
        let sent = table.lines().skip(2).filter_map(|line| {
            let (name, counts) = line.split_once(':')?;
            (name.trim() != "lo").then(|| counts.split_whitespace().nth(8)?.parse::<u64>().ok())?
        });
        let sent = sent.sum();
        ensure!(sent > 0, "no counters: {table:?}");
        Ok(sent)
    }

    pub fn finish(child: Child) -> Result<Ran> {
        Ok(Ran::of(&child.wait_with_output()?))
    }

    /// Waits until the witness has heard `more` records from now on.
    pub fn witness_hears(&self, more: usize) -> Result<()> {
        let enough = self.witness.records() + more;
        let start = std::time::Instant::now();
        while self.witness.records() < enough {
            ensure!(start.elapsed() < PATIENCE, "the guest writes nothing that the witness hears");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The guest runs at `address`, goes on writing, and has every record that it ever told the
    /// witness of.
    pub fn ledger_is_whole(&self, address: Ipv4Addr) -> Result<()> {
        let ssh = self.ssh(address)?;
        ssh.wait(PATIENCE)?;
        self.witness_hears(5)?;
        let alarms = self.witness.alarms();
        ensure!(alarms.is_empty(), "the witness saw two writers or lost records: {alarms:?}");
        let file = self.dir.path().join("witness");
        let verdict =
            lab::guest::verify_inside(&ssh, Some(Witnessed { file: &file, vm: Some(VM) }))?;
        ensure!(verdict.ok, "records are lost or damaged: {verdict:?}");
        Ok(())
    }
}
