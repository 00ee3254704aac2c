//! Long random histories: several things go wrong in each of several lives, and then nothing any more.
//! It has to end well by itself, and at every stop what `status` says is so.
//!
//! `SEEDS=100000` tries as many, from `FIRST=10000` on others; `SEED=17` replays one and prints it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use handover::Strength;
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::points::{At, Fate, Points};
use crate::stage::{Ask, Doing, End, Ends, Stage};
use crate::verdicts::no_lies;

/// Histories without a word from outside.
const SEEDS: u64 = 10_000;
/// Lives in which something goes wrong.
const LIVES_MAX: u64 = 6;
/// Passages of a whole migration, and some.
const PASSAGES: u64 = 165;

struct Dice(TestRng);

impl Dice {
    fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// What somebody does at the source, while a coordinator lives or between two of them.
#[derive(Clone, Copy, Debug)]
enum Hand {
    /// Lets a suspended source go on, and it writes.
    Resume,
    ShutDown,
    /// Takes every fence off and starts it, where no copy runs.
    Start,
    /// The helper, or whatever runs at the destination, loses its power.
    KillHelper,
    /// Streams to the helper break.
    Cut,
}

impl Hand {
    fn roll(dice: &mut Dice) -> Self {
        match dice.below(5) {
            0 => Self::Resume,
            1 => Self::ShutDown,
            2 => Self::Start,
            3 => Self::KillHelper,
            _ => Self::Cut,
        }
    }

    /// What it does, given before which passage. What is done between the last look at something and
    /// the very next call nobody can see.
    fn of(self, stage: &Stage) -> Box<dyn Fn(&str) + Send> {
        let (world, guest, vm) = (stage.world.clone(), stage.guest.clone(), stage.id());
        let (east, west) = (stage.east.clone(), stage.west.clone());
        match self {
            Self::Resume => Box::new(move |before| {
                if before != "east: power_off" {
                    world.admin_resumes(&east, vm);
                    guest.write_past_the_freeze();
                }
            }),
            Self::ShutDown => Box::new(move |_| world.guest_powers_off(&east, vm)),
            Self::Start => {
                let (start, ledgers) = (stage.starter(), stage.ledgers());
                // Once it is decided it is no source any more: what it writes is nobody's.
                Box::new(move |before| {
                    let runs_nowhere = world.loaded_at(vm).is_none();
                    if runs_nowhere && !ledgers.decided().0 && !is_decided_by(before) {
                        start();
                    }
                })
            }
            Self::KillHelper => {
                let target = stage.target.clone();
                Box::new(move |_| {
                    if world.loaded_at(vm).as_ref() != Some(&west) {
                        target.powers_off(&world, vm);
                    }
                })
            }
            Self::Cut => Box::new(move |_| world.cut_channels(&west, vm)),
        }
    }
}

/// Is the very next thing that the decision is written, at the site or here?
pub fn is_decided_by(before: &str) -> bool {
    before.starts_with("west ledger") || before == "west: keep"
}

/// What goes wrong in a life.
fn life(dice: &mut Dice, stage: &Stage) -> (Points, String) {
    let at = At::Nth(usize::try_from(dice.below(PASSAGES)).unwrap());
    if dice.one_in(4) {
        let hand = Hand::roll(dice);
        let told = format!("{hand:?} before {at:?}");
        return (Points::beside(at, hand.of(stage)), told);
    }
    let fate = match dice.below(6) {
        0 => Fate::DiesBefore,
        1 => Fate::DiesWithin,
        2 => Fate::DiesAfter,
        3 => Fate::LosesRequest,
        4 => Fate::LosesReply,
        _ => Fate::Twice,
    };
    let told = format!("{fate:?} at {at:?}");
    (Points::with(at, fate), told)
}

/// Something that was kept is lost, or of an earlier day.
async fn lose(dice: &mut Dice, stage: &Stage) -> &'static str {
    let site = if dice.one_in(2) { &stage.east } else { &stage.west };
    match dice.below(4) {
        0 => {
            stage.kept.lose_everything();
            stage.recover().await;
            "everything is lost, and recovered"
        }
        1 => {
            stage.kept.restore_ledger(site, Vec::new());
            "a ledger is lost"
        }
        2 => {
            stage.world.set_records(site, BTreeMap::new());
            "a site loses what it kept"
        }
        _ => {
            let records = stage.kept.records().len();
            stage.kept.restore_journal(records / 2);
            "the journal is of an earlier day"
        }
    }
}

/// What happens between two lives. Of what is kept for the same end only one is lost in a history.
async fn between(dice: &mut Dice, stage: &Stage, has_lost: &mut bool, told: &mut Vec<String>) {
    if !*has_lost && dice.one_in(4) {
        *has_lost = true;
        told.push(lose(dice, stage).await.to_owned());
    }
    if dice.one_in(4) {
        stage.kept.lose_power();
        told.push("the power fails".to_owned());
    }
    if dice.one_in(4) {
        let hand = Hand::roll(dice);
        hand.of(stage)("nothing");
        told.push(format!("{hand:?}"));
    }
}

/// What was said of all stops.
#[derive(Debug, Default)]
struct Tally {
    stops: usize,
    /// ... by the destination alone: not known.
    unknown: usize,
}

impl Tally {
    async fn stop(&mut self, stage: &Stage) {
        self.stops += 1;
        for (ask, with_journal, verdict) in no_lies(stage, "at a stop").await {
            let unknown = ask == Ask::Destination && verdict.strength == Strength::Unknown;
            self.unknown += usize::from(unknown && with_journal);
        }
    }
}

async fn history(seed: u64, told: &mut Vec<String>, tally: &mut Tally) -> End {
    let mut dice = Dice::new(seed);
    let mut has_lost = false;
    let stage = Stage::new().await;
    for _ in 0..=dice.below(LIVES_MAX) {
        let doing = if dice.one_in(5) { Doing::Abort } else { Doing::Migrate };
        let (points, what) = life(&mut dice, &stage);
        told.push(format!("{doing:?}, {what}"));
        let end = stage.live(doing, &points).await;
        told.push(format!("{end:?}, passed {}", points.passed().len()));
        let is_over = matches!(end, End::Final(_));
        has_lost |= is_over;
        between(&mut dice, &stage, &mut has_lost, told).await;
        tally.stop(&stage).await;
        if is_over {
            // Shut down meanwhile, it is started by its operator.
            stage.operator_obeys().await;
            stage.assert_ended(&end, "at the end").await;
            return end;
        }
    }
    // Nothing goes wrong any more, and its operator does what is asked for.
    for _ in 0..6 {
        let doing = stage.operator_obeys().await;
        let end = stage.live(doing, &Points::default()).await;
        told.push(format!("then {doing:?}: {end:?}"));
        // Where the ledgers know more than the journal.
        if matches!(end, End::Halted(_)) {
            stage.recover().await;
        }
        if matches!(end, End::Final(_)) {
            stage.assert_ended(&end, "at the end").await;
            return end;
        }
    }
    panic!("no end");
}

/// As many histories at once as the machine that CI has can run.
const THREADS: usize = 2;
/// Findings in one go before it stops looking for more.
const FINDINGS_MAX: usize = 10;

#[test]
fn whatever_goes_wrong_it_ends_well() {
    let of = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = of("SEED").or_else(|| of("FIRST")).unwrap_or_default();
    let count = if of("SEED").is_some() { 1 } else { of("SEEDS").unwrap_or(SEEDS) };
    let next = AtomicU64::new(first);
    let sum = Mutex::new(Sum::default());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while sum.lock().unwrap().failed.len() < FINDINGS_MAX {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    one(seed, count == 1, &sum);
                }
            });
        }
    });
    let Sum { ends, tally, failed } = sum.into_inner().unwrap();
    println!("{count} seeds from {first}: {ends:?}, {tally:?}");
    assert!(failed.is_empty(), "seeds that did not end well: {failed:?}");
}

#[derive(Default)]
struct Sum {
    ends: Ends,
    tally: Tally,
    failed: Vec<u64>,
}

/// Runs one history and adds what came of it. One that fails is printed, with what replays it.
fn one(seed: u64, is_shown: bool, sum: &Mutex<Sum>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let (mut told, mut tally) = (Vec::new(), Tally::default());
    let tried =
        AssertUnwindSafe(|| runtime.unwrap().block_on(history(seed, &mut told, &mut tally)));
    let ended = catch_unwind(tried);
    let mut sum = sum.lock().unwrap();
    sum.tally.stops += tally.stops;
    sum.tally.unknown += tally.unknown;
    if let Ok(end) = ended {
        sum.ends.count(&end);
    } else {
        eprintln!("SEED={seed} replays this:\n  {}", told.join("\n  "));
        sum.failed.push(seed);
    }
    if is_shown {
        println!("{}", told.join("\n"));
    }
}
