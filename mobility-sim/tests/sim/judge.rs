//! When everything is mended: what is true, what `causeway status` would say of it, and what a truthful
//! operator does where that is not the end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use engine::evidence::{About, Asked, gather};
use handover::{DestinationState, Evidence, Next, SourceState, Verdict, VerdictKind, verdict};
use model::{Power, SiteName};
use site::Site;
use site_ledger::natives;
use units::MigrationId;

use crate::client::Ended;
use crate::guest::Domain;
use crate::stage::{Stage, sited};
use crate::world::{Deed, Place, World};

/// Where the VM is in the end, and what people had to do for that.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome {
    pub moved: bool,
    pub deeds: Vec<Help>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Help {
    Resumed,
    Destroyed,
    Started,
    GaveWord,
    /// What nobody needs any more at the destination.
    Cleared,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.moved { "moved" } else { "stays" })?;
        self.deeds.iter().try_for_each(|deed| write!(f, "+{deed:?}"))
    }
}

/// What a person decides where either would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    GoesOn,
    Ends,
}

/// The verdict over what both sites keep; `None`: they know of no migration.
pub async fn status(world: &Arc<World>) -> Option<(Verdict, Evidence)> {
    let sites = [Place::East, Place::West].map(|place| sited(world, place, None));
    let mut last = None;
    for site in &sites {
        for (epoch, paper) in natives(&**site).await.unwrap() {
            let paper = paper.unwrap();
            if last.as_ref().is_none_or(|(before, _)| *before < epoch) {
                last = Some((epoch, paper));
            }
        }
    }
    let (epoch, paper) = last?;
    let about = About {
        id: paper.vm,
        digest: paper.digest(),
        vm: paper.vm_key().unwrap(),
        epoch: Some(epoch),
        destination_key: paper.key(&paper.to).unwrap(),
    };
    let asked = |name: &SiteName, place: Place| Asked {
        identity: paper.identity(name, None).unwrap(),
        ledger: None,
        site: Some(Arc::clone(&sites[place as usize]) as Arc<dyn Site>),
        keeps_another: false,
    };
    let (source, destination) = (asked(&paper.from, Place::East), asked(&paper.to, Place::West));
    let evidence = gather(&about, Some(source), Some(destination)).await.unwrap().evidence;
    Some((verdict(&evidence), evidence))
}

/// Migrations that an agent has not brought to an end, with the stage that it has on record.
pub fn open(world: &World, place: Place) -> Vec<(MigrationId, String)> {
    let path = world.agents.state(place).join("ledger");
    let contents = journal::read(&path).unwrap();
    let mut stages = BTreeMap::new();
    for record in contents.map(|contents| contents.records).unwrap_or_default() {
        let entry: serde_json::Value = serde_json::from_slice(&record.payload).unwrap();
        let id: MigrationId = entry["id"].as_str().unwrap().parse().unwrap();
        let stage = entry["stage"]["source"].as_str();
        let stage = stage.or_else(|| entry["stage"]["destination"].as_str());
        stages.insert(id, stage.map_or_else(|| entry["stage"].to_string(), str::to_owned));
    }
    stages.into_iter().filter(|(_, stage)| !matches!(stage.as_str(), "ended" | "started")).collect()
}

/// How long a VM stands still at most that nobody had to help. Agents come back after 100 s at the latest, and
/// a history may have two such faults, one after the other, with a silent line in between.
const STANDS_MAX: Duration = Duration::from_secs(300);

impl Stage {
    /// Judges, has done what is a person's to do, and judges again, until there is an end.
    pub async fn conclude(&mut self, operator: Operator) -> Outcome {
        let mut outcome = Outcome::default();
        // By nobody who was asked for it here.
        let was_started = self.world.guest().was_started;
        for _ in 0..5 {
            let status = status(&self.world).await;
            let status = status.as_ref();
            self.told_truly(status);
            if self.is_over(status) {
                break;
            }
            let Some(help) = self.help(status, operator) else { break };
            outcome.deeds.push(help);
            self.settle().await;
        }
        let status = status(&self.world).await;
        self.ended_well(status.as_ref(), was_started);
        let stood = self.world.guest().stood;
        if outcome.deeds.is_empty() && stood > STANDS_MAX {
            self.violated(format!("it stood still for {} s", stood.as_secs()));
        }
        outcome.moved = self.world.guest().power(Place::West) == Power::Running
            || (self.world.kind.suspended && self.world.guest().power(Place::West).is_loaded());
        self.violations.append(&mut self.world.guest().violations);
        outcome
    }

    fn violated(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    fn powers(&self) -> [Power; 2] {
        let guest = self.world.guest();
        [guest.power(Place::East), guest.power(Place::West)]
    }

    /// What `status` says now is so.
    fn told_truly(&mut self, status: Option<&(Verdict, Evidence)>) {
        let powers @ [east, west] = self.powers();
        let Some((verdict, _)) = status else {
            if west != Power::Absent {
                self.violated("nobody knows of a migration, and the destination has a VM");
            }
            return;
        };
        let kind = verdict.verdict;
        let lies = match kind {
            VerdictKind::Completed => {
                let starts = verdict.started == Some(true) && !self.world.kind.suspended;
                let accident = self.world.guest().had_accident;
                east == Power::Running || (starts && west != Power::Running && !accident)
            }
            VerdictKind::AlarmSplit => powers != [Power::Running; 2],
            _ => west == Power::Running,
        };
        if lies {
            self.violated(format!("the verdict is {kind:?}, and the VM is {east} and {west}"));
        }
    }

    fn is_over(&self, status: Option<&(Verdict, Evidence)>) -> bool {
        let [east, west] = self.powers();
        let open =
            [Place::East, Place::West].iter().any(|place| !open(&self.world, *place).is_empty());
        match status {
            _ if open => false,
            Some((verdict, _)) if verdict.verdict == VerdictKind::Completed => {
                west == Power::Running || (self.world.kind.suspended && west.is_loaded())
            }
            _ => east == Power::Running,
        }
    }

    /// One thing that a person does who has read what the agents and `status` say, and knows what happened.
    fn help(&mut self, status: Option<&(Verdict, Evidence)>, operator: Operator) -> Option<Help> {
        let world = Arc::clone(&self.world);
        let [east, west] = self.powers();
        let offered = open(&world, Place::East);
        let offered = offered.iter().find(|(_, stage)| stage == "fence_intent").map(|(id, _)| id);
        if let Some((verdict, _)) = status
            && verdict.verdict == VerdictKind::Completed
        {
            world.guest().creates(Place::West);
            return (west != Power::Running).then_some(Help::Started);
        }
        // Nobody knows whether somebody had it run.
        let revoked = open(&world, Place::West).iter().any(|(_, stage)| stage == "revoked");
        if east == Power::Running && west != Power::Absent && revoked {
            world.guest().cleared(Place::West);
            return Some(Help::Cleared);
        }
        // It went on there, since the copy was made.
        let is_copied = world.guest().has_all_memory(Place::West);
        match (east, offered) {
            (Power::Paused, Some(_)) if operator == Operator::Ends => {
                world.operator(Place::East, Deed::Destroy);
                Some(Help::Destroyed)
            }
            (Power::Paused, _) => {
                world.operator(Place::East, Deed::Resume);
                Some(Help::Resumed)
            }
            (Power::Off | Power::Absent, Some(id)) if is_copied => {
                let word = world.agents.state(Place::East).join(format!("word-{id}"));
                std::fs::write(word, "ann\nI saw it end\n").unwrap();
                Some(Help::GaveWord)
            }
            (Power::Off | Power::Absent, _) => {
                world.guest().creates(Place::East);
                Some(Help::Started)
            }
            (Power::Running, _) => None,
        }
    }

    fn ended_well(&mut self, status: Option<&(Verdict, Evidence)>, was_started: bool) {
        let [east, west] = self.powers();
        if self.ended.is_none() && !self.world.was_killed() {
            self.violated("nobody answered the source's operator");
        }
        for place in [Place::East, Place::West] {
            let open = open(&self.world, place);
            if !open.is_empty() {
                self.violated(format!("not settled at {place}: {open:?}"));
            }
        }
        let completed =
            status.is_some_and(|(verdict, _)| verdict.verdict == VerdictKind::Completed);
        if completed {
            let runs = west == Power::Running || (self.world.kind.suspended && west.is_loaded());
            if !runs || east.is_loaded() {
                self.violated(format!("completed, and it is {east} and {west}"));
            }
            let retired = status.is_some_and(|(_, evidence)| {
                matches!(evidence.source, Some(SourceState::Retired { settled: true }))
            });
            if !retired {
                self.violated("granted, and not retired at the source");
            }
            let starts = |domain: &mut Domain| domain.persistent && !domain.fenced;
            if self.world.guest().domain(Place::East).is_some_and(starts) {
                self.violated("moved, and what is left of it at the source starts");
            }
            return;
        }
        if east != Power::Running || west != Power::Absent {
            self.violated(format!("not moved, and it is {east} and {west}"));
        }
        let mut guest = self.world.guest();
        let volumes = !guest.host(Place::West).volumes.is_empty();
        let fenced = guest.domain(Place::East).is_some_and(|domain| domain.fenced);
        drop(guest);
        if volumes {
            self.violated("volumes are left at the destination");
        }
        if fenced {
            self.violated("the source runs, and its definition is fenced");
        }
        match status {
            None => {}
            Some((verdict, evidence)) => {
                let over =
                    verdict.verdict == VerdictKind::RolledBack && verdict.next == Next::Nothing;
                // The source never put it on record: there is nothing to release.
                let never_there = verdict.verdict == VerdictKind::NotMigrated
                    && evidence.source.is_none()
                    && matches!(evidence.destination, Some(DestinationState::Revoked(_)));
                if !over && !never_there {
                    let (source, destination) = (&evidence.source, &evidence.destination);
                    self.violated(format!(
                        "not moved, and the verdict is {:?}, next {:?}: {source:?}, {destination:?}",
                        verdict.verdict, verdict.next
                    ));
                }
            }
        }
        let by_others = self.world.guest().destination_had || was_started;
        if self.ended == Some(Ended::Moved) && !by_others {
            self.violated("libvirt says that it moved, and it did not");
        }
    }
}
