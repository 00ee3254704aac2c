//! What we write into a definition to know it again: `<metadata>` in a namespace of our own.

use model::DiskFormat;
use roxmltree::Node;
use serde::{Deserialize, Serialize};
use site::Mark;
use units::{Epoch, MigrationId};

use super::node::children;

/// On placeholders and what became of them.
pub(crate) const fn ours_uri() -> &'static str {
    ARRIVAL_NAMESPACE
}

/// A VM that a site's own live migration brings is known by `<placeholder migration= epoch= state=>`
/// of this namespace in its `<metadata>`, in state `released`: it has its own system from the first
/// moment, and bears no mark before it may run.
pub const ARRIVAL_NAMESPACE: &str = "https://causeway.dev/ns/1";

/// On fenced sources. Another namespace, because libvirt keeps one element for each, and a VM that
/// came here by us may be fenced here later.
pub(crate) const fn fence_uri() -> &'static str {
    "https://causeway.dev/ns/1/fence"
}

/// A placeholder, as its definition remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ours {
    pub migration: MigrationId,
    pub epoch: Epoch,
    pub state: OursState,
    pub mark: Option<Mark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OursState {
    Held,
    Released,
}

impl OursState {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Released => "released",
        }
    }
}

/// What a fenced definition remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FenceNote {
    /// Of the record that undoes it.
    pub id: String,
    pub disks: Vec<FencedDisk>,
}

/// A disk of a fenced VM, as it was before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FencedDisk {
    pub target: String,
    pub path: String,
    pub format: DiskFormat,
}

impl Ours {
    pub(super) fn read(root: Node<'_, '_>) -> Option<Self> {
        let node = element(root, ours_uri(), "placeholder")?;
        let attempt = |node: Node<'_, '_>| {
            let migration: MigrationId = node.attribute("migration")?.parse().ok()?;
            Some((migration, Epoch(node.attribute("epoch")?.parse().ok()?)))
        };
        let (migration, epoch) = attempt(node)?;
        let state = match node.attribute("state")? {
            "held" => OursState::Held,
            "released" => OursState::Released,
            _ => return None,
        };
        let mark = node.children().find(|child| child.tag_name().name() == "mark");
        let mark = match mark {
            None => None,
            // A mark that cannot be read is not the same as none: better no placeholder at all.
            Some(mark) => {
                let (migration, epoch) = attempt(mark)?;
                let receipt = mark.attribute("receipt")?.to_owned();
                Some(Mark { migration, epoch, receipt })
            }
        };
        Some(Self { migration, epoch, state, mark })
    }
}

pub(super) fn fence_note(root: Node<'_, '_>) -> Option<FenceNote> {
    let fence = element(root, fence_uri(), "fence")?;
    let disks = fence.children().filter(|child| child.tag_name().name() == "disk");
    let disks = disks.filter_map(|disk| {
        Some(FencedDisk {
            target: disk.attribute("target")?.to_owned(),
            path: disk.attribute("path")?.to_owned(),
            format: match disk.attribute("format")? {
                "raw" => DiskFormat::Raw,
                "qcow2" => DiskFormat::Qcow2,
                other => DiskFormat::Other(other.to_owned()),
            },
        })
    });
    Some(FenceNote { id: fence.attribute("id")?.to_owned(), disks: disks.collect() })
}

fn element<'n, 'i>(root: Node<'n, 'i>, uri: &str, name: &str) -> Option<Node<'n, 'i>> {
    children(root, "metadata")
        .flat_map(|metadata| metadata.children().collect::<Vec<_>>())
        .find(|child| child.has_tag_name((uri, name)))
}
