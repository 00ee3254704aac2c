//! Copying → Holding → Draining: rounds, until the rest fits the budget and nobody holds it back.

use std::time::Duration;

use plan::rounds::{Decision, decide};
use tokio::time::{Instant, sleep};
use units::Bytes;
use wire::control::{BootFinding, Reply, Request, Severity};

use crate::error::StepError;
use crate::progress::Progress;
use crate::record::{Record, StoredFigures};
use crate::run::Run;

/// How often a held migration looks whether it is released.
const HOLD_POLL: Duration = Duration::from_millis(500);
/// Between two rounds while held, so that an idle guest is not read for nothing.
const HOLD_PAUSE_POLLS: u32 = 10;

pub(crate) async fn copy(run: &mut Run) -> Result<Record, StepError> {
    // Each time that it is taken up again it gets its rounds anew.
    let since = run.state.rounds.len();
    loop {
        run.check_wish()?;
        one_round(run).await?;
        match decide(&run.state.rounds, since, run.budget()) {
            Decision::CopyAgain { .. } => {}
            Decision::SwitchOver { forecast_ms } => {
                look_at_copy(run).await?;
                return Ok(Record::Converged { forecast_ms: Some(forecast_ms) });
            }
            Decision::WontConverge(divergence) => return Err(StepError::WontConverge(divergence)),
        }
    }
}

/// Will a firmware find something to start? Asked while the source runs and nothing is at stake.
async fn look_at_copy(run: &mut Run) -> Result<(), StepError> {
    run.connect().await?;
    let helper = run.destination_agent().await?;
    let findings = match helper.call(Request::InspectBoot).await {
        Ok(Reply::Boot { findings }) => findings,
        Ok(other) => return Err(helper.unexpected(&other).into()),
        Err(error) if error.is_line() => {
            run.watcher.warn(format!("the copy was not looked at: {}", units::chain(&error)));
            run.links.cut();
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    for finding in findings {
        let BootFinding { severity, text, remedy, .. } = finding;
        match severity {
            Severity::Fine => run.watcher.step(format!("looked at the copy: {text}")),
            Severity::Warning => {
                let remedy = remedy.map_or_else(String::new, |remedy| format!("; {remedy}"));
                run.watcher.warn(format!("looked at the copy: {text}{remedy}"));
            }
            Severity::Blocking => return Err(StepError::CopyBroken { what: text }),
        }
    }
    Ok(())
}

/// Copies on while the operator or the clock holds it. What no longer fits when it is released is
/// copied until it does, or until it is a verdict.
pub(crate) async fn hold(run: &mut Run) -> Result<Record, StepError> {
    let by = held(run).await?;
    // The last round before the release is the first that is judged.
    let since = run.state.rounds.len().saturating_sub(1);
    loop {
        run.check_wish()?;
        match decide(&run.state.rounds, since, run.budget()) {
            Decision::SwitchOver { .. } => return Ok(Record::Released { by }),
            Decision::CopyAgain { .. } => one_round(run).await?,
            Decision::WontConverge(divergence) => return Err(StepError::WontConverge(divergence)),
        }
    }
}

/// Until it is released; by whom.
async fn held(run: &mut Run) -> Result<String, StepError> {
    let mut polls = 0;
    let mut announced = false;
    loop {
        run.check_wish()?;
        if let Some(by) = released_by(run).await {
            return Ok(by);
        }
        if polls == HOLD_PAUSE_POLLS {
            polls = 0;
            one_round(run).await?;
            continue;
        }
        if !announced {
            run.watcher.step(waiting_for(run));
            announced = true;
        }
        polls += 1;
        sleep(HOLD_POLL).await;
    }
}

async fn released_by(run: &Run) -> Option<String> {
    if run.operator.has_released().await {
        return Some("the operator".to_owned());
    }
    if run.plan.options.hold {
        return None;
    }
    let due = run.plan.options.not_before;
    (due.is_none_or(|due| crate::run::now_ms() / 1000 >= due)).then(|| "the plan".to_owned())
}

fn waiting_for(run: &Run) -> String {
    if run.plan.options.hold {
        format!("holding: `causeway switchover {}` releases it", run.plan.id)
    } else {
        "holding until the planned time".to_owned()
    }
}

/// One recorded round. A broken line is mended and the round goes on where it was, as long as
/// something arrives between two breaks.
async fn one_round(run: &mut Run) -> Result<(), StepError> {
    run.arrived_at = Instant::now();
    loop {
        run.connect().await?;
        run.targets_empty = false;
        let number = run.state.next_round;
        match run.round(number).await {
            Ok(end) => {
                let sum = |pick: fn(&wire::control::DiskProgress) -> Bytes| {
                    end.progress.disks.iter().map(pick).sum::<Bytes>()
                };
                let figures = StoredFigures {
                    elapsed_ms: end.progress.elapsed_ms,
                    sent: sum(|disk| disk.sent),
                    dirtied: end.progress.dirtied,
                    remaining: end.remaining,
                };
                run.record(Record::RoundEnded { number, figures, wire: sum(|disk| disk.wire) })
                    .await?;
                let budget = run.budget();
                let goodput = plan::rounds::goodput(&run.state.rounds);
                run.watcher.tell(Progress::RoundEnded {
                    number,
                    remaining: end.remaining,
                    forecast_ms: plan::rounds::forecast_ms(end.remaining, goodput, budget),
                    budget_ms: budget.max_downtime_ms,
                });
                return Ok(());
            }
            Err(error) if error.is_line() => {
                let waited = run.arrived_at.elapsed();
                if waited >= run.patience {
                    run.links.cut();
                    let whom = "the agents".to_owned();
                    return Err(StepError::OutOfPatience { whom, waited, last: Box::new(error) });
                }
                let why = units::chain(&error);
                run.watcher.tell(Progress::Reconnecting { whom: "the agents".to_owned(), why });
                run.links.cut();
            }
            Err(error) => return Err(error),
        }
    }
}
