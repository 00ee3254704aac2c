//! One migration with one blow, and what has to be true of it.

use std::fmt;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Agents, Scene, SceneOptions, VM, never_two, state};
use lab::{Between, Scenario, Wan};

use crate::blow::Blow;
use crate::steps::{Before, Step};

/// Every step is seen; the guest's 100 MiB take some seconds.
const LONG_AND_SLOW: Wan =
    Wan { rate: Some(100), delay: Duration::from_millis(50), loss: 0.0, seed: 0 };

/// Whatever happened, the operator of the source has an answer within this.
const ANSWERED_WITHIN: Duration = Duration::from_secs(90);
/// ... and it is settled within this from then on.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

/// Where the guest is, and agents; for as long as it stays where it is.
pub struct Place {
    scene: Scene,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    AtTheSource,
    /// ... where it had to be started again, since it was killed there.
    StartedAtTheSource,
    AtTheDestination,
    /// ... by word of its operator: nobody saw how the source's ended, as its libvirt died over it.
    VouchedFor,
    /// ... booted from its disks, since its memory was lost with its host.
    BootedAtTheDestination,
}

pub struct Told {
    pub ended: Ended,
    answered: Duration,
    settled: Duration,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ended, answered, settled } = self;
        write!(f, "{ended:?}; virsh answered after {answered:.1?}, settled {settled:.1?} later")
    }
}

impl Place {
    pub fn new() -> Result<Self> {
        let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default())?;
        // Whoever writes at either site is heard by the witness.
        Agents::start(&scene)?.stretch_network()?;
        Ok(Self { scene })
    }

    /// The place, if the guest is still in it.
    pub fn run(self, step: Step, blow: Blow, persistent: bool) -> (Result<Told>, Option<Self>) {
        let told = run(&self.scene, step, blow, persistent);
        let stays = told
            .as_ref()
            .is_ok_and(|told| matches!(told.ended, Ended::AtTheSource | Ended::StartedAtTheSource));
        (told, stays.then_some(self))
    }
}

fn run(scene: &Scene, step: Step, blow: Blow, persistent: bool) -> Result<Told> {
    let line = Between::Operator("east");
    scene.lab.set_wan(line, Wan::default())?;
    let mut agents = Agents::start(scene)?;
    scene.lab.set_wan(line, LONG_AND_SLOW)?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| never_two(scene, &over));
        let told = deal_and_settle(scene, &mut agents, step, blow, persistent);
        over.store(true, Ordering::Relaxed);
        watch.join().expect("it does not panic")?;
        told.with_context(|| agents.logs())
    })
}

fn deal_and_settle(
    scene: &Scene,
    agents: &mut Agents<'_>,
    step: Step,
    blow: Blow,
    persistent: bool,
) -> Result<Told> {
    let before = Before::of(agents);
    let more: &[&str] = if persistent { &["--persistent"] } else { &[] };
    let migrating = agents.spawn(&[&["--p2p", "--copy-storage-all"], more].concat())?;
    step.wait(agents, &before)?;
    let dealt = Instant::now();
    blow.deal(scene, agents)?;
    let (is_answered, said) = answer(migrating)?;
    let answered = dealt.elapsed();

    let (mut ended, mut vouched, mut crashed, mut cleared) = (None, false, false, false);
    while ended.is_none() {
        sleep(Duration::from_millis(100));
        ended = settled(scene, blow)?;
        if !vouched && let Some(id) = agents.wanted_word() {
            ensure!(state(scene.west())? == "paused", "it runs, and nobody saw the other one end");
            agents.vouch(&id)?;
            vouched = true;
        }
        // Nobody knows whether it ran: its operator does, and ends it.
        if !cleared && let Some(volumes) = agents.unknown_copy() {
            ensure!(blow == Blow::DestinationsState, "its agent knew of it");
            ensure!(state(scene.west())? == "paused", "it is not held");
            ensure!(state(scene.east())? == "running", "the source does not go on");
            scene.west().virsh(&["destroy", VM])?;
            scene.west().virsh(&["undefine", VM])?;
            for volume in &volumes {
                scene.west().virsh(&["vol-delete", volume])?;
            }
            cleared = true;
        }
        // The blow came when it ran already: a crash like any other, after which its operator starts it.
        let ran = || agents.west.log().contains("web1 runs here");
        if !crashed && blow == Blow::DestinationsQemu && ran() && state(scene.west())? == "shut off"
        {
            scene.west().virsh(&["start", VM])?;
            crashed = true;
        }
        ensure!(dealt.elapsed() < answered + SETTLED_WITHIN, "never settled; virsh: {said}");
    }
    let mut ended = ended.context("it is settled")?;
    ensure!(!vouched || blow == Blow::SourcesLibvirtd, "a word was wanted");
    let settled = dealt.elapsed().saturating_sub(answered);
    if let Some(must) = must_be(step, blow)
        && must != ended
    {
        bail!("{ended:?} and not {must:?}; virsh: {said}");
    }
    if is_answered && matches!(ended, Ended::AtTheSource | Ended::StartedAtTheSource) {
        bail!("virsh was told that it moved, and it is {ended:?}");
    }
    told_true(scene, agents, ended)?;
    scene.lab.set_wan(Between::Operator("east"), Wan::default())?;
    match ended {
        Ended::AtTheSource => scene.ledger_is_whole(scene.at_east)?,
        Ended::StartedAtTheSource => {
            scene.east().virsh(&["start", VM])?;
            scene.ledger_is_whole(scene.at_east)?;
        }
        Ended::AtTheDestination | Ended::VouchedFor | Ended::BootedAtTheDestination => {
            agents.route_to_west()?;
            let is_lost = crashed || agents.west.log().contains("memory is lost");
            if is_lost {
                ended = Ended::BootedAtTheDestination;
                scene.ledger_is_whole(scene.at_west)?;
            } else {
                agents.has_moved_whole()?;
            }
        }
    }
    if vouched {
        ended = Ended::VouchedFor;
    }
    Ok(Told { ended, answered, settled })
}

/// Whether virsh succeeded, and what it said. It never hangs.
fn answer(mut migrating: Child) -> Result<(bool, String)> {
    let began = Instant::now();
    while migrating.try_wait()?.is_none() {
        if began.elapsed() > ANSWERED_WITHIN {
            migrating.kill()?;
            bail!("virsh hangs: {:?}", migrating.wait_with_output()?);
        }
        sleep(Duration::from_millis(10));
    }
    let output = migrating.wait_with_output()?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Where it is, once nobody is going to move it any more.
fn settled(scene: &Scene, blow: Blow) -> Result<Option<Ended>> {
    let (Ok(east), Ok(west)) = (state(scene.east()), state(scene.west())) else { return Ok(None) };
    let is_clean = || scene.west_is_clean().is_ok();
    Ok(match (&*east, &*west) {
        ("running", "") if is_clean() => Some(Ended::AtTheSource),
        ("shut off", "") if blow == Blow::SourcesQemu && is_clean() => {
            Some(Ended::StartedAtTheSource)
        }
        ("shut off" | "", "running") => Some(Ended::AtTheDestination),
        _ => None,
    })
}

/// Before it was offered the source has it, and once the source's was seen dead the destination.
fn must_be(step: Step, blow: Blow) -> Option<Ended> {
    match blow {
        // It goes on, if it did not break over it.
        Blow::LineForAMoment | Blow::Abort | Blow::Reply => None,
        Blow::SourcesQemu if step < Step::FinishAsked => Some(Ended::StartedAtTheSource),
        _ if step < Step::FinishAsked && step != Step::MemoryEnded => Some(Ended::AtTheSource),
        _ if step > Step::Offered => Some(Ended::AtTheDestination),
        _ => None,
    }
}

/// What `status` exits with, as README.md has it.
const DONE: i32 = 0;
const REFUSED: i32 = 3;
const UNDECIDED: i32 = 5;

/// Whoever asks the sites learns where it is.
fn told_true(scene: &Scene, agents: &Agents<'_>, ended: Ended) -> Result<()> {
    let (right, wrong, stays) = match ended {
        Ended::AtTheSource => ("lives at east", "at west", true),
        Ended::StartedAtTheSource => ("belongs to east", "at west", true),
        Ended::AtTheDestination | Ended::VouchedFor | Ended::BootedAtTheDestination => {
            ("lives at west", "at east", false)
        }
    };
    let mut told = String::new();
    let is_told = || {
        let ran = scene.causeway(&["status", VM])?;
        told = format!("{}: {}{}", ran.code, ran.stdout, ran.stderr);
        ensure!(!ran.stdout.contains(wrong), "{told}");
        // One that was refused before anything was on record is in no ledger; it did not move.
        let is_in_none = ran.stderr.contains("no migration");
        match ran.code {
            REFUSED => ensure!(is_in_none && stays, "{told}"),
            // It is not settled yet.
            DONE | UNDECIDED => ensure!(!is_in_none, "{told}"),
            _ => bail!("{told}"),
        }
        Ok(is_in_none || ran.code == DONE && ran.stdout.contains(right))
    };
    agents.until("status tells where it is", is_told).map(drop).with_context(|| told.clone())
}
