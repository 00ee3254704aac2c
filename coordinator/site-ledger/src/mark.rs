//! The decision's second place, as a site shows it.

use handover::{GrantReceipt, MarkSeen};
use site::{Mark, PlaceholderState, Site};
use units::{Epoch, MigrationId};

/// What the placeholder shows now. That it could not be asked is an answer too.
pub async fn mark_seen(site: &dyn Site, vm: model::VmId) -> MarkSeen {
    let placeholder_of = match site.placeholder(vm).await {
        Ok(PlaceholderState::Absent) => return MarkSeen::NoPlaceholder,
        Ok(PlaceholderState::Foreign { .. }) | Err(_) => return MarkSeen::Unknown,
        Ok(PlaceholderState::Held { epoch, .. } | PlaceholderState::Released { epoch, .. }) => {
            epoch
        }
    };
    match site.read_mark(vm).await {
        Ok(None) => MarkSeen::Absent { placeholder_of },
        Ok(Some(mark)) => mark.receipt.parse().map_or(MarkSeen::Unknown, MarkSeen::Present),
        Err(_) => MarkSeen::Unknown,
    }
}

/// The receipt as it is written on the placeholder.
pub fn mark_of(migration: &MigrationId, epoch: Epoch, receipt: &GrantReceipt) -> Mark {
    Mark { migration: migration.clone(), epoch, receipt: receipt.to_string() }
}

/// What the VM of this id bears of a migration that brought it here, or is bringing it. One that we never
/// made, or keep since it left, bears nothing.
pub async fn own_mark(site: &dyn Site, vm: model::VmId) -> MarkSeen {
    match site.placeholder(vm).await {
        Ok(PlaceholderState::Foreign { .. }) => MarkSeen::NoPlaceholder,
        _ => mark_seen(site, vm).await,
    }
}
