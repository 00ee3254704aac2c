//! Starting → Confirmed: the destination boots from its own disk, until it answers.
//!
//! A destination that does not answer is never "rolled back": it may have written. What is left to
//! do is said, and a person decides.

use std::time::Duration;

use handover::DestinationRequest;
use model::Power;
use plan::Probe;
use site::PlaceholderState;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use wire::control::Request;

use super::fence::still_off;
use crate::custody::CustodyError;
use crate::error::StepError;
use crate::progress::Progress;
use crate::record::Record;
use crate::run::{Run, now_ms};

/// A guest that checks its file systems may take this long.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);
const PROBE_EVERY: Duration = Duration::from_millis(100);
const PROBE_WITHIN: Duration = Duration::from_secs(3);
/// How often the platform is asked whether it still runs.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub(crate) async fn start(run: &mut Run) -> Result<Record, StepError> {
    if let Some(helper) = run.links.destination.take() {
        // All of it is durable already; a helper that does not answer is powered off with the
        // placeholder's own start.
        if let Err(error) = helper.tell(Request::Shutdown).await {
            tracing::debug!(%error, "helper gone before it was told to go");
        }
    }
    run.links.cut();
    let spec = run.placeholder_own();
    run.tell_destination(DestinationRequest::Start).await?;
    let epoch = run.epoch();
    match run.custody.not_released_meanwhile(epoch).await {
        Err(error @ CustodyError::MayBeReleased { .. }) => by_word(run, error).await?,
        looked => looked?,
    }
    // The last that is done before: nothing but the platform's next call is to be between.
    still_off(run).await?;
    run.watcher.step(format!("starting {} at {}", spec.name, run.plan.to));
    run.destination.start_from_own_disk(&spec).await?;
    run.tell_destination(DestinationRequest::Started).await?;
    if !run.state.booting {
        run.record(Record::Booting).await?;
    }
    let how = wait_for_answer(run).await?;
    let began = run.state.drained.as_ref().and_then(|drain| drain.at_ms);
    let downtime_ms = began.map(|began| u64::try_from(now_ms() - began).unwrap_or_default());
    run.tell_destination(DestinationRequest::Healthy).await?;
    run.watcher.tell(Progress::Answered {
        downtime_ms,
        budget_ms: run.plan.options.max_downtime_ms,
        forecast_ms: run.state.forecast_ms,
    });
    Ok(Record::Answered { how, downtime_ms })
}

/// The operator's, of this life of it or an earlier one.
async fn by_word(run: &mut Run, otherwise: CustodyError) -> Result<(), StepError> {
    if run.state.vouched.is_some() {
        return Ok(());
    }
    let word = run.vouched.not_released().ok_or(otherwise)?;
    let (by, reason) = (word.by.as_str().to_owned(), word.reason.as_str().to_owned());
    run.record(Record::Vouched { by, reason }).await
}

async fn wait_for_answer(run: &Run) -> Result<String, StepError> {
    let began = Instant::now();
    let mut last = "nothing was tried".to_owned();
    let mut look_at = LOOK_EVERY;
    while began.elapsed() < ANSWER_WITHIN {
        match probe(run).await {
            Ok(how) => return Ok(how),
            Err(why) => last = why,
        }
        // A guest that is off answers nobody, however long anybody waits.
        if began.elapsed() >= look_at {
            look_at = began.elapsed() + LOOK_EVERY;
            if let Ok(Power::Off) = run.destination.power(run.vm()).await {
                let (vm, site) = (run.plan.vm.name.clone(), run.plan.to.clone());
                return Err(StepError::StoppedAtBoot { vm, site, how: last });
            }
        }
        sleep(PROBE_EVERY).await;
    }
    Err(StepError::NoAnswer { waited: ANSWER_WITHIN, how: last })
}

/// How it answered, or why it did not.
async fn probe(run: &Run) -> Result<String, String> {
    match &run.plan.options.probe {
        Probe::Running => match run.destination.placeholder(run.vm()).await {
            Ok(PlaceholderState::Released { power: Power::Running, .. }) => {
                Ok("the platform says that it runs; nothing in the guest was asked".to_owned())
            }
            Ok(other) => Err(format!("the platform says: {other:?}")),
            Err(error) => Err(units::chain(&error)),
        },
        Probe::Tcp { address } => {
            connect(address).await?;
            Ok(format!("{address} accepts connections"))
        }
        Probe::Ssh { address } => {
            let mut stream = connect(address).await?;
            let mut banner = [0; 4];
            let read = timeout(PROBE_WITHIN, stream.read_exact(&mut banner)).await;
            match read {
                Ok(Ok(_)) if banner == *b"SSH-" => {
                    Ok(format!("{address} answers with an SSH banner"))
                }
                Ok(Ok(_)) => Err(format!("{address} is no SSH server")),
                Ok(Err(error)) => Err(format!("{address}: {error}")),
                Err(_) => Err(format!("{address} accepts, but says nothing")),
            }
        }
    }
}

async fn connect(address: &str) -> Result<TcpStream, String> {
    match timeout(PROBE_WITHIN, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!("{address} does not answer")),
    }
}
