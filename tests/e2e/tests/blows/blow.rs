//! What breaks, and how it is put right.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use e2e::{Agents, Scene, VM};
use lab::{Between, Site};

use crate::steps::Step;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blow {
    SourcesAgent,
    DestinationsAgent,
    BothAgents,
    /// With all that it kept but its key.
    SourcesState,
    DestinationsState,
    SourcesLibvirtd,
    DestinationsLibvirtd,
    /// As any crash of the VM.
    SourcesQemu,
    DestinationsQemu,
    /// All of it but its disks.
    DestinationsHost,
    /// The line between the agents, for less time than it takes to notice; and for more.
    LineForAMoment,
    LineForLong,
    /// Called off by its operator.
    Abort,
    /// What the agent answers to the source's libvirt.
    Reply,
}

pub const BLOWS: [Blow; 14] = [
    Blow::SourcesAgent,
    Blow::DestinationsAgent,
    Blow::BothAgents,
    Blow::SourcesState,
    Blow::DestinationsState,
    Blow::SourcesLibvirtd,
    Blow::DestinationsLibvirtd,
    Blow::SourcesQemu,
    Blow::DestinationsQemu,
    Blow::DestinationsHost,
    Blow::LineForAMoment,
    Blow::LineForLong,
    Blow::Abort,
    Blow::Reply,
];

/// How long what died stays dead.
const DEAD_FOR: Duration = Duration::from_secs(1);

impl Blow {
    /// Some take half a minute, and some are another one's equal.
    pub fn is_of_use_at(self, step: Step) -> bool {
        match self {
            Self::SourcesQemu => matches!(
                step,
                Step::PrepareAsked
                    | Step::AmidDisks
                    | Step::AmidMemory
                    | Step::FinishAsked
                    | Step::Runs
            ),
            // There is none before; and what becomes of a VM that runs is no migration's affair any more.
            Self::DestinationsQemu => step > Step::PrepareHeard && step < Step::Runs,
            Self::DestinationsHost => {
                matches!(step, Step::AmidMemory | Step::Synced | Step::Offered | Step::Granted)
            }
            Self::LineForLong => matches!(
                step,
                Step::Awaited | Step::AmidDisks | Step::FinishAsked | Step::Offered | Step::Fenced
            ),
            Self::Abort => matches!(
                step,
                Step::PrepareAsked | Step::DisksBegin | Step::AmidMemory | Step::Offered
            ),
            Self::Reply => matches!(step, Step::PrepareHeard | Step::FinishAsked),
            _ => true,
        }
    }

    /// It is dealt, and what was killed is started again.
    pub fn deal(self, scene: &Scene, agents: &mut Agents<'_>) -> Result<()> {
        let line = Between::Operator("east");
        match self {
            Self::SourcesAgent => {
                agents.east.kill()?;
                sleep(DEAD_FOR);
                agents.start_east()?;
            }
            Self::DestinationsAgent => {
                agents.west.kill()?;
                sleep(DEAD_FOR);
                agents.start_west()?;
            }
            Self::BothAgents => {
                agents.east.kill()?;
                agents.west.kill()?;
                sleep(DEAD_FOR);
                agents.start_west()?;
                agents.start_east()?;
            }
            Self::SourcesState => {
                agents.east.forget()?;
                sleep(DEAD_FOR);
                agents.start_east()?;
            }
            Self::DestinationsState => {
                agents.west.forget()?;
                sleep(DEAD_FOR);
                agents.start_west()?;
            }
            Self::SourcesLibvirtd => restart(scene.east())?,
            Self::DestinationsLibvirtd => restart(scene.west())?,
            // One that is gone already cannot be killed.
            Self::SourcesQemu => drop(scene.east().kill_vm(VM)),
            Self::DestinationsQemu => drop(scene.west().kill_vm(VM)),
            Self::DestinationsHost => {
                agents.west.kill()?;
                drop(scene.west().kill_vm(VM));
                restart(scene.west())?;
                agents.start_west()?;
            }
            Self::LineForAMoment => {
                scene.lab.cut(line)?;
                sleep(Duration::from_secs(4));
                scene.lab.heal(line)?;
            }
            Self::LineForLong => {
                scene.lab.cut(line)?;
                sleep(Duration::from_secs(30));
                scene.lab.heal(line)?;
            }
            Self::Abort => drop(scene.east().virsh(&["domjobabort", VM])),
            Self::Reply => {
                replies(scene, "-A")?;
                sleep(Duration::from_secs(35));
                replies(scene, "-D")?;
            }
        }
        Ok(())
    }
}

fn restart(site: &Site) -> Result<()> {
    site.kill_libvirtd()?;
    sleep(DEAD_FOR);
    site.start_libvirtd()
}

/// What the agent says at some length is lost: results, and not that somebody is there.
fn replies(scene: &Scene, how: &str) -> Result<()> {
    let long = ["-m", "length", "--length", "300:65535"];
    let rule = [&[how, "OUTPUT", "-p", "tcp", "--sport", "16510"], &long[..], &["-j", "DROP"]];
    lab::run::run(scene.east().command("iptables")?.args(rule.concat()))?;
    Ok(())
}
