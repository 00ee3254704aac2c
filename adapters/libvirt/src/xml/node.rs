//! Reading XML that somebody else wrote: size, depth and count are limited, and no DTD is read.

use roxmltree::{Document, Node, ParsingOptions};

use crate::fault::Fault;

/// libvirt's own limit of a string in its protocol.
const BYTES_MAX: usize = 4 << 20;

/// Elements, attributes and texts of one document; a VM with hundreds of disks has some thousands.
const NODES_MAX: u32 = 200_000;

/// Elements within elements; libvirt's own go to about ten.
const DEPTH_MAX: usize = 64;

/// A document within limits.
pub(crate) struct Xml<'a> {
    document: Document<'a>,
}

impl<'a> Xml<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self, Fault> {
        let refuse = |what: String| Fault::found(site::SiteErrorKind::Platform, what);
        if text.len() > BYTES_MAX {
            return Err(refuse(format!("libvirt sent XML of {} bytes", text.len())));
        }
        let options = ParsingOptions {
            allow_dtd: false,
            nodes_limit: NODES_MAX,
            ..ParsingOptions::default()
        };
        let document = Document::parse_with_options(text, options)
            .map_err(|cause| refuse(format!("libvirt sent XML that is none: {cause}")))?;
        let too_deep = document.descendants().any(|node| node.ancestors().nth(DEPTH_MAX).is_some());
        if too_deep {
            return Err(refuse(format!("libvirt sent XML deeper than {DEPTH_MAX}")));
        }
        Ok(Self { document })
    }

    /// The root, if it is called `name`.
    pub(crate) fn root(&self, name: &str) -> Result<Node<'_, 'a>, Fault> {
        let root = self.document.root_element();
        if root.tag_name().name() == name {
            Ok(root)
        } else {
            let what = format!("libvirt sent <{}> where <{name}> belongs", root.tag_name().name());
            Err(Fault::found(site::SiteErrorKind::Platform, what))
        }
    }
}

/// The first element at a path of names below `node`.
pub(super) fn at<'n, 'i>(node: Node<'n, 'i>, path: &str) -> Option<Node<'n, 'i>> {
    path.split('/').try_fold(node, |node, name| children(node, name).next())
}

pub(super) fn children<'n, 'i: 'n>(
    node: Node<'n, 'i>,
    name: &str,
) -> impl Iterator<Item = Node<'n, 'i>> {
    node.children().filter(move |child| child.has_tag_name(name))
}

/// Its text without blanks around it; `None` where there is none.
pub(super) fn text(node: Node<'_, '_>) -> Option<String> {
    let text = node.text()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn text_at(node: Node<'_, '_>, path: &str) -> Option<String> {
    text(at(node, path)?)
}

pub(super) fn attribute(node: Node<'_, '_>, path: &str, name: &str) -> Option<String> {
    at(node, path)?.attribute(name).map(str::to_owned)
}

/// A size with the unit that libvirt's attribute names.
pub(super) fn bytes(node: Node<'_, '_>, default_unit: &str) -> Option<u64> {
    let count: u64 = node.text()?.trim().parse().ok()?;
    let unit = match node.attribute("unit").unwrap_or(default_unit) {
        "b" | "bytes" | "byte" => 1,
        "KB" => 1000,
        "k" | "K" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    count.checked_mul(unit)
}

/// A number as libvirt writes those of addresses: `0x1f`, or in tens.
pub(super) fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
