//! What goes wrong, and at which call.

use std::collections::BTreeMap;
use std::time::Duration;

use model::SiteName;
use site::{Remedy, SiteErrorKind};

/// The methods of [`site::Site`] that are calls to a cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    Probe,
    Vms,
    Vm,
    Power,
    StoppedBy,
    Suspend,
    Resume,
    PowerOff,
    PowerOn,
    WriteCounts,
    Keep,
    Kept,
    KeptKeys,
    Forget,
    FenceOffer,
    FenceCapture,
    FenceApply,
    FenceHolds,
    FenceUndo,
    Retire,
    Discard,
    PutAppliance,
    CreateDisk,
    DefinePlaceholder,
    Placeholder,
    StartHelper,
    OpenChannel,
    WriteMark,
    ReadMark,
    StartFromOwnDisk,
    Leftovers,
    Remove,
}

impl Method {
    /// Does a lost answer leave open whether something happened?
    pub const fn changes(self) -> bool {
        !matches!(
            self,
            Self::Probe
                | Self::Vms
                | Self::Vm
                | Self::Power
                | Self::StoppedBy
                | Self::WriteCounts
                | Self::Kept
                | Self::KeptKeys
                | Self::FenceOffer
                | Self::FenceCapture
                | Self::FenceHolds
                | Self::Placeholder
                | Self::ReadMark
                | Self::Leftovers
        )
    }
}

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not done, and the site says so.
    Refuse { kind: SiteErrorKind, remedy: Remedy },
    /// Not done, and the caller cannot know.
    LoseRequest,
    /// Done, and the caller cannot know.
    LoseReply,
    /// Not done, and never answered.
    HangBefore,
    /// Done, and never answered.
    HangAfter,
    /// Done after a while, by tokio's clock.
    Slow(Duration),
}

/// One call that a site was asked, answered or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub site: SiteName,
    pub method: Method,
}

/// Faults to come. Each happens once.
#[derive(Default)]
pub(crate) struct Script {
    /// By place in the world's list of calls, counted from 1.
    at: BTreeMap<usize, Fault>,
    /// By place in the list of one site's calls of one method, counted from 1.
    on: BTreeMap<(SiteName, Method, usize), Fault>,
    calls: Vec<Call>,
    /// How many of each there were: long histories make many thousands.
    counts: BTreeMap<(SiteName, Method), usize>,
}

impl Script {
    pub(crate) fn at(&mut self, nth: usize, fault: Fault) {
        self.at.insert(nth, fault);
    }

    pub(crate) fn on(&mut self, site: SiteName, method: Method, nth: usize, fault: Fault) {
        self.on.insert((site, method, nth), fault);
    }

    pub(crate) fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// Notes a call and takes the fault that awaits it.
    pub(crate) fn enter(&mut self, site: &SiteName, method: Method) -> Option<Fault> {
        self.calls.push(Call { site: site.clone(), method });
        let count = self.counts.entry((site.clone(), method)).or_default();
        *count += 1;
        self.at
            .remove(&self.calls.len())
            .or_else(|| self.on.remove(&(site.clone(), method, *count)))
    }
}
