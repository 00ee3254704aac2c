//! What two libvirts tell each other about a migration besides its definition: `<qemu-migration>`.
//!
//! Each end believes that the other is the host next door, and refuses its own. So whose host it is
//! gets exchanged, ports become those of the relay, the definition in it is translated; capabilities
//! and statistics, which the two hypervisors agree on by themselves, go through by an allow-list
//! (`cookie.txt`).

use thiserror::Error;

use super::grammar::{self, Findings, Kind, Rule};
use super::node::{Element, XmlError};
use super::translate::Refusal;

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
    #[error("the migration cookie: {}", super::translate::listed(.0))]
    Refused(Vec<Refusal>),
}

/// A cookie, with what we need of it.
#[derive(Clone, Debug)]
pub struct Cookie {
    root: Element,
}

/// Without the NUL behind it.
///
/// # Errors
/// Where it is not text.
pub fn text(bytes: &[u8]) -> Result<&str, CookieError> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|_| CookieError::NotText)
}

impl Cookie {
    /// As libvirt sends it: XML that ends with a NUL.
    ///
    /// # Errors
    /// Where it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, CookieError> {
        Ok(Self { root: Element::parse(text(bytes)?, "qemu-migration")? })
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
    ///
    /// # Errors
    /// Where something in it cannot go to another host, or is not known.
    pub fn handed_on(
        &self,
        neighbour: &Neighbour,
        nbd_port: Option<u16>,
        domain: Option<Element>,
    ) -> Result<Vec<u8>, CookieError> {
        let mut found = Findings::default();
        let rules = grammar::cookie();
        let mut made = rules.keep(&self.root, "", &mut found, &mut |element, path, found| {
            vec![made_anew(element, path, neighbour, found)]
        });
        if let Some(port) = nbd_port
            && let Some(nbd) = made.children.iter_mut().find(|child| child.name == "nbd")
        {
            nbd.attributes.push(("port".to_owned(), port.to_string()));
        }
        if !found.refused.is_empty() {
            return Err(CookieError::Refused(Refusal::all(found)));
        }
        made.children.extend(domain);
        let mut bytes = made.write().into_bytes();
        bytes.push(0);
        Ok(bytes)
    }
}

fn made_anew(
    element: &Element,
    path: &str,
    neighbour: &Neighbour,
    found: &mut Findings,
) -> Element {
    match (path, grammar::domain().rule("cpu")) {
        ("hostname", _) => Element::new("hostname").text(&*neighbour.hostname),
        ("hostuuid", _) => Element::new("hostuuid").text(&*neighbour.host_uuid),
        // As in a definition.
        ("cpu", Some(Rule::Keep(rules))) => {
            rules.keep(element, path, found, &mut |_, _, _| Vec::new())
        }
        (other, _) => unreachable!("{other} is marked as made by hand, and is not made"),
    }
}
