//! Who moves it, and what an operator types for it.

use std::fs;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use super::agents::Agents;
use super::ground::{At, Ground};
use super::guest::{Guest, VM};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// libvirt by itself, over the path between the sites.
    Plain,
    /// The same, with what has changed of pages that it sends again.
    Xbzrle,
    /// The same, with two channels of QEMU's that compress by zstd, level 1.
    MultifdZstd,
    /// Two mobility agents, over the operator's path.
    Agents,
}

pub const WAYS: [Way; 4] = [Way::Plain, Way::Xbzrle, Way::MultifdZstd, Way::Agents];

/// For all ways; the VM is then at the destination what it was at the source.
const WORDS: [&str; 6] =
    ["migrate", "--live", "--p2p", "--copy-storage-all", "--persistent", "--undefinesource"];

/// One that changes more than the line carries would not end: it is stopped then, and the time that it
/// stands still is its downtime.
const PATIENCE_S: &str = "120";

impl Way {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Xbzrle => "xbzrle",
            Self::MultifdZstd => "multifd-zstd-1",
            Self::Agents => "agents",
        }
    }

    /// All but the move itself.
    pub fn ready(self, ground: &Ground, guest: &Guest<'_>) -> Result<Move> {
        let (from, to) = (At::East, At::West);
        let source = ground.site(from);
        let mut words: Vec<String> = WORDS.map(ToOwned::to_owned).to_vec();
        words.extend(["--timeout", PATIENCE_S, "--timeout-suspend", VM].map(ToOwned::to_owned));
        let mut agents = None;
        if self == Self::Agents {
            let dir = format!("agents-{}", guest.prober.now().as_millis());
            agents = Some(Agents::start(ground, &ground.scratch.join(dir))?);
            words.push(format!("qemu+tcp://{}:16510/system", from.agent(ground)));
        } else {
            words.push(format!("qemu+tcp://{}/system", to.on_path()));
            words.extend(["--migrateuri".to_owned(), format!("tcp://{}", to.on_path())]);
        }
        match self {
            Self::Xbzrle => words.extend(
                ["--compressed", "--comp-methods", "xbzrle", "--comp-xbzrle-cache", "268435456"]
                    .map(ToOwned::to_owned),
            ),
            Self::MultifdZstd => {
                words.extend(["--parallel", "--parallel-connections", "2"].map(ToOwned::to_owned));
                let set = r#"{"execute":"migrate-set-parameters","arguments":{"multifd-compression":"zstd","multifd-zstd-level":1}}"#;
                let said = source.virsh(&["qemu-monitor-command", VM, set])?;
                ensure!(said.contains("return"), "QEMU has no zstd: {said}");
                let xml = source.virsh(&["dumpxml", "--migratable", VM])?;
                let file = ground.scratch.join("arrives.xml");
                fs::write(&file, with_emulator(&xml, &ground.zstd.display().to_string())?)?;
                words.extend(["--xml".to_owned(), file.display().to_string()]);
            }
            Self::Plain | Self::Agents => {}
        }
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        Ok(Move { command: source.virsh_command(&words)?, agents })
    }
}

#[derive(Debug)]
pub struct Move {
    command: Command,
    agents: Option<Agents>,
}

impl Move {
    pub fn go(&mut self) -> Result<()> {
        let Output { status, stderr, .. } =
            self.command.stdin(Stdio::null()).output().context("cannot run virsh")?;
        let said = || self.agents.as_ref().map(Agents::said).unwrap_or_default().join("\n");
        ensure!(status.success(), "{}\n{}", String::from_utf8_lossy(&stderr), said());
        Ok(())
    }
}

/// The definition, for another emulator.
fn with_emulator(xml: &str, emulator: &str) -> Result<String> {
    let (before, rest) = xml.split_once("<emulator>").context("a definition names an emulator")?;
    let (_, after) = rest.split_once("</emulator>").context("an element ends")?;
    Ok(format!("{before}<emulator>{emulator}</emulator>{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_emulator_is_another() {
        let xml = "<domain><devices><emulator>/usr/bin/q</emulator><disk/></devices></domain>";
        assert_eq!(
            with_emulator(xml, "/x").unwrap(),
            "<domain><devices><emulator>/x</emulator><disk/></devices></domain>"
        );
        assert!(with_emulator("<domain/>", "/x").is_err());
    }
}
