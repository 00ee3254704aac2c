//! `<pool>` and `<volume>`.

use model::DiskFormat;

use super::node::{Xml, at, attribute, bytes, text_at};
use super::write::{Written, element};
use crate::fault::Fault;

/// A storage pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolXml {
    /// libvirt's word: `dir`, `logical`.
    pub kind: String,
    /// Where its volumes appear on the host.
    pub target: Option<String>,
}

impl PoolXml {
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let xml = Xml::parse(text)?;
        let root = xml.root("pool")?;
        Ok(Self {
            kind: root.attribute("type").unwrap_or_default().to_owned(),
            target: text_at(root, "target/path"),
        })
    }

    /// Are its volumes files? Only those start as zeros, and only those can be odd in size.
    pub(crate) fn holds_files(&self) -> bool {
        matches!(self.kind.as_str(), "dir" | "fs" | "netfs")
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeXml {
    /// libvirt's word: `file`, `block`, `network`.
    pub kind: String,
    pub format: Option<DiskFormat>,
    pub capacity: u64,
    pub allocation: u64,
    /// Bytes that a download of all of it has: an image's own length.
    pub physical: u64,
}

impl VolumeXml {
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let xml = Xml::parse(text)?;
        let root = xml.root("volume")?;
        let size = |name: &str| at(root, name).and_then(|node| bytes(node, "bytes")).unwrap_or(0);
        Ok(Self {
            kind: root.attribute("type").unwrap_or("file").to_owned(),
            format: attribute(root, "target/format", "type").map(|word| match word.as_str() {
                "raw" => DiskFormat::Raw,
                "qcow2" => DiskFormat::Qcow2,
                _ => DiskFormat::Other(word),
            }),
            capacity: size("capacity"),
            allocation: size("allocation"),
            physical: size("physical"),
        })
    }
}

/// A volume to be made: sparse where the pool can do it.
pub(crate) fn new_volume(name: &str, capacity: u64, format: &str, sparse: bool) -> Written {
    element("volume", &[], |volume| {
        volume.text("name", name)?;
        volume.text_with("capacity", &[("unit", "bytes")], &capacity.to_string())?;
        if sparse {
            volume.text_with("allocation", &[("unit", "bytes")], "0")?;
        }
        volume.nested("target", &[], |target| target.empty("format", &[("type", format)]))
    })
}

/// A pool over a directory that is there already.
pub(crate) fn new_pool(name: &str, directory: &str) -> Written {
    element("pool", &[("type", "dir")], |pool| {
        pool.text("name", name)?;
        pool.nested("target", &[], |target| target.text("path", directory))
    })
}
