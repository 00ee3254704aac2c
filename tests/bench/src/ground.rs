//! Where copies run: a lab with one site, and a line of 1 Gbit/s between it and the operator.
//!
//! Loopback is the operator's own, on which there is nobody else. Everything that is written lies
//! in the lab's directory, and every process carries the lab's mark: both go with the lab, however
//! this program ends.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{HostAccess, Lab, Operator, Site, SiteSpec, Wan};

use crate::child;
use crate::cli::Section;

const SITE: &str = "west";
const RATE_MBIT: u32 = 1000;

#[derive(Debug)]
pub struct Ground {
    lab: Lab,
    pub scratch: PathBuf,
    /// TCP's, at both ends and so for everyone: what the machine has.
    pub congestion_control: String,
    /// The site's SSH server, as seen from here.
    sshd: u32,
}

impl Ground {
    pub fn start(agent: &Path) -> Result<Self> {
        let lab = Lab::builder()
            .site(SiteSpec::named(SITE).host_access(HostAccess::Ssh))
            .wan(Wan { rate: Some(RATE_MBIT), ..Wan::default() })
            .start()?;
        let scratch = lab.dir().join("bench");
        fs::create_dir(&scratch)?;
        // A site sees other files in some places; in here it sees the same.
        fs::copy(agent, scratch.join("causeway-agent")).context("cannot copy the agent")?;
        let site = lab.site(SITE)?;
        let congestion_control = site.inside(congestion_control)??;
        let here = lab.operator().inside(self::congestion_control)??;
        ensure!(here == congestion_control, "TCP uses {here} here and {congestion_control} there");
        let sshd = children(site.pid()?)?.into_iter().find(|pid| is_named(*pid, "sshd"));
        let sshd = sshd.context("the site has no SSH server")?;
        Ok(Self { lab, scratch, congestion_control, sshd })
    }

    pub fn line(&self, section: Section) -> Result<Line<'_>> {
        let operator = self.lab.operator();
        let site = self.lab.site(SITE)?;
        let here = |address| Place { machine: Machine::Operator(operator), address };
        let (source, target, interface) = match section {
            Section::Loopback => (here(Ipv4Addr::LOCALHOST), here(Ipv4Addr::LOCALHOST), "lo"),
            Section::Gigabit => {
                let there = Place { machine: Machine::Site(site), address: site.address() };
                (here(lab::OPERATOR), there, SITE)
            }
        };
        let (sshd, scratch) = (self.sshd, &self.scratch);
        Ok(Line { source, target, operator, interface, sshd, scratch })
    }
}

/// From where to where a section copies.
#[derive(Debug)]
pub struct Line<'a> {
    pub source: Place<'a>,
    pub target: Place<'a>,
    pub operator: &'a Operator,
    /// The operator's, which carries all of it.
    pub interface: &'static str,
    pub sshd: u32,
    /// For the files of tools: keys, settings, what they say.
    pub scratch: &'a Path,
}

impl Line<'_> {
    pub fn agent(&self) -> String {
        self.scratch.join("causeway-agent").display().to_string()
    }

    pub fn log(&self) -> PathBuf {
        self.scratch.join(child::LOG)
    }

    /// Returns once no session of the SSH server is left: only then is its cost counted.
    pub fn await_sessions_end(&self) -> Result<()> {
        let began = Instant::now();
        while !children(self.sshd)?.is_empty() {
            ensure!(began.elapsed() < Duration::from_secs(10), "an SSH session does not end");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// One end of a line.
#[derive(Debug)]
pub struct Place<'a> {
    machine: Machine<'a>,
    pub address: Ipv4Addr,
}

#[derive(Debug)]
enum Machine<'a> {
    Operator(&'a Operator),
    Site(&'a Site),
}

impl Place<'_> {
    pub fn command(&self, program: &str) -> Result<Command> {
        match self.machine {
            Machine::Operator(operator) => Ok(operator.command(program)),
            Machine::Site(site) => site.command(program),
        }
    }
}

/// In the network namespace of the calling thread. Not every kernel lets a namespace choose.
fn congestion_control() -> Result<String> {
    const PATH: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
    let text = fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
    Ok(text.trim_end().to_owned())
}

fn children(pid: u32) -> Result<Vec<u32>> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

fn is_named(pid: u32, name: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
}
