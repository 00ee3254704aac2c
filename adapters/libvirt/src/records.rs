//! Records for a coordinator, kept as libvirt's secrets: no pool and no disk has a part in it.
//!
//! ```text
//!  causeway record KEY .......... the head: length and hash, and the body where it fits
//!  causeway part KEY HASH 0 ..... else its parts, named by content: written before the head that
//!  causeway part KEY HASH 1 ..... names them, removed after it was replaced
//! ```
//!
//! Those are the secrets' descriptions; their UUIDs are made from the same words (v5), and a secret
//! whose UUID does not fit its words is somebody else's.
//!
//! libvirt 9.0.0 keeps a secret in two files of `/etc/libvirt/secrets`, mode 0600: the definition,
//! and the value in base64. Each is written beside the old one, synced and renamed over it, so a
//! record that is replaced is the old one or the new one. The folder itself is not synced: after a
//! power cut, what was kept in the last seconds may be as it was before.
//!
//! A secret without a value is what a crash between its definition and its value leaves; it counts
//! as no record. Parts that a crash leaves without a head stay until the record is forgotten.
//!
//! libvirt does not compare and swap. Two callers that keep the same record within one round trip
//! are not told apart: both hear of success, and one of them wins, or what they leave together is
//! found to be damaged.

mod head;

use site::{RECORD_MAX, RecordKey, SiteErrorKind};
use uuid::Uuid;
use virt::connect::Connect;
use virt::error::ErrorNumber;
use virt::secret::Secret;

use crate::fault::{Fault, maybe};
use crate::sys::secret_value;
use crate::xml::{SecretXml, new_secret};
use head::{Head, Packed, Unreadable, pack};

/// In front of a key.
const RECORD: &str = "causeway record ";
/// In front of a key, a hash and a number.
const PART: &str = "causeway part ";

/// Of the UUIDs of our secrets. Another one would lose every record that is kept anywhere.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_38a2_9c04_4b7e_8d52_a9e7_13c0_5b64);

/// Whether libvirt keeps secrets at all, as far as can be seen without making one.
pub(crate) fn can_be_kept(connection: &Connect) -> Result<(), Fault> {
    Ok(connection.list_all_secrets(0).map(drop)?)
}

pub(crate) fn keep(
    connection: &Connect,
    key: &RecordKey,
    expected: Option<&[u8]>,
    body: &[u8],
) -> Result<(), Fault> {
    if body.len() > RECORD_MAX {
        let what = format!("the record has {} bytes, more than {RECORD_MAX}", body.len());
        return Err(Fault::found(SiteErrorKind::Exhausted, what));
    }
    let there = read(connection, key).map_err(explained)?;
    let kept = there.as_ref().map(|record| record.body.as_slice());
    if kept == Some(body) {
        return Ok(());
    }
    if kept != expected {
        return Err(Fault::conflict("the record is another than expected")
            .hint("another coordinator may be at work with it"));
    }
    let packed = pack(body)?;
    write(connection, key, &packed).map_err(explained)?;
    for place in there.iter().flat_map(|record| parts(key, &record.head)) {
        place.remove(connection).map_err(explained)?;
    }
    Ok(())
}

pub(crate) fn kept(connection: &Connect, key: &RecordKey) -> Result<Option<Vec<u8>>, Fault> {
    Ok(read(connection, key).map_err(explained)?.map(|record| record.body))
}

pub(crate) fn keys(connection: &Connect) -> Result<Vec<RecordKey>, Fault> {
    let mut keys = Vec::new();
    for secret in all(connection)? {
        let Some(key) = name(&secret, RECORD)?.and_then(|name| name.parse().ok()) else { continue };
        // What cannot be read is there all the same: `kept` says what is wrong with it.
        let has_value = maybe(secret_value(&secret)).map_err(explained)?.is_some();
        if has_value {
            keys.push(key);
        }
    }
    keys.sort();
    Ok(keys)
}

/// The head goes first: what is left without it is no record.
pub(crate) fn forget(connection: &Connect, key: &RecordKey) -> Result<(), Fault> {
    Place::head(key).remove(connection).map_err(explained)?;
    for secret in all(connection)? {
        let part = name(&secret, PART)?;
        if part.is_some_and(|name| name.split(' ').next() == Some(key.as_str())) {
            maybe(secret.undefine()).map_err(explained)?;
        }
    }
    Ok(())
}

/// A record as it was found.
struct Found {
    head: Head,
    body: Vec<u8>,
}

fn read(connection: &Connect, key: &RecordKey) -> Result<Option<Found>, Fault> {
    let place = Place::head(key);
    let mut value = place.value(connection)?;
    while let Some(there) = value {
        match whole(connection, key, &there)? {
            Ok(found) => return Ok(Some(found)),
            Err(unreadable) => {
                // The parts of a record that was replaced meanwhile are gone.
                value = place.value(connection)?;
                if value.as_ref() == Some(&there) {
                    return Err(fault(key, &place, unreadable));
                }
            }
        }
    }
    Ok(None)
}

/// The record that a head's value begins.
fn whole(
    connection: &Connect,
    key: &RecordKey,
    value: &[u8],
) -> Result<Result<Found, Unreadable>, Fault> {
    let (head, inline) = match Head::read(value) {
        Ok(read) => read,
        Err(unreadable) => return Ok(Err(unreadable)),
    };
    let mut packed = inline.to_vec();
    for place in parts(key, &head) {
        match place.value(connection)? {
            Some(part) => packed.extend(part),
            None => return Ok(Err(Unreadable::Damaged("a part is missing".to_owned()))),
        }
    }
    Ok(head.unpack(&packed).map(|body| Found { head, body }))
}

/// The head last: until it is there, all that is there is what was before.
fn write(connection: &Connect, key: &RecordKey, packed: &Packed) -> Result<(), Fault> {
    for (place, part) in parts(key, &packed.head).zip(&packed.parts) {
        place.write(connection, part)?;
    }
    Place::head(key).write(connection, &packed.value)
}

fn parts(key: &RecordKey, head: &Head) -> impl Iterator<Item = Place> {
    (0..head.parts).map(move |index| Place::new(PART, &format!("{key} {} {index}", head.blake3)))
}

/// Where one secret of ours is, or is to be.
struct Place {
    uuid: Uuid,
    description: String,
}

impl Place {
    /// No key has a blank in it, so no head has the name of a part.
    fn new(kind: &str, name: &str) -> Self {
        Self { uuid: uuid_of(name), description: format!("{kind}{name}") }
    }

    fn head(key: &RecordKey) -> Self {
        Self::new(RECORD, key.as_str())
    }

    fn find(&self, connection: &Connect) -> Result<Option<Secret>, Fault> {
        let Some(secret) = maybe(connection.lookup_secret_by_uuid(self.uuid))? else {
            return Ok(None);
        };
        match description(&secret)? {
            Some(description) if description == self.description => Ok(Some(secret)),
            _ => {
                let what = format!("libvirt's secret {} is not ours", self.uuid);
                Err(Fault::conflict(what).hint(format!("{:?} belongs there", self.description)))
            }
        }
    }

    /// `None` where there is no secret, and where there is one that has no value yet.
    fn value(&self, connection: &Connect) -> Result<Option<Vec<u8>>, Fault> {
        match self.find(connection)? {
            Some(secret) => maybe(secret_value(&secret)),
            None => Ok(None),
        }
    }

    fn write(&self, connection: &Connect, value: &[u8]) -> Result<(), Fault> {
        let secret = match self.find(connection)? {
            Some(secret) => secret,
            None => {
                let xml = new_secret(self.uuid, &self.description)
                    .map_err(|cause| Fault::internal(cause.to_string()))?;
                connection.define_secret_xml(&xml, 0)?
            }
        };
        Ok(secret.set_value(value, 0)?)
    }

    fn remove(&self, connection: &Connect) -> Result<(), Fault> {
        if let Some(secret) = self.find(connection)? {
            maybe(secret.undefine())?;
        }
        Ok(())
    }
}

fn uuid_of(name: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, name.as_bytes())
}

fn all(connection: &Connect) -> Result<Vec<Secret>, Fault> {
    connection.list_all_secrets(0).map_err(|said| explained(said.into()))
}

/// What follows `kind` in the description of a secret of ours; `None`: it is another's, or gone.
fn name(secret: &Secret, kind: &str) -> Result<Option<String>, Fault> {
    let description = description(secret).map_err(explained)?;
    let name = description.as_deref().and_then(|description| description.strip_prefix(kind));
    let Some(name) = name else { return Ok(None) };
    Ok((secret.uuid()? == uuid_of(name)).then(|| name.to_owned()))
}

/// `None` where there is none, and where a secret cannot be understood: none that we made.
fn description(secret: &Secret) -> Result<Option<String>, Fault> {
    let Some(text) = maybe(secret.xml_desc(0))? else { return Ok(None) };
    Ok(SecretXml::parse(&text).ok().and_then(|secret| secret.description))
}

fn fault(key: &RecordKey, place: &Place, unreadable: Unreadable) -> Fault {
    match unreadable {
        Unreadable::Version(version) => {
            let what = format!("record {key} is of version {version}, which is not known here");
            Fault::found(SiteErrorKind::Unsupported, what)
                .hint("use the release of causeway that kept it")
        }
        Unreadable::Damaged(how) => {
            let what = format!("record {key} is damaged: {how}");
            Fault::found(SiteErrorKind::Platform, what).hint(format!(
                "where the coordinator still has its state, remove the record: \
                 `virsh secret-undefine {}`",
                place.uuid
            ))
        }
    }
}

/// libvirt's text does not tell that it was secrets which somebody may not use.
fn explained(fault: Fault) -> Fault {
    match fault {
        Fault::Said(said) if said.code().is(ErrorNumber::AccessDenied) => {
            let what = format!("the user may not use libvirt's secrets: {}", said.message());
            Fault::found(SiteErrorKind::Denied, what).hint(
                "allow org.libvirt.api.secret.* and connect.search-secrets in polkit's rules there",
            )
        }
        fault => fault,
    }
}
