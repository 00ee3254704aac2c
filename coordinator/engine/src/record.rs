//! What the coordinator's journal remembers of a migration, and what follows from it.
//!
//! The journal is for *progress*. Who may run is decided by the ledgers ([`crate::custody`]); a
//! journal that is lost or old can delay a migration, not harm a VM.

use plan::rounds::RoundFigures;
use serde::{Deserialize, Serialize};
use site::{ApplianceRef, CreatedDisk};
use units::{Bytes, Digest, Epoch};

use model::WriteCount;

use crate::phase::{IllegalTurn, Phase, Turn};

/// One line of the journal. Recorded before what depends on it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// The journal was lost: what follows is what the ledgers imply.
    Rebuilt {
        at_ms: i64,
        /// Plan and login are those that the sites kept, and nobody here has seen them.
        #[serde(default = "yes")]
        from_sites: bool,
    },
    Began {
        epoch: Epoch,
    },
    ApplianceReady {
        appliance: ApplianceRef,
    },
    DisksCreated {
        disks: Vec<CreatedDisk>,
    },
    PlaceholderDefined,
    /// What the guest calls each planned disk, in their order, since this boot of it.
    GuestKnown {
        boot_id: String,
        devices: Vec<String>,
    },
    /// The agents stand, the disks are tracked.
    Prepared {
        tracker: String,
        tracker_reason: String,
    },
    /// The generation about to be used for data streams.
    Connecting {
        generation: u64,
    },
    RoundEnded {
        number: u32,
        figures: StoredFigures,
        wire: Bytes,
    },
    Converged {
        forecast_ms: Option<u64>,
    },
    Released {
        by: String,
    },
    Drained {
        digests: Vec<Digest>,
        audit: String,
        counts: Vec<StoredCount>,
        /// When the downtime began; `None`: nobody knows any more.
        at_ms: Option<i64>,
        /// What the drain itself copied: content, and on the wire.
        sent: Bytes,
        wire: Bytes,
    },
    Voided {
        why: String,
    },
    /// Suspended, and the platform had counted no write since the seal.
    WritesAccounted,
    Fenced,
    Decided {
        at_ms: i64,
    },
    /// Whether the source was released could not be asked, and it went on by this word.
    Vouched {
        by: String,
        reason: String,
    },
    Booting,
    Answered {
        how: String,
        downtime_ms: Option<u64>,
    },
    Retired {
        /// As what it is kept; `None`: somebody had deleted its definition.
        name: Option<String>,
    },
    GaveUp {
        why: String,
    },
    TakenBack {
        removed: Vec<String>,
        /// What may be left at a destination that is gone for good.
        #[serde(default)]
        left: Vec<String>,
    },
    /// What was left at a destination that has come back, as far as it could be removed.
    Cleared {
        removed: Vec<String>,
        left: Vec<String>,
    },
    /// The retired source was deleted, on the operator's word.
    Discarded {
        removed: Vec<String>,
    },
}

/// Records of before this was told apart.
const fn yes() -> bool {
    true
}

/// [`RoundFigures`] as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFigures {
    pub elapsed_ms: u64,
    pub sent: Bytes,
    pub dirtied: Bytes,
    pub remaining: Bytes,
}

impl From<StoredFigures> for RoundFigures {
    fn from(f: StoredFigures) -> Self {
        Self { elapsed_ms: f.elapsed_ms, sent: f.sent, dirtied: f.dirtied, remaining: f.remaining }
    }
}

/// A disk's write count at the moment of the seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCount {
    pub target: String,
    pub requests: u64,
    pub bytes: Bytes,
}

impl From<WriteCount> for StoredCount {
    fn from(count: WriteCount) -> Self {
        Self { target: count.target, requests: count.requests, bytes: count.bytes }
    }
}

/// All that the journal's records amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub phase: Phase,
    /// The journal was lost and made again from the ledgers: figures are of the time since.
    pub rebuilt: bool,
    /// ... and plan and login came from the sites.
    pub from_sites: bool,
    pub epoch: Option<Epoch>,
    pub appliance: Option<ApplianceRef>,
    pub disks: Vec<CreatedDisk>,
    pub placeholder_defined: bool,
    pub boot_id: Option<String>,
    /// What the guest calls its disks, in the plan's order; empty until it was asked.
    pub devices: Vec<String>,
    pub tracker: Option<(String, String)>,
    pub generation: u64,
    pub rounds: Vec<RoundFigures>,
    /// The number of the next round.
    pub next_round: u32,
    pub wire: Bytes,
    pub forecast_ms: Option<u64>,
    pub drained: Option<Drain>,
    pub writes_accounted: bool,
    pub decided: bool,
    pub booting: bool,
    /// By whose word it went on, and why.
    pub vouched: Option<(String, String)>,
    pub downtime_ms: Option<u64>,
    pub answered_how: Option<String>,
    pub retired_as: Option<String>,
    pub discarded: bool,
    /// Why it was called off.
    pub why: Option<String>,
    pub removed: Vec<String>,
    pub left: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    pub digests: Vec<Digest>,
    pub audit: String,
    pub counts: Vec<StoredCount>,
    /// Wall clock when the downtime began, milliseconds since 1970; `None` where it is not known.
    pub at_ms: Option<i64>,
    pub sent: Bytes,
    pub wire: Bytes,
}

impl Default for State {
    fn default() -> Self {
        Self {
            phase: Phase::Planned,
            rebuilt: false,
            from_sites: false,
            epoch: None,
            appliance: None,
            disks: Vec::new(),
            placeholder_defined: false,
            boot_id: None,
            devices: Vec::new(),
            tracker: None,
            generation: 0,
            rounds: Vec::new(),
            next_round: 0,
            wire: Bytes::ZERO,
            forecast_ms: None,
            drained: None,
            writes_accounted: false,
            decided: false,
            booting: false,
            vouched: None,
            downtime_ms: None,
            answered_how: None,
            retired_as: None,
            discarded: false,
            why: None,
            removed: Vec::new(),
            left: Vec::new(),
        }
    }
}

impl State {
    /// The state after all of `records`.
    pub fn replay<'a>(records: impl IntoIterator<Item = &'a Record>) -> Result<Self, IllegalTurn> {
        let mut state = Self::default();
        for record in records {
            state.apply(record)?;
        }
        Ok(state)
    }

    /// The same for running and for resuming.
    pub fn apply(&mut self, record: &Record) -> Result<(), IllegalTurn> {
        match record {
            Record::Rebuilt { from_sites, .. } => {
                self.rebuilt = true;
                self.from_sites |= from_sites;
            }
            Record::Began { epoch } => {
                self.turn(Turn::Began)?;
                self.epoch = Some(*epoch);
            }
            Record::ApplianceReady { appliance } => self.appliance = Some(appliance.clone()),
            Record::DisksCreated { disks } => self.disks.clone_from(disks),
            Record::PlaceholderDefined => self.placeholder_defined = true,
            Record::GuestKnown { boot_id, devices } => {
                self.boot_id = Some(boot_id.clone());
                self.devices.clone_from(devices);
            }
            Record::Prepared { tracker, tracker_reason } => {
                self.turn(Turn::Prepared)?;
                self.tracker = Some((tracker.clone(), tracker_reason.clone()));
            }
            Record::Connecting { generation } => self.generation = *generation,
            Record::RoundEnded { number, figures, wire } => {
                self.rounds.push((*figures).into());
                self.next_round = number + 1;
                self.wire = self.wire.saturating_add(*wire);
            }
            Record::Converged { forecast_ms } => {
                self.turn(Turn::Converged)?;
                self.forecast_ms = *forecast_ms;
            }
            Record::Released { .. } => self.turn(Turn::Released)?,
            Record::Drained { digests, audit, counts, at_ms, sent, wire } => {
                self.turn(Turn::Drained)?;
                self.drained = Some(Drain {
                    digests: digests.clone(),
                    audit: audit.clone(),
                    counts: counts.clone(),
                    at_ms: *at_ms,
                    sent: *sent,
                    wire: *wire,
                });
            }
            Record::Voided { why } => {
                self.turn(Turn::Voided)?;
                self.why = Some(why.clone());
                self.drained = None;
                self.writes_accounted = false;
            }
            Record::WritesAccounted => self.writes_accounted = true,
            Record::Fenced => self.turn(Turn::Fenced)?,
            Record::Decided { .. } => {
                self.turn(Turn::Decided)?;
                self.decided = true;
            }
            Record::Vouched { by, reason } => self.vouched = Some((by.clone(), reason.clone())),
            Record::Booting => self.booting = true,
            Record::Answered { how, downtime_ms } => {
                self.turn(Turn::Answered)?;
                self.downtime_ms = *downtime_ms;
                self.answered_how = Some(how.clone());
            }
            Record::Retired { name } => {
                self.turn(Turn::Retired)?;
                self.retired_as.clone_from(name);
            }
            Record::GaveUp { why } => {
                self.turn(Turn::GaveUp)?;
                self.why = Some(why.clone());
            }
            Record::TakenBack { removed, left } => {
                self.turn(Turn::TakenBack)?;
                self.removed.clone_from(removed);
                self.left.clone_from(left);
            }
            Record::Cleared { removed, left } => {
                self.removed.extend_from_slice(removed);
                self.left.clone_from(left);
            }
            Record::Discarded { removed } => {
                self.turn(Turn::Discarded)?;
                self.discarded = true;
                self.removed.clone_from(removed);
            }
        }
        Ok(())
    }

    fn turn(&mut self, turn: Turn) -> Result<(), IllegalTurn> {
        self.phase = self.phase.after(turn)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures are the agent's. A journal that cannot be replayed could not be taken back either.
    #[test]
    fn rounds_of_any_size_can_be_replayed() {
        let most = Bytes(u64::MAX);
        let figures =
            StoredFigures { elapsed_ms: u64::MAX, sent: most, dirtied: most, remaining: most };
        let round = |number| Record::RoundEnded { number, figures, wire: most };
        let state = State::replay(&[round(0), round(1)]).unwrap();
        assert_eq!((state.next_round, state.wire), (2, most));
    }
}
