//! The steps of a live migration, as the agents' logs tell them.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::Agents;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The source's libvirt asks whether it may come.
    PrepareAsked,
    /// The other agent has heard of it.
    PrepareHeard,
    /// The destination's libvirt awaits it.
    Awaited,
    PrepareAnswered,
    DisksBegin,
    AmidDisks,
    MemoryBegins,
    AmidMemory,
    /// All data has come through, and the VM stands still.
    MemoryEnded,
    FinishAsked,
    /// It is whole at the destination, and on record there.
    Synced,
    /// Success is on record at the source, and said to its libvirt.
    Offered,
    SourceSeenDead,
    Fenced,
    Granted,
    Runs,
}

pub const STEPS: [Step; 16] = [
    Step::PrepareAsked,
    Step::PrepareHeard,
    Step::Awaited,
    Step::PrepareAnswered,
    Step::DisksBegin,
    Step::AmidDisks,
    Step::MemoryBegins,
    Step::AmidMemory,
    Step::MemoryEnded,
    Step::FinishAsked,
    Step::Synced,
    Step::Offered,
    Step::SourceSeenDead,
    Step::Fenced,
    Step::Granted,
    Step::Runs,
];

/// One that is not reached by then never is.
const PATIENCE: Duration = Duration::from_secs(120);

/// Of both agents, how much of their logs is of earlier migrations.
pub struct Before {
    east: usize,
    west: usize,
}

impl Before {
    pub fn of(agents: &Agents<'_>) -> Self {
        Self { east: agents.east.log().len(), west: agents.west.log().len() }
    }
}

impl Step {
    /// Returns as it is reached.
    pub fn wait(self, agents: &Agents<'_>, before: &Before) -> Result<()> {
        let (at_east, words, more) = match self {
            Self::PrepareAsked => (true, "a VM is to leave", 0),
            Self::PrepareHeard => (false, "is to come", 0),
            Self::Awaited => (false, "libvirtd awaits it", 0),
            Self::PrepareAnswered => (true, "data begins", 0),
            Self::DisksBegin => (true, "leads_to=disks", 0),
            Self::AmidDisks => (true, "leads_to=disks", 700),
            Self::MemoryBegins => (true, "leads_to=memory", 0),
            Self::AmidMemory => (true, "leads_to=memory", 700),
            Self::MemoryEnded => (true, "a connection has ended leads_to=memory", 0),
            Self::FinishAsked => (true, "asks to finish cancelled=false", 0),
            Self::Synced => (false, "is whole and stands still", 0),
            Self::Offered => (true, "and stands still", 0),
            Self::SourceSeenDead => {
                (true, "from the source\n|off at the source\n|has ended at the source\n", 0)
            }
            Self::Fenced => (true, "its fence is on record", 0),
            Self::Granted => (false, ": granted\n", 0),
            Self::Runs => (false, "runs here", 0),
        };
        let began = Instant::now();
        loop {
            let (agent, before) =
                if at_east { (&agents.east, before.east) } else { (&agents.west, before.west) };
            let log = agent.log();
            if words.split('|').any(|words| log[before..].contains(words)) {
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "{self:?} is never reached\n{}", agents.logs());
            sleep(Duration::from_millis(2));
        }
        sleep(Duration::from_millis(more));
        Ok(())
    }
}
