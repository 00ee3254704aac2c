//! The mobility agents of a scene. East's is on the hypervisor itself; west's on the operator's
//! machine, which alone reaches both: that path is the WAN, and there is no other.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{OPERATOR, Site};

use crate::{Programs, Scene, VM};

/// Nothing is waited for longer than this: it is there to end a test that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Agents<'a> {
    scene: &'a Scene,
    pub east: Agent,
    pub west: Agent,
}

/// One that runs, or that was killed.
pub struct Agent {
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

/// Lines of its `[arrivals]` besides the pool.
const ARRIVALS: &str = "networks = { br0 = \"bridge:br0\", default = \"default\" }";

impl<'a> Agents<'a> {
    pub fn start(scene: &'a Scene) -> Result<Self> {
        Self::start_with(scene, ARRIVALS)
    }

    /// With these lines for what arrives at west.
    pub fn start_with(scene: &'a Scene, arrivals: &str) -> Result<Self> {
        let (east, west) = (scene.east(), scene.west());
        let [at_east, at_west] = ["agent-east", "agent-west"].map(|name| scene.dir().join(name));
        let [east_key, west_key] =
            [&at_east, &at_west].map(|state| Self::key(&scene.programs, state));
        let (east_key, west_key) = (east_key?, west_key?);
        let unix = "unix:/run/libvirt/libvirt-sock".to_owned();
        let tcp = format!("tcp:{}:16509", west.address());
        let place = |name: &str, address: Ipv4Addr| (name.to_owned(), address);
        let east_config = config(
            &at_east,
            place("east", east.address()),
            ("qemu:///system", &unix),
            place("west", OPERATOR),
            &west_key,
            ARRIVALS,
        );
        let west_config = config(
            &at_west,
            place("west", OPERATOR),
            (&scene.lab.operator().uri(west), &tcp),
            place("east", east.address()),
            &east_key,
            arrivals,
        );
        let east = Agent::new(&at_east, &east_config)?;
        let west = Agent::new(&at_west, &west_config)?;
        let mut agents = Self { scene, east, west };
        agents.start_west()?;
        agents.start_east()?;
        Ok(agents)
    }

    fn key(programs: &Programs, state: &Path) -> Result<String> {
        let mut command = Command::new(programs.mobility());
        let output = command.args(["key", "--state-dir"]).arg(state).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// West's, with networks for what arrives.
    pub fn restart_west_with_networks(&mut self) -> Result<()> {
        self.restart_west_replacing("networks = {}", ARRIVALS)
    }

    /// West's, with something else in its configuration.
    pub fn restart_west_replacing(&mut self, words: &str, by: &str) -> Result<()> {
        self.west.kill()?;
        let config = fs::read_to_string(&self.west.config)?;
        ensure!(config.contains(words), "{words}: {config}");
        fs::write(&self.west.config, config.replace(words, by))?;
        self.start_west()
    }

    /// West's, with more lines for what arrives.
    pub fn restart_west_with(&mut self, lines: &str) -> Result<()> {
        self.west.kill()?;
        let config = fs::read_to_string(&self.west.config)?;
        fs::write(&self.west.config, format!("{config}{lines}"))?;
        self.start_west()
    }

    /// West's has lost all that it kept, and each is introduced to the other again.
    pub fn west_is_made_anew(&mut self) -> Result<()> {
        self.west.kill()?;
        self.east.kill()?;
        anew(&self.scene.programs, &self.west, &self.east)?;
        self.start_west()?;
        self.start_east()
    }

    /// East's has.
    pub fn east_is_made_anew(&mut self) -> Result<()> {
        self.west.kill()?;
        self.east.kill()?;
        anew(&self.scene.programs, &self.east, &self.west)?;
        self.start_west()?;
        self.start_east()
    }

    /// East's, listening in one more way.
    pub fn restart_east_listening(&mut self, line: &str) -> Result<()> {
        self.east.kill()?;
        let config = fs::read_to_string(&self.east.config)?;
        fs::write(&self.east.config, config.replace("[listen]\n", &format!("[listen]\n{line}\n")))?;
        self.start_east()
    }

    pub fn start_east(&mut self) -> Result<()> {
        let program = self.scene.programs.mobility().display().to_string();
        self.east.start(self.scene.east().service(&program)?)
    }

    pub fn start_west(&mut self) -> Result<()> {
        let program = self.scene.programs.mobility().display().to_string();
        self.west.start(self.scene.lab.operator().command(&program))
    }

    /// `virsh migrate` at east as its operator types it, towards the neighbour.
    fn virsh_migrate(&self, options: &[&str]) -> Result<Command> {
        let uri = format!("qemu+tcp://{}:16510/system", self.scene.east().address());
        // Another one, where there is one.
        let uri = if options.iter().any(|word| word.contains("://") && word.contains("/system")) {
            Vec::new()
        } else {
            vec![uri.as_str()]
        };
        let words = [&["migrate", "--live", VM], &uri[..], options].concat();
        self.scene.east().virsh_command(&words)
    }

    /// To its end: how long it took.
    pub fn migrate(&self, options: &[&str]) -> Result<Duration> {
        let began = Instant::now();
        let output = self.virsh_migrate(options)?.output()?;
        if !output.status.success() {
            bail!("{}\n{}", said(&output), self.logs());
        }
        Ok(began.elapsed())
    }

    /// To an error, in virsh's words.
    pub fn refused(&self, options: &[&str]) -> Result<String> {
        let output = self.virsh_migrate(options)?.output()?;
        ensure!(!output.status.success(), "it was migrated\n{}", self.logs());
        Ok(said(&output))
    }

    /// A migration under way.
    pub fn spawn(&self, options: &[&str]) -> Result<Child> {
        let mut command = self.virsh_migrate(options)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("cannot run virsh")
    }

    /// The migration of which east's agent wants to be told that its VM has ended.
    pub fn wanted_word(&self) -> Option<String> {
        let log = self.east.log();
        let (_, after) = log.rsplit_once("causeway-mobility vouch --config FILE ")?;
        after.split_whitespace().next().map(str::to_owned)
    }

    /// Volumes of a copy at west that may have run while its agent knew nothing of it: its operator is to look.
    pub fn unknown_copy(&self) -> Option<Vec<String>> {
        let log = self.west.log();
        let (_, after) = log.rsplit_once("or may have while this agent knew nothing of it")?;
        let (_, volumes) = after.lines().next()?.rsplit_once("is wanted: ")?;
        Some(volumes.split(", ").map(str::to_owned).collect())
    }

    /// The operator's word for it.
    pub fn vouch(&self, id: &str) -> Result<()> {
        let program = self.scene.programs.mobility().display().to_string();
        let mut vouch = self.scene.east().command(&program)?;
        vouch.args(["vouch", id, "--reason", "its host's log says so", "--config"]);
        lab::run::run(vouch.arg(&self.east.config))?;
        Ok(())
    }

    pub fn logs(&self) -> String {
        format!("east:\n{}\nwest:\n{}", self.east.log(), self.west.log())
    }

    /// Until it is so.
    pub fn until(&self, what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<Duration> {
        let began = Instant::now();
        while !is()? {
            ensure!(began.elapsed() < PATIENCE, "never: {what}\n{}", self.logs());
            sleep(Duration::from_millis(100));
        }
        Ok(began.elapsed())
    }

    pub fn until_state(&self, site: &Site, state: &str) -> Result<Duration> {
        let what = format!("{VM} is {state} at {}", site.name());
        // A libvirtd that has been killed is back some time.
        self.until(&what, || Ok(self.state(site).is_ok_and(|found| found == state)))
    }

    pub fn state(&self, site: &Site) -> Result<String> {
        state(site)
    }

    /// The guest keeps its address when it moves live: whoever moves it has its network at both
    /// sites.
    pub fn stretch_network(&self) -> Result<()> {
        let east = self.scene.east();
        let mac = lab::run::run(east.command("cat")?.arg("/sys/class/net/br0/address"))?;
        let gateway = format!("{}/24", east.address());
        let at_west = |arguments: &[&str]| -> Result<String> {
            lab::run::run(self.scene.west().command("ip")?.args(arguments))
        };
        at_west(&["link", "set", "br0", "address", mac.trim()])?;
        at_west(&["address", "add", &gateway, "dev", "br0"])?;
        Ok(())
    }

    /// Who looks for the guest finds it at west.
    pub fn route_to_west(&self) -> Result<()> {
        let guest = format!("{}/32", self.scene.at_east);
        let mut route = self.scene.lab.operator().command("ip");
        lab::run::run(route.args(["route", "replace", &guest, "via", "10.98.1.2"]))?;
        Ok(())
    }

    pub fn network_follows_to_west(&self) -> Result<()> {
        self.stretch_network()?;
        self.route_to_west()
    }

    /// It runs at west and nowhere else, goes on there, and has every record that it ever told the witness of.
    pub fn has_moved_whole(&self) -> Result<()> {
        self.until_state(self.scene.west(), "running")?;
        ensure!(self.state(self.scene.east())? != "running", "it runs at both");
        let whole = self.scene.ledger_is_whole(self.scene.at_east);
        whole.or_else(|error| {
            // Is it the guest's memory, or its disks?
            let ssh = self.scene.ssh(self.scene.at_east)?;
            ssh.run("sync; echo 3 > /proc/sys/vm/drop_caches")?;
            let on_disk = self.scene.ledger_is_whole(self.scene.at_east);
            Err(error.context(format!("read anew from its disks: {on_disk:?}")))
        })
    }
}

/// What libvirt says of the VM; nothing if there is none. That it does not answer says nothing.
pub fn state(site: &Site) -> Result<String> {
    match site.virsh(&["domstate", VM]) {
        Ok(said) => Ok(said.trim().to_owned()),
        Err(error) if format!("{error:#}").contains("failed to get domain") => Ok(String::new()),
        Err(error) => Err(error),
    }
}

impl Agent {
    fn new(state: &Path, config: &str) -> Result<Self> {
        let path = state.with_extension("toml");
        fs::write(&path, config)?;
        Ok(Self { config: path, log: state.with_extension("log"), child: None })
    }

    fn start(&mut self, mut command: Command) -> Result<()> {
        let said = self.log().matches(" ready ").count();
        let log = File::options().create(true).append(true).open(&self.log)?;
        let config = self.config.display().to_string();
        command
            .args(["serve", "--config", &config])
            .env("CAUSEWAY_LOG", "causeway_mobility=debug,info");
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?);
        let began = Instant::now();
        while self.log().matches(" ready ").count() == said {
            ensure!(began.elapsed() < PATIENCE, "it does not start:\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// It is dead, and all that it kept but its key is gone.
    pub fn forget(&mut self) -> Result<()> {
        self.kill()?;
        for entry in fs::read_dir(self.config.with_extension(""))? {
            let path = entry?.path();
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            } else if !path.ends_with("key") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// As a power cut would end it.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            lab::run::end(&mut child)?;
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The lab ends those that this does not.
        let _ = self.kill();
    }
}

/// `lost` begins with an empty state directory, and a key of which `other` is told.
fn anew(programs: &Programs, lost: &Agent, other: &Agent) -> Result<()> {
    let state = lost.config.with_extension("");
    let before = Agents::key(programs, &state)?;
    fs::remove_dir_all(&state)?;
    let now = Agents::key(programs, &state)?;
    let config = fs::read_to_string(&other.config)?;
    fs::write(&other.config, config.replace(&before, &now))?;
    Ok(())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn config(
    state: &Path,
    (name, address): (String, Ipv4Addr),
    (uri, socket): (&str, &str),
    (neighbour, there): (String, Ipv4Addr),
    key: &str,
    arrivals: &str,
) -> String {
    // East's hypervisors come to it over SSH; nobody comes to west's, which shares its /run with others.
    let (number, unix) = match name.as_str() {
        "east" => (1, PathBuf::from("/run/mobility-east.sock")),
        _ => (2, state.with_extension("sock")),
    };
    let (state, unix) = (state.display(), unix.display());
    format!(
        "[site]
name = \"{name}\"
state-dir = \"{state}\"
uri = \"{uri}\"
socket = \"{socket}\"

[listen]
libvirt = [\"{address}:16510\"]
unix = \"{unix}\"
wan = \"{address}:7443\"

[host]
hostname = \"neighbour-of-{name}\"
uuid = \"6a0f1c52-6f2d-4b0e-9d4e-0d5d1f6e3c0{number}\"
data-address = \"{address}\"
ports = \"49152-49160\"

[neighbour]
name = \"{neighbour}\"
address = \"{there}:7443\"
key = \"{key}\"

[arrivals]
pool = \"default\"
emulate = true
{arrivals}
"
    )
}
