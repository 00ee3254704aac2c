//! What went wrong, as the operator reads it: what happened, to whom, what state it left, what to
//! do. Rendered here and nowhere else.

use std::error::Error;

use engine::{Halt, StepError};
use guest_ssh::SshError;
use model::Power;
use plan::{Plan, Problem, Refusal};
use site::{SiteError, SiteErrorKind};
use units::chain;

use crate::cli::exit;
use crate::store::StoreError;

/// Decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Usage,
    /// Nothing was touched.
    Refused,
    Undecided,
    Interrupted,
}

#[derive(Debug)]
pub struct Failure {
    pub kind: Kind,
    pub what: String,
    /// Innermost last.
    pub causes: Vec<String>,
    pub hints: Vec<String>,
    pub refusals: Vec<Refusal>,
    /// The command that goes on.
    pub next: Option<String>,
}

impl Failure {
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            causes: Vec::new(),
            hints: Vec::new(),
            refusals: Vec::new(),
            next: None,
        }
    }

    pub fn caused_by(mut self, error: &dyn Error) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            self.causes.push(error.to_string());
            cause = error.source();
        }
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub fn next(mut self, command: impl Into<String>) -> Self {
        self.next = Some(command.into());
        self
    }

    pub fn refused(refusals: Vec<Refusal>) -> Self {
        let what = match refusals.len() {
            1 => "refused, nothing was touched".to_owned(),
            n => format!("refused for {n} reasons, nothing was touched"),
        };
        Self { refusals, ..Self::new(Kind::Refused, what) }
    }

    pub const fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Usage => exit::USAGE,
            Kind::Refused => exit::REFUSED,
            Kind::Undecided => exit::UNDECIDED,
            Kind::Interrupted => exit::INTERRUPTED,
        }
    }

    pub fn show(&self, json: bool) {
        if json {
            let value = serde_json::json!({
                "error": self.what, "causes": self.causes, "hints": self.hints,
                "refusals": self.refusals, "next": self.next, "exit": self.exit_code(),
            });
            crate::show::line(&value.to_string());
        }
        let mut text = format!("error: {}", self.what);
        for cause in &self.causes {
            text.push_str(&format!("\n  cause: {cause}"));
        }
        for refusal in &self.refusals {
            text.push_str(&format!(
                "\n\n{}: {}\n  hint: {}",
                refusal.code, refusal.text, refusal.remedy
            ));
        }
        if !self.hints.is_empty() || self.next.is_some() {
            text.push('\n');
        }
        for hint in &self.hints {
            text.push_str(&format!("\nhint: {hint}"));
        }
        if let Some(next) = &self.next {
            text.push_str(&format!("\nnext: {next}"));
        }
        crate::show::error(&text);
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let hint = error.hint();
        let failure =
            Self::new(Kind::Refused, "cannot use the coordinator's state").caused_by(&error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// A halted migration, with what goes on from there.
pub fn halted(plan: &Plan, halt: &Halt) -> Failure {
    let (id, vm) = (&plan.id, &plan.vm.name);
    let resume = format!("causeway resume {id}");
    let (kind, cause) = match halt {
        Halt::Resumable { cause, .. } | Halt::LetGo { power: Some(Power::Running), cause } => {
            (Kind::Interrupted, Some(cause))
        }
        Halt::LetGo { cause, .. } => (Kind::Undecided, Some(cause)),
        Halt::Undecided { cause, .. } | Halt::Unfinished { cause, .. } => {
            (Kind::Undecided, Some(cause))
        }
        Halt::Journal { .. } => (Kind::Undecided, None),
    };
    let mut failure = Failure::new(kind, format!("{vm}: {halt}")).next(resume);
    let source: Option<&dyn Error> = match cause {
        Some(StepError::Interrupted) => None,
        Some(cause) => Some(cause),
        None => halt.source(),
    };
    if let Some(source) = source {
        failure = failure.caused_by(source);
    }
    if let Some(StepError::WontConverge(divergence)) = cause {
        failure.causes.push(divergence.to_string());
    }
    failure.hints = cause.map(StepError::hints).unwrap_or_default();
    // Before its switchover it is undecided only by what the ledgers know.
    if matches!(halt, Halt::Undecided { phase, .. } if !phase.is_downtime() && *phase != engine::Phase::RollingBack)
    {
        failure
            .hints
            .push("the ledgers know more of it than the journal here: causeway recover".to_owned());
    }
    let is_taken_back = matches!(
        halt,
        Halt::LetGo { .. } | Halt::Undecided { phase: engine::Phase::RollingBack, .. }
    );
    let to = &plan.to;
    if is_taken_back && cause.and_then(silent_site) == Some(to) {
        failure.hints.push(format!("if {to} is gone for good: {}", vouch_for_it(plan)));
        if !matches!(halt, Halt::LetGo { .. }) {
            failure.hints.push(never_ran(plan));
        }
    }
    if let Halt::LetGo { power: Some(power @ (Power::Off | Power::Paused)), .. } = halt {
        let how = if *power == Power::Off { "start" } else { "resume" };
        failure.hints.push(format!("it may run at {}: virsh {how} {vm}, there", plan.from));
    }
    if kind == Kind::Interrupted && !is_taken_back {
        failure.hints.push(format!("or take everything back: causeway abort {id}"));
    }
    failure
}

/// What a person types whose word it is that nothing of the VM runs at a destination that is gone.
pub fn vouch_for_it(plan: &Plan) -> String {
    let Plan { id, to, .. } = plan;
    format!("causeway recover {id} --settle --attest fenced={to} --reason \"WHY\"")
}

/// ... of whom it is that one which is only away has never run what was copied there.
pub fn never_ran(plan: &Plan) -> String {
    let Plan { id, from, to, vm, .. } = plan;
    format!(
        "if {to} is only away, and its copy never ran: causeway abort {id} --attest \"WHY\" lets {} go on at {from}",
        vm.name
    )
}

/// The one that did not answer.
fn silent_site(error: &StepError) -> Option<&model::SiteName> {
    let error = match error {
        StepError::Site(error) => Some(error),
        StepError::Custody(error) => error.at_site(),
        _ => None,
    };
    error.filter(|error| error.kind == SiteErrorKind::Unreachable).map(|error| &error.site)
}

/// A site's error as a reason against a plan.
pub fn problem(error: &SiteError) -> Problem {
    let ssh = error.source.as_deref().and_then(|cause| cause.downcast_ref::<SshError>());
    let code = ssh.map_or_else(|| code_of(error.kind), SshError::code);
    let hint = error.hint.clone();
    Problem {
        code: code.to_owned(),
        text: chain(error),
        hint: hint.unwrap_or_else(|| "look at the site with `causeway site check`".to_owned()),
    }
}

const fn code_of(kind: SiteErrorKind) -> &'static str {
    match kind {
        SiteErrorKind::Unreachable => "unreachable",
        SiteErrorKind::Denied => "denied",
        SiteErrorKind::NotFound => "not-found",
        SiteErrorKind::Conflict => "conflict",
        SiteErrorKind::WrongState => "wrong-state",
        SiteErrorKind::Exhausted => "exhausted",
        SiteErrorKind::Unsupported => "unsupported",
        SiteErrorKind::Platform | SiteErrorKind::Internal => "platform",
    }
}
