//! Why a step did not get there, and why a migration stopped.

use std::time::Duration;

use handover::Refusal;
use model::{Power, SiteName};
use plan::rounds::Divergence;
use site::{FenceStage, SiteError};
use thiserror::Error;
use wire::control::{ErrorCode, Failure};

use crate::custody::CustodyError;
use crate::phase::{IllegalTurn, Phase};

/// Why a step did not do what it is for.
#[derive(Debug, Error)]
pub enum StepError {
    #[error(transparent)]
    Site(#[from] SiteError),

    #[error(transparent)]
    Agent(#[from] AgentError),

    #[error(transparent)]
    Custody(#[from] crate::custody::CustodyError),

    #[error("cannot write the journal")]
    Journal(#[from] JournalError),

    #[error(
        "source and destination disagree about disk {disk} after the drain: {source_digest} and {destination_digest}"
    )]
    DigestMismatch { disk: String, source_digest: String, destination_digest: String },

    #[error("the guest wrote to {disk} after the drain ({before} requests before, {after} after)")]
    WroteAfterDrain { disk: String, before: u64, after: u64 },

    #[error("{vm} is {found} at {site}, and nothing proves that it wrote nothing after the drain")]
    StoppedUnproven { vm: String, site: SiteName, found: model::Power },

    #[error("the gate `{gate}` does not let it pass: {why}")]
    GateShut { gate: String, why: String },

    #[error("nothing shows that {vm} lives at {to} ({what}): its copy at {from} may be the last")]
    MaybeLastCopy { vm: String, from: SiteName, to: SiteName, what: String },

    #[error("{vm} is suspended at {site}")]
    Suspended { vm: String, site: SiteName },

    #[error("pool {pool} at {site} is stopped: what was made in it cannot be seen or removed")]
    PoolHidden { pool: String, site: SiteName },

    #[error("a later migration of {vm} has taken over")]
    Superseded { vm: String },

    #[error("the guest is not the one that was planned: {what}")]
    GuestChanged { what: String },

    #[error("the copy would not come up: {what}")]
    CopyBroken { what: String },

    #[error("the copy does not converge")]
    WontConverge(Divergence),

    #[error("no answer from the destination within {} s", waited.as_secs())]
    NoAnswer { waited: Duration, how: String },

    #[error("{vm} was started at {site} and stopped before it answered ({how})")]
    StoppedAtBoot { vm: String, site: SiteName, how: String },

    #[error("the line to {whom} stayed broken for {} s", waited.as_secs())]
    OutOfPatience { whom: String, waited: Duration, last: Box<Self> },

    #[error("the fence of {vm} at {site} does not hold: {stage:?} is not in place")]
    FenceOpen { vm: String, site: SiteName, stage: FenceStage },

    #[error("{vm} at {site} is {power} in spite of its fence")]
    RunsFenced { vm: String, site: SiteName, power: Power, decided: bool },

    /// The operator asked to stop.
    #[error("interrupted")]
    Interrupted,

    #[error(transparent)]
    Illegal(#[from] IllegalTurn),
}

/// What went wrong between us and an agent.
#[derive(Debug, Error)]
pub enum AgentError {
    #[error("lost the agent {at}")]
    Lost {
        at: String,
        #[source]
        cause: Option<Box<dyn std::error::Error + Send + Sync>>,
    },

    #[error("the agent {at} did not answer {request} within {} s", waited.as_secs())]
    Silent { at: String, request: &'static str, waited: Duration },

    #[error("the agent {at} refuses {request}: {text}", text = failure.text)]
    Refused { at: String, request: &'static str, failure: Failure },

    #[error("the agent {at} broke the protocol: {what}")]
    Protocol { at: String, what: String },
}

impl AgentError {
    pub(crate) fn lost(
        at: impl Into<String>,
        cause: Box<dyn std::error::Error + Send + Sync>,
    ) -> Self {
        Self::Lost { at: at.into(), cause: Some(cause) }
    }

    /// Is it the line, so that opening it anew may help?
    pub const fn is_line(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::Silent { .. } => true,
            Self::Refused { failure, .. } => matches!(failure.code, ErrorCode::Streams),
            Self::Protocol { .. } => false,
        }
    }
}

/// The journal cannot be written: nothing more may be done.
#[derive(Debug, Error)]
#[error("{what}")]
pub struct JournalError {
    pub what: String,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StepError {
    /// Is it the line, so that waiting and opening it anew may help?
    pub fn is_line(&self) -> bool {
        match self {
            Self::Site(error) => !matches!(error.remedy(), site::Remedy::GiveUp),
            Self::Agent(error) => error.is_line(),
            Self::Custody(error) => {
                error.at_site().is_some_and(|error| error.remedy() != site::Remedy::GiveUp)
            }
            _ => false,
        }
    }

    /// What the operator can do, where the error itself knows.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Site(error) => error.hint.iter().cloned().collect(),
            Self::Agent(AgentError::Refused { failure, .. }) => {
                failure.hint.iter().cloned().collect()
            }
            Self::WontConverge(divergence) => divergence.remedies(),
            Self::Suspended { vm, site } => vec![format!(
                "let it go on at {site} (libvirt: virsh resume {vm}), then repeat this command"
            )],
            Self::PoolHidden { pool, .. } => vec![format!(
                "start it (libvirt: virsh pool-start {pool}), then repeat this command"
            )],
            Self::RunsFenced { vm, site, decided, .. } => {
                let kept = "what it wrote since its fence is not in the copy";
                let stop = format!("stop it at {site} (libvirt: virsh destroy {vm})");
                vec![if *decided {
                    format!("{stop} and repeat this command; {kept}")
                } else {
                    format!("{kept}: `causeway abort` keeps it; if it is of no use, {stop} and repeat this command")
                }]
            }
            Self::FenceOpen { .. } => {
                vec!["`causeway abort` takes everything back; the source runs again then".to_owned()]
            }
            Self::StoppedAtBoot { vm, site, .. } => vec![format!(
                "its console at {site} may say why (libvirt: virsh console {vm}); this command started again starts it again"
            )],
            Self::Superseded { .. } => {
                vec!["`causeway abort` takes back what this one left at its destination".to_owned()]
            }
            Self::Custody(CustodyError::Refused(
                Refusal::PlaceholderGone | Refusal::MarkUnknown,
            )) => vec![
                "if the site can be asked again, repeat this command; if the placeholder is gone for good, the VM never ran there and you are sure that it never will: causeway abort ID --attest \"WHY\"".to_owned(),
            ],
            Self::Custody(CustodyError::Site { cause, .. }) => cause.hint.iter().cloned().collect(),
            Self::Custody(CustodyError::Refused(Refusal::AlreadyGranted)) => vec![
                "it is decided for its destination: `causeway resume ID` takes it up from there".to_owned(),
            ],
            Self::Custody(CustodyError::Refused(refusal @ Refusal::Contradiction { .. })) => {
                vec![refusal.remedy().to_owned()]
            }
            Self::Custody(CustodyError::MayBeReleased { site }) => vec![format!(
                "repeat this command when {site} answers; if it never will, and you are sure that the VM does not run there and never will: causeway resume ID --attest \"WHY\""
            )],
            Self::Custody(CustodyError::Elsewhere { .. }) => vec![
                "see that no other causeway works on this VM, then repeat this command".to_owned(),
            ],
            Self::Custody(CustodyError::NoKey { .. }) => vec![
                "if it answers now, repeat this command, which asks it for its key; if it is gone for good: causeway recover VM --settle --attest fenced=SITE --reason \"WHY\"".to_owned(),
            ],
            Self::Custody(CustodyError::Refused(Refusal::Open { .. })) => vec![
                "an earlier migration of this VM is to be brought to its end first: causeway recover lists what the sites know of".to_owned(),
            ],
            Self::Custody(CustodyError::TwoStories { site }) => vec![format!(
                "nothing was done; see at both platforms that one copy at most runs, and let a person decide which of the two ledgers of {site} is true"
            )],
            Self::OutOfPatience { last, .. } => last.hints(),
            _ => Vec::new(),
        }
    }
}

/// What was left. A drain may end with the source suspended, or frozen until its deadline.
const fn left(phase: Phase) -> &'static str {
    match phase {
        Phase::Draining => {
            "the source may stand still until `resume` or `abort`, what was copied is kept"
        }
        _ => "the source runs, what was copied is kept",
    }
}

fn let_go(power: Option<Power>) -> String {
    match power {
        Some(Power::Running) => "the source runs as before".to_owned(),
        Some(power) => format!("the source was let go on, and is {power} now"),
        None => "the source was let go on".to_owned(),
    }
}

/// Why a migration stopped before its end. Nothing is lost by any of them: the same call goes on.
#[derive(Debug, Error)]
pub enum Halt {
    /// Source runs, copied data is kept.
    #[error("stopped while {}; {}", phase.word(), left(*phase))]
    Resumable {
        phase: Phase,
        #[source]
        cause: StepError,
    },

    /// Taken back, and not all that was made is removed. `None`: the source does not say how it is.
    #[error("stopped while {}; {}, and not all that was made is removed", Phase::RollingBack.word(), let_go(*power))]
    LetGo {
        power: Option<Power>,
        #[source]
        cause: StepError,
    },

    /// Between fence and answer: the ledgers know, someone must look.
    #[error("stopped while {}; nobody may start either copy by hand", phase.word())]
    Undecided {
        phase: Phase,
        #[source]
        cause: StepError,
    },

    /// Decided for the destination, but it does not answer, or the source is not tidied up.
    #[error("moved to the destination, but stopped while {}", phase.word())]
    Unfinished {
        phase: Phase,
        #[source]
        cause: StepError,
    },

    #[error("the journal cannot be written; nothing was done after that")]
    Journal {
        phase: Phase,
        #[source]
        cause: JournalError,
    },
}
