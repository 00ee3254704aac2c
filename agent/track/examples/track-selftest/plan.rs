//! What one boot tests: the arguments.

use anyhow::{Context, Result, bail};
use track::faults::{Faults, Trusted};
use track::{Preference, TrackerKind};

pub struct Plan {
    pub kind: Kind,
    pub audits: bool,
    pub runs: u32,
    pub disks: Vec<Disk>,
    pub raw: Option<String>,
    pub passthrough: Option<String>,
}

pub enum Kind {
    Chosen(Preference),
    Broken(Faults),
}

#[derive(Clone)]
pub struct Disk {
    pub name: String,
    /// What is mounted: the disk or a partition of it.
    pub mounted: String,
    pub file_system: String,
}

impl Plan {
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut plan = Self {
            kind: Kind::Chosen(Preference::Best),
            audits: true,
            runs: 1,
            disks: Vec::new(),
            raw: None,
            passthrough: None,
        };
        for argument in arguments {
            let (key, value) = argument.split_once('=').context("arguments are key=value")?;
            match (key, value) {
                ("tracker", "bpf") => {
                    plan.kind = Kind::Chosen(Preference::Only(TrackerKind::Bpf));
                }
                ("tracker", "rescan") => {
                    plan.kind = Kind::Chosen(Preference::Only(TrackerKind::Rescan));
                }
                ("tracker", "issue-only") => {
                    let faults = Faults { trusted: Trusted::Issue, ..Faults::default() };
                    plan.kind = Kind::Broken(faults);
                }
                ("drop", both) => {
                    let (completions, issues) = both.split_once(',').context("drop=C,I")?;
                    plan.kind = Kind::Broken(Faults {
                        dropped_completions: completions.parse()?,
                        dropped_issues: issues.parse()?,
                        ..Faults::default()
                    });
                }
                ("audit", "no") => plan.audits = false,
                ("runs", number) => plan.runs = number.parse()?,
                ("disk", both) => {
                    let (disk, file_system) = both.split_once(',').context("disk=NAME,FS")?;
                    let (name, mounted) = disk.split_once(':').unwrap_or((disk, disk));
                    plan.disks.push(Disk {
                        name: name.to_owned(),
                        mounted: mounted.to_owned(),
                        file_system: file_system.to_owned(),
                    });
                }
                ("raw", name) => plan.raw = Some(name.to_owned()),
                ("passthrough", name) => plan.passthrough = Some(name.to_owned()),
                _ => bail!("unknown argument: {argument}"),
            }
        }
        Ok(plan)
    }
}
