//! The phases of a migration and the events that lead from one to the next.
//!
//! ```text
//! Planned → Preparing → Copying → Holding → Draining → Fencing → Deciding → Starting → Confirmed → Retired
//!               │          │ ↑       │         │  │       │         │
//!               │          │ └───────┼─────────┘  │       │         │   (a drain that is void: copy on)
//!               └──────────┴─────────┴────────────┴───────┴─────────┴──→ RollingBack → RolledBack
//! ```
//!
//! In the guest method the drain comes before the fence, because only the guest can read its
//! disks; the fence then carries the drain's digest. From `Starting` on there is no way back:
//! the decision is made.

use serde::{Deserialize, Serialize};
use thiserror::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Agreed to, nothing touched.
    Planned,
    /// Agent, volumes, placeholder and helper are being put in place.
    Preparing,
    /// Rounds, until the rest fits the budget.
    Copying,
    /// It fits; waiting for the operator or the hour, copying on.
    Holding,
    /// The guest is quiesced; the rest is copied and sealed. The downtime has begun.
    Draining,
    /// The source is being powered off and made start-proof.
    Fencing,
    /// Fenced and sealed; the destination's ledger decides.
    Deciding,
    /// Decided: the destination is being started. Only forward from here.
    Starting,
    /// The destination answers.
    Confirmed,
    /// The source is renamed and kept, start-proof. The end.
    Retired,
    /// Called off before the decision: everything is being taken back.
    RollingBack,
    /// The source runs as before, the destination is clean. The end.
    RolledBack,
}

/// What happened, as far as it moves the phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Began,
    Prepared,
    Converged,
    Released,
    Drained,
    /// The drain could not be completed; the source goes on and so does the copy.
    Voided,
    Fenced,
    Decided,
    Answered,
    Retired,
    GaveUp,
    TakenBack,
    Discarded,
}

/// An event that does not belong to the phase: a bug or a damaged journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{turn:?} cannot happen in phase {phase:?}")]
pub struct IllegalTurn {
    pub phase: Phase,
    pub turn: Turn,
}

impl Phase {
    /// The phase after `turn`.
    ///
    /// # Errors
    /// [`IllegalTurn`] for anything the drawing above does not show.
    pub const fn after(self, turn: Turn) -> Result<Self, IllegalTurn> {
        Ok(match (self, turn) {
            (Self::Planned, Turn::Began) => Self::Preparing,
            (Self::Preparing, Turn::Prepared) | (Self::Draining, Turn::Voided) => Self::Copying,
            (Self::Copying, Turn::Converged) => Self::Holding,
            (Self::Holding, Turn::Released) => Self::Draining,
            (Self::Draining, Turn::Drained) => Self::Fencing,
            (Self::Fencing, Turn::Fenced) => Self::Deciding,
            (Self::Deciding, Turn::Decided) => Self::Starting,
            (Self::Starting, Turn::Answered) => Self::Confirmed,
            (Self::Confirmed, Turn::Retired) | (Self::Retired, Turn::Discarded) => Self::Retired,
            (
                Self::Planned
                | Self::Preparing
                | Self::Copying
                | Self::Holding
                | Self::Draining
                | Self::Fencing
                | Self::Deciding
                | Self::RollingBack,
                Turn::GaveUp,
            ) => Self::RollingBack,
            (Self::RollingBack, Turn::TakenBack) => Self::RolledBack,
            (phase, turn) => return Err(IllegalTurn { phase, turn }),
        })
    }

    /// Nothing is left to do.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Retired | Self::RolledBack)
    }

    /// May the migration still be called off?
    pub const fn is_before_decision(self) -> bool {
        self.after(Turn::GaveUp).is_ok()
    }

    /// Has its switchover begun, or its being taken back?
    pub const fn is_past_copying(self) -> bool {
        !matches!(self, Self::Planned | Self::Preparing | Self::Copying | Self::Holding)
    }

    /// Does the guest stand still in this phase?
    pub const fn is_downtime(self) -> bool {
        matches!(self, Self::Draining | Self::Fencing | Self::Deciding | Self::Starting)
    }

    /// The word that users see.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Preparing => "preparing",
            Self::Copying => "copying",
            Self::Holding => "holding",
            Self::Draining => "draining",
            Self::Fencing => "fencing",
            Self::Deciding => "deciding",
            Self::Starting => "starting",
            Self::Confirmed => "confirmed",
            Self::Retired => "retired",
            Self::RollingBack => "rolling back",
            Self::RolledBack => "rolled back",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TURNS: [Turn; 13] = [
        Turn::Began,
        Turn::Prepared,
        Turn::Converged,
        Turn::Released,
        Turn::Drained,
        Turn::Voided,
        Turn::Fenced,
        Turn::Decided,
        Turn::Answered,
        Turn::Retired,
        Turn::GaveUp,
        Turn::TakenBack,
        Turn::Discarded,
    ];

    proptest! {
        #[test]
        fn once_decided_no_turn_leads_back(turns in proptest::collection::vec(0_usize..TURNS.len(), 0..200)) {
            let (mut phase, mut decided, mut fenced) = (Phase::Planned, false, false);
            for turn in turns.into_iter().map(|i| TURNS[i]) {
                let Ok(next) = phase.after(turn) else { continue };
                decided |= turn == Turn::Decided;
                fenced = match turn {
                    Turn::Fenced => true,
                    Turn::Voided | Turn::GaveUp => false,
                    _ => fenced,
                };
                phase = next;
                if decided {
                    prop_assert!(!phase.is_before_decision(), "{:?}", phase);
                    prop_assert!(fenced, "decided without a fence");
                }
            }
        }
    }

    #[test]
    fn from_every_phase_an_end_can_be_reached() {
        let mut reachable = vec![Phase::Retired, Phase::RolledBack];
        let all = [
            Phase::Planned,
            Phase::Preparing,
            Phase::Copying,
            Phase::Holding,
            Phase::Draining,
            Phase::Fencing,
            Phase::Deciding,
            Phase::Starting,
            Phase::Confirmed,
            Phase::RollingBack,
        ];
        for _ in 0..all.len() {
            for phase in all {
                let leads = |turn: &Turn| phase.after(*turn).is_ok_and(|p| reachable.contains(&p));
                if !reachable.contains(&phase) && TURNS.iter().any(leads) {
                    reachable.push(phase);
                }
            }
        }
        assert_eq!(reachable.len(), all.len() + 2);
    }
}
