//! How a record is stored: a line of JSON that says what it is, and the body, compressed, behind it
//! or in parts. Pure: no libvirt here.

use serde::{Deserialize, Serialize};
use site::RECORD_MAX;

use crate::fault::Fault;

/// The only layout so far.
const VERSION: u32 = 1;

/// Bytes that a secret's value may have: `REMOTE_SECRET_VALUE_MAX` of libvirt 9.0.0's protocol, the
/// same since there are secrets.
const VALUE_MAX: usize = 65_536;

/// What the largest record needs that cannot be compressed: zstd adds less than a part to it.
const PARTS_MAX: usize = RECORD_MAX / VALUE_MAX + 1;

/// Most of it is text and JSON, and it is written while a migration waits.
const LEVEL: i32 = 3;

/// What the whole of a record is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    version: u32,
    /// Bytes of the body.
    length: usize,
    /// Of the body, in hexadecimal.
    pub blake3: String,
    /// 0: the body is behind this line.
    pub parts: usize,
}

/// A record, ready to be written.
pub(super) struct Packed {
    pub head: Head,
    /// The head's line, and the body where it fits.
    pub value: Vec<u8>,
    pub parts: Vec<Vec<u8>>,
}

/// Why what is stored is no record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It was never written like that.
    Damaged(String),
    /// Another release wrote it.
    Version(u32),
}

pub(super) fn pack(body: &[u8]) -> Result<Packed, Fault> {
    let packed = zstd::bulk::compress(body, LEVEL)
        .map_err(|cause| Fault::internal(format!("the record cannot be compressed: {cause}")))?;
    let blake3 = blake3::hash(body).to_hex().to_string();
    let head = Head { version: VERSION, length: body.len(), blake3, parts: 0 };
    let mut value = head.line()?;
    if value.len() + packed.len() <= VALUE_MAX {
        value.extend(packed);
        return Ok(Packed { head, value, parts: Vec::new() });
    }
    let parts: Vec<_> = packed.chunks(VALUE_MAX).map(<[u8]>::to_vec).collect();
    let head = Head { parts: parts.len(), ..head };
    Ok(Packed { value: head.line()?, head, parts })
}

impl Head {
    /// The head, and what is behind it.
    pub(super) fn read(value: &[u8]) -> Result<(Self, &[u8]), Unreadable> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |how: String| Unreadable::Damaged(how);
        let mut halves = value.splitn(2, |byte| *byte == b'\n');
        let (Some(line), Some(behind)) = (halves.next(), halves.next()) else {
            return Err(damaged("its head has no end".to_owned()));
        };
        let no_head = |cause| damaged(format!("its head cannot be read: {cause}"));
        let Version { version } = serde_json::from_slice(line).map_err(no_head)?;
        if version != VERSION {
            return Err(Unreadable::Version(version));
        }
        let head: Self = serde_json::from_slice(line).map_err(no_head)?;
        if head.length > RECORD_MAX || head.parts > PARTS_MAX {
            return Err(damaged(format!(
                "it claims {} bytes in {} parts, more than any has",
                head.length, head.parts
            )));
        }
        if head.parts > 0 && !behind.is_empty() {
            return Err(damaged("it has both parts and bytes behind its head".to_owned()));
        }
        Ok((head, behind))
    }

    /// The body from all of its parts, or from what is behind the head.
    pub(super) fn unpack(&self, packed: &[u8]) -> Result<Vec<u8>, Unreadable> {
        // Never more than was promised is made of it, and a promise is limited.
        let body = zstd::bulk::decompress(packed, self.length)
            .map_err(|cause| Unreadable::Damaged(format!("it cannot be decompressed: {cause}")))?;
        if body.len() != self.length {
            let how = format!("it has {} bytes and not {}", body.len(), self.length);
            return Err(Unreadable::Damaged(how));
        }
        if *blake3::hash(&body).to_hex() != *self.blake3 {
            return Err(Unreadable::Damaged("its bytes are not those that were kept".to_owned()));
        }
        Ok(body)
    }

    fn line(&self) -> Result<Vec<u8>, Fault> {
        let mut line = serde_json::to_vec(self)
            .map_err(|cause| Fault::internal(format!("a record's head is no JSON: {cause}")))?;
        line.push(b'\n');
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(value: &[u8], parts: &[Vec<u8>]) -> Result<Vec<u8>, Unreadable> {
        let (head, behind) = Head::read(value)?;
        head.unpack(&[behind, &parts.concat()].concat())
    }

    fn incompressible(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    /// A value as the first release wrote it. Never edited: a new layout is a new version with its
    /// own constant.
    const V1: &[u8] = b"{\"version\":1,\"length\":28,\"blake3\":\"ebb144da672ebdea97eaecc71c2d4fba\
        d2c01db52e0e03009c5546aac3931332\",\"parts\":0}\n\
        (\xb5/\xfd \x1c\x85\x00\x00Pthe plan, \x01\x00\xf5\n\x12";

    #[test]
    fn a_record_of_version_1_reads_as_released() {
        assert_eq!(unpacked(V1, &[]).unwrap(), b"the plan, the plan, the plan");
    }

    #[test]
    fn what_is_packed_fits_into_secrets_and_is_unpacked_as_it_was() {
        let lengths = [0, 1, 65_300, 65_400, 65_500, VALUE_MAX, 300_000, RECORD_MAX];
        for length in lengths {
            for body in [vec![0; length], incompressible(length)] {
                let packed = pack(&body).unwrap();
                assert!(packed.value.len() <= VALUE_MAX, "{length}: {}", packed.value.len());
                assert!(packed.parts.iter().all(|part| (1..=VALUE_MAX).contains(&part.len())));
                assert_eq!(packed.parts.len(), packed.head.parts);
                assert!(unpacked(&packed.value, &packed.parts).unwrap() == body, "{length}");
            }
        }
        assert_eq!(pack(&vec![0; RECORD_MAX]).unwrap().head.parts, 0);
        assert_eq!(pack(&incompressible(RECORD_MAX)).unwrap().head.parts, PARTS_MAX);
    }

    #[test]
    fn one_byte_more_or_less_is_damage_and_another_is_never_another_body() {
        let body = b"what undoes a fence".as_slice();
        let Packed { value, .. } = pack(body).unwrap();
        for cut in 0..value.len() {
            assert!(unpacked(&value[..cut], &[]).is_err(), "cut at {cut}");
        }
        for at in 0..value.len() {
            let mut other = value.clone();
            other[at] ^= 1;
            // zstd's own header has bits that mean nothing.
            let read = unpacked(&other, &[]);
            assert!(read.is_err() || read.as_deref() == Ok(body), "byte {at}: {read:?}");
        }
        assert!(unpacked(&[&value[..], b"x"].concat(), &[]).is_err());
    }

    #[test]
    fn a_part_that_is_missing_twice_there_or_out_of_order_is_damage() {
        let Packed { value, parts, .. } = pack(&incompressible(3 * VALUE_MAX)).unwrap();
        let swapped = [parts[1].clone(), parts[0].clone(), parts[2].clone(), parts[3].clone()];
        let doubled = [&parts[..], &parts[3..]].concat();
        for parts in [&parts[..3], &parts[1..], &swapped, &doubled, &[]] {
            assert!(unpacked(&value, parts).is_err());
        }
        assert!(unpacked(&value, &parts).is_ok(), "the control is damaged");
    }

    #[test]
    fn a_bomb_does_not_go_off_and_a_claim_is_limited() {
        let Packed { head, .. } = pack(b"small").unwrap();
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
        let stored = |head: &Head| [head.line().unwrap(), bomb.clone()].concat();
        assert!(unpacked(&stored(&head), &[]).is_err());
        let claims = [
            Head { length: RECORD_MAX + 1, ..head.clone() },
            Head { length: usize::MAX, ..head.clone() },
            Head { parts: PARTS_MAX + 1, ..head },
        ];
        for claim in claims {
            assert!(unpacked(&stored(&claim), &[]).is_err(), "{claim:?}");
        }
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let later = b"{\"version\":2,\"anything\":[]}\nmore";
        assert_eq!(unpacked(later, &[]), Err(Unreadable::Version(2)));
        let none: [&[u8]; 4] = [b"", b"\n", b"{}\n", b"\xff\xfe\n"];
        for value in none {
            assert!(matches!(unpacked(value, &[]), Err(Unreadable::Damaged(_))), "{value:?}");
        }
    }
}
