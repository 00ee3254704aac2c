//! At every stop, what the evidence of both sites, or of one alone, is taken for, against what is so: the
//! test sees everything.

use std::collections::BTreeMap;

use handover::{Next, Side, Strength, Verdict, VerdictKind};
use model::{Power, SiteName};

use crate::crash::{clean, deaths};
use crate::stage::{Ask, Stage};

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
    fn denies(&self, verdict: &Verdict, ask: Ask) -> Option<&'static str> {
        use VerdictKind as V;
        let lies = match verdict.verdict {
            V::Completed => (!self.granted).then_some("it is not decided for the destination"),
            V::RolledBack => (!self.revoked).then_some("it was not taken back"),
            V::NotStarted | V::Resumable | V::NotMigrated => {
                self.granted.then_some("it is decided for the destination")
            }
            // That it was started by hand only its platform can tell.
            V::InHandover if !matches!(ask, Ask::Both | Ask::Source | Ask::SourceAnswers) => None,
            V::InHandover => self.runs_at.is_some().then_some("it runs"),
            V::AlarmSplit => Some("one copy runs"),
            // Nobody restored an old ledger, or it got back what it forgot.
            V::NeedsOperator => {
                matches!(verdict.next, Next::Quarantine(_)).then_some("none is old")
            }
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
            // From the decision on it belongs there, whatever somebody starts.
            Some(Side::Destination) if !self.granted => Some("it does not live at the destination"),
            _ => None,
        };
        // What stands over a decision alone may be shown as doubt about it.
        let doubts = verdict.evidence.iter().any(|fact| fact.contains("begun to call it off"));
        let doubted = (doubts && !self.granted).then_some("nothing is in doubt without a grant");
        lies.or(started).or(lives).or(doubted)
    }
}

/// Whoever is asked, nothing false is said. Answers with all that was.
pub async fn no_lies(stage: &Stage, at: &str) -> Vec<(Ask, bool, Verdict)> {
    let truth = Truth::of(stage);
    let mut said = Vec::new();
    let all = [Ask::Both, Ask::Ledgers, Ask::Source, Ask::Destination];
    let unanswered = [Ask::SourceAnswers, Ask::DestinationAnswers].map(|ask| (ask, true));
    let asked = all.into_iter().flat_map(|ask| [(ask, true), (ask, false)]).chain(unanswered);
    for (ask, with_journal) in asked {
        let verdict = stage.verdict(ask, with_journal).await;
        if let Some(lie) = truth.denies(&verdict, ask) {
            panic!("{at}, asked {ask:?}: {lie}: {verdict:#?}");
        }
        said.push((ask, with_journal, verdict));
    }
    said
}

/// And what both sites together say is sure, as long as nobody meddled.
pub async fn tells_the_truth(stage: &Stage, at: &str) -> Vec<(Ask, bool, Verdict)> {
    let said = no_lies(stage, at).await;
    for (_, _, verdict) in said.iter().filter(|(ask, ..)| *ask == Ask::Both) {
        let sure = verdict.strength == Strength::Proven || stage.has_no_ledgers();
        assert!(sure, "{at}: {verdict:#?}");
    }
    said
}

#[tokio::test(start_paused = true)]
async fn no_verdict_is_false_where_a_migration_stops() {
    let mut said: BTreeMap<_, BTreeMap<_, usize>> = BTreeMap::new();
    let mut stops = 0;
    for point in clean().await {
        for fate in deaths(&point) {
            let at = format!("{point}, {fate:?}");
            let stage = Stage::new().await;
            stage.dies(&point, fate, &at).await;
            stops += 1;
            for (ask, with_journal, verdict) in tells_the_truth(&stage, &at).await {
                let kind = format!("{:?} {:?}", verdict.verdict, verdict.strength);
                let of = said.entry(format!("{ask:?}, journal {with_journal}")).or_default();
                *of.entry(kind).or_default() += 1;
            }
        }
    }
    println!("{stops} stops");
    for (asked, verdicts) in said {
        println!("{asked}: {verdicts:?}");
    }
}
