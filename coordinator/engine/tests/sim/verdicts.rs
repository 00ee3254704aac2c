//! At every stop, what one site's evidence alone is taken for, against what is true: the test sees
//! everything, and tries afterwards what can become of it.

use std::collections::BTreeMap;

use engine::Phase;
use handover::{Side, Strength, Verdict, VerdictKind};
use model::{Power, SiteName};

use crate::crash::{clean, deaths};
use crate::points::Points;
use crate::stage::{Ask, Doing, End, Stage};

/// What is so at a stop.
struct Truth {
    runs_at: Option<Side>,
    /// The destination's ledger has decided for it.
    granted: bool,
    /// ... that it never will.
    revoked: bool,
    was_started: bool,
}

impl Truth {
    fn of(stage: &Stage) -> Self {
        let loaded_at = stage.world.loaded_at(stage.id());
        let running = |site: &SiteName| stage.world.power(site, stage.id()) == Power::Running;
        let side = |site| if site == stage.east { Side::Source } else { Side::Destination };
        let runs_at = loaded_at.filter(running).map(side);
        let (granted, revoked) = stage.decided();
        Self { runs_at, granted, revoked, was_started: runs_at == Some(Side::Destination) }
    }

    /// What of a verdict is false, in words.
    fn denies(&self, verdict: &Verdict) -> Option<&'static str> {
        use VerdictKind as V;
        let lies = match verdict.verdict {
            V::Completed => (!self.granted).then_some("it is not decided for the destination"),
            V::RolledBack => (!self.revoked).then_some("it was not taken back"),
            V::NotStarted | V::Resumable | V::NotMigrated => {
                self.granted.then_some("it is decided for the destination")
            }
            V::InHandover => self.runs_at.is_some().then_some("it runs"),
            V::AlarmSplit => Some("one copy runs"),
            V::NeedsOperator => None,
        };
        let started = match verdict.started {
            Some(true) if !self.was_started => Some("it was not started there"),
            Some(false) if self.was_started => Some("it was started there"),
            _ => None,
        };
        let lives = match verdict.lives_at {
            Some(Side::Source) if self.runs_at == Some(Side::Destination) || self.granted => {
                Some("it does not live at the source")
            }
            Some(Side::Destination) if self.runs_at == Some(Side::Source) || !self.granted => {
                Some("it does not live at the destination")
            }
            _ => None,
        };
        lies.or(started).or(lives)
    }
}

/// After a stop in a migration or in its being called off, whatever is asked: nothing false is said,
/// what both sites together say is sure, and what is said to be safe is.
#[tokio::test(start_paused = true)]
async fn no_verdict_is_false_at_any_stop() {
    let mut said: BTreeMap<_, BTreeMap<_, usize>> = BTreeMap::new();
    let mut stops = 0;
    for point in clean().await {
        for fate in deaths(&point) {
            let at = format!("{point}, {fate:?}");
            let stage = Stage::new();
            stage.dies(&point, fate, &at).await;
            stops += 1;
            let truth = Truth::of(&stage);
            for ask in [Ask::Both, Ask::Ledgers, Ask::Source, Ask::Destination] {
                for with_journal in [true, false] {
                    let verdict = stage.verdict(ask, with_journal).await;
                    if let Some(lie) = truth.denies(&verdict) {
                        panic!("{at}, asked {ask:?}: {lie}: {verdict:#?}");
                    }
                    let sure = verdict.strength == Strength::Proven || stage.has_no_ledgers();
                    assert!(sure || ask != Ask::Both, "{at}: {verdict:#?}");
                    let key = format!("{:?} {:?}", verdict.verdict, verdict.strength);
                    *said
                        .entry(format!("{ask:?}, journal {with_journal}"))
                        .or_default()
                        .entry(key)
                        .or_default() += 1;
                }
            }
            let end = stage.live(Doing::Migrate, &Points::default()).await;
            assert!(matches!(end, End::Final(Phase::Retired | Phase::RolledBack)), "{at}: {end:?}");
        }
    }
    println!("{stops} stops");
    for (asked, verdicts) in said {
        println!("{asked}: {verdicts:?}");
    }
}
