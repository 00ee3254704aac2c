//! A mobility agent at each site, with nothing remembered of earlier moves.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::ground::{At, Ground};

const PATIENCE: Duration = Duration::from_secs(60);

/// Dropping it kills both.
#[derive(Debug)]
pub struct Agents {
    children: Vec<Child>,
    logs: Vec<PathBuf>,
}

impl Agents {
    /// Their state goes into `dir`, which is made.
    pub fn start(ground: &Ground, dir: &Path) -> Result<Self> {
        fs::create_dir(dir)?;
        let both = [At::East, At::West];
        let states = both.map(|at| dir.join(at.name()));
        let [east_key, west_key] = states.each_ref().map(|state| key(ground, state));
        let others = [west_key?, east_key?];
        let mut agents = Self { children: Vec::new(), logs: Vec::new() };
        // West's listens before east's looks for it.
        for (number, at) in both.into_iter().enumerate().rev() {
            let config = states[number].with_extension("toml");
            fs::write(&config, configuration(ground, at, &states[number], &others[number]))?;
            let program = ground.mobility.display().to_string();
            let mut command = match at {
                At::East => ground.site(at).service(&program)?,
                At::West => ground.lab.operator().command(&program),
            };
            let log = states[number].with_extension("log");
            let said = File::create(&log)?;
            command.args(["serve", "--config"]).arg(&config);
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn()?;
            agents.children.push(child);
            agents.logs.push(log);
            let began = Instant::now();
            while !agents.said().last().is_some_and(|log| log.contains(" ready ")) {
                ensure!(began.elapsed() < PATIENCE, "no agent: {:?}", agents.said());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(agents)
    }

    pub fn said(&self) -> Vec<String> {
        self.logs.iter().map(|log| fs::read_to_string(log).unwrap_or_default()).collect()
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        for child in &mut self.children {
            // The lab ends those that this does not.
            let _ = lab::run::end(child);
        }
    }
}

fn key(ground: &Ground, state: &Path) -> Result<String> {
    let output = Command::new(&ground.mobility).args(["key", "--state-dir"]).arg(state).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let key = String::from_utf8(output.stdout).context("a key is hexadecimal")?;
    Ok(key.trim().to_owned())
}

fn configuration(ground: &Ground, at: At, state: &Path, others_key: &str) -> String {
    let (uri, socket) = match at {
        At::East => ("qemu:///system".to_owned(), "unix:/run/libvirt/libvirt-sock".to_owned()),
        At::West => {
            let site = ground.site(at);
            (ground.lab.operator().uri(site), format!("tcp:{}:16509", site.address()))
        }
    };
    let (name, other) = (at.name(), at.other());
    let (address, there) = (at.agent(ground), other.agent(ground));
    let number = if at == At::East { 1 } else { 2 };
    format!(
        "[site]
name = \"{name}\"
state-dir = \"{}\"
uri = \"{uri}\"
socket = \"{socket}\"

[listen]
libvirt = [\"{address}:16510\"]
wan = \"{address}:7443\"

[host]
hostname = \"neighbour-of-{name}\"
uuid = \"6a0f1c52-6f2d-4b0e-9d4e-0d5d1f6e3c0{number}\"
data-address = \"{address}\"
ports = \"49152-49160\"

[neighbour]
name = \"{}\"
address = \"{there}:7443\"
key = \"{others_key}\"

[arrivals]
pool = \"default\"
emulate = true
networks = {{ br0 = \"bridge:br0\" }}
",
        state.display(),
        other.name(),
    )
}
