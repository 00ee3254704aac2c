//! What two libvirts tell each other about a migration besides its definition: `<qemu-migration>`.
//!
//! Each end believes that the other is the host next door, and refuses its own. So whose host it is
//! gets exchanged, ports become those of the relay, the definition in it is translated; capabilities
//! and statistics, which the two hypervisors agree on by themselves, go through by an allow-list.

use thiserror::Error;

use super::grammar::Kind;
use super::node::{Element, XmlError};

/// The host that the reader of the cookie is to see.
#[derive(Clone, Debug)]
pub struct Neighbour {
    pub hostname: String,
    /// 36 characters, another one than the reader's own.
    pub host_uuid: String,
}

#[derive(Debug, Error)]
pub enum CookieError {
    #[error("the migration cookie is not text")]
    NotText,
    #[error("the migration cookie cannot be read")]
    Xml(#[from] XmlError),
    #[error("the migration cookie has {what} that is none")]
    Value { what: &'static str },
}

/// A cookie, with what we need of it.
#[derive(Clone, Debug)]
pub struct Cookie {
    root: Element,
}

/// Parts that carry nothing of either host: what QEMU can do, how long it took, what the disks are.
const THROUGH: &[&str] =
    &["name", "uuid", "feature", "capabilities", "statistics", "nbd", "cpu", "lockstate"];

impl Cookie {
    /// As libvirt sends it: XML that ends with a NUL.
    ///
    /// # Errors
    /// Where it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, CookieError> {
        let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        let text = std::str::from_utf8(bytes).map_err(|_| CookieError::NotText)?;
        Ok(Self { root: Element::parse(text, "qemu-migration")? })
    }

    /// The port of the NBD server, where there is one.
    ///
    /// # Errors
    /// Where it is no port.
    pub fn nbd_port(&self) -> Result<Option<u16>, CookieError> {
        let port = self.root.first("nbd").and_then(|nbd| nbd.attribute("port"));
        let port = port.map(|port| port.parse().ok().filter(|port| *port != 0));
        port.map(|port| port.ok_or(CookieError::Value { what: "a port" })).transpose()
    }

    /// Disks that are copied: target and size in bytes.
    ///
    /// # Errors
    /// Where one is not named, or has no size.
    pub fn disks(&self) -> Result<Vec<(String, u64)>, CookieError> {
        let disks = self.root.first("nbd").map(|nbd| &*nbd.children).unwrap_or_default();
        let value = || CookieError::Value { what: "a disk" };
        let disk = |disk: &Element| {
            let target = disk.attribute("target").filter(|target| Kind::Word.takes(target))?;
            Some((target.to_owned(), disk.attribute("capacity")?.parse().ok()?))
        };
        let disks = disks.iter().filter(|child| child.name == "disk");
        disks.map(|one| disk(one).ok_or_else(value)).collect()
    }

    /// The VM's definition for good, where it is to be persistent.
    pub fn domain(&self) -> Option<String> {
        self.root.first("domain").map(Element::write)
    }

    /// The same for the other end.
    pub fn handed_on(
        &self,
        neighbour: &Neighbour,
        nbd_port: Option<u16>,
        domain: Option<Element>,
    ) -> Vec<u8> {
        let mut made = Element::new("qemu-migration");
        for child in &self.root.children {
            match &*child.name {
                "hostname" => {
                    made.children.push(Element::new("hostname").text(&*neighbour.hostname));
                }
                "hostuuid" => {
                    made.children.push(Element::new("hostuuid").text(&*neighbour.host_uuid));
                }
                "nbd" => {
                    let mut nbd = child.clone();
                    nbd.attributes.retain(|(name, _)| name != "port");
                    if let Some(port) = nbd_port {
                        nbd = nbd.with("port", port.to_string());
                    }
                    made.children.push(nbd);
                }
                name if THROUGH.contains(&name) => made.children.push(child.clone()),
                _ => {}
            }
        }
        made.children.extend(domain);
        let mut bytes = made.write().into_bytes();
        bytes.push(0);
        bytes
    }
}
