//! The bytes of a journal; see `FORMAT.md`. No I/O.

use std::fmt;

use thiserror::Error;

use crate::OpenError;

/// The largest payload of one record, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// The largest file, in bytes: it is read into memory whole.
pub const MAX_FILE: u64 = 256 << 20;

/// Length of the file's header, in bytes.
pub const HEADER_LEN: usize = 32;

const MAGIC: [u8; 8] = *b"CWJOURNL";
const VERSION: u16 = 1;
const HEAD_LEN: usize = 50;
pub(crate) const RECORD_OVERHEAD: usize = HEAD_LEN + 4;

/// Tells a journal from another one created in its place. Random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreId(pub [u8; 16]);

/// BLAKE3 of a record, over the hash of the one before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One record as it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Counted from 1, without gaps.
    pub number: u64,
    /// The caller's; never 0.
    pub kind: u16,
    pub payload: Vec<u8>,
}

/// What an interrupted append left at the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The number that the lost record would have had.
    pub record: u64,
    /// Where it started: the file's good length, in bytes.
    pub offset: u64,
    /// How many bytes of it there were.
    pub len: u64,
}

/// In which way a record is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Damage {
    #[error("the checksum of its head is wrong, and records follow it")]
    Head,
    #[error("the checksum of its content is wrong, and bytes follow it")]
    Content,
    #[error("more bytes follow than one interrupted record can leave")]
    LongTail,
    #[error("it has the number {found}")]
    Number { found: u64 },
    #[error("it does not follow the record before it")]
    Chain,
    #[error("its kind is 0")]
    KindZero,
    #[error("its length of {len} bytes is over the limit")]
    TooLong { len: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub kind: u16,
    pub id: StoreId,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.kind.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.id.0);
        let sum = crc32c::crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, OpenError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(OpenError::NotAJournal);
        };
        if bytes[..8] != MAGIC {
            return Err(OpenError::NotAJournal);
        }
        // The first 32 bytes keep this layout in every version, so the checksum comes first.
        if crc32c::crc32c(&bytes[..28]) != u32_at(bytes, 28) {
            return Err(OpenError::HeaderDamaged);
        }
        let version = u16_at(bytes, 8);
        if version != VERSION {
            return Err(OpenError::Version { found: version });
        }
        Ok(Self { kind: u16_at(bytes, 10), id: StoreId(array_at(bytes, 12)) })
    }

    /// What the first record follows.
    fn hash(&self) -> Hash {
        Hash(*blake3::hash(&self.encode()).as_bytes())
    }
}

/// Whether nothing was ever appended because the header never got to the disk.
pub(crate) fn creation_unfinished(bytes: &[u8]) -> bool {
    let zeros = bytes.iter().all(|byte| *byte == 0);
    let start_of_header = bytes.len() < HEADER_LEN
        && MAGIC.iter().zip(bytes).all(|(expected, found)| expected == found);
    bytes.len() <= HEADER_LEN && (zeros || start_of_header)
}

/// Everything that a file holds.
#[derive(Debug)]
pub(crate) struct Scan {
    pub header: Header,
    pub records: Vec<Record>,
    pub torn: Option<TornTail>,
    /// Where the last good record starts; the header's start while there is none.
    pub last_at: u64,
    pub end: u64,
    pub next: u64,
    pub head: Hash,
}

impl Scan {
    pub(crate) fn empty(header: Header) -> Self {
        let end = to_u64(HEADER_LEN);
        Self {
            header,
            records: Vec::new(),
            torn: None,
            last_at: 0,
            end,
            next: 1,
            head: header.hash(),
        }
    }

    /// The bytes of the last good record; of the header while there is none.
    pub(crate) fn last_record<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let at = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
        bytes.get(at(self.last_at)..at(self.end)).unwrap_or_default()
    }
}

/// Checks a whole file, record by record.
pub(crate) fn scan(bytes: &[u8]) -> Result<Scan, OpenError> {
    let mut scan = Scan::empty(Header::decode(bytes)?);
    let mut rest = bytes.get(HEADER_LEN..).unwrap_or_default();
    while !rest.is_empty() {
        let damaged = |what| OpenError::Damaged { record: scan.next, offset: scan.end, what };
        match decode(&scan, rest).map_err(damaged)? {
            Some((record, len, head)) => {
                scan.records.push(record);
                scan.last_at = scan.end;
                scan.end += to_u64(len);
                scan.next += 1;
                scan.head = head;
                rest = rest.get(len..).unwrap_or_default();
            }
            None => {
                scan.torn =
                    Some(TornTail { record: scan.next, offset: scan.end, len: to_u64(rest.len()) });
                break;
            }
        }
    }
    Ok(scan)
}

/// The record at the start of `rest`, its length and its hash; `None` if it is the unfinished
/// last one.
fn decode(scan: &Scan, rest: &[u8]) -> Result<Option<(Record, usize, Hash)>, Damage> {
    let head = match rest.first_chunk::<HEAD_LEN>() {
        Some(head) if head_is_good(&scan.header, head) => head,
        _ => return torn_unless_records_follow(scan, rest),
    };
    // From here on the head is as it was written: a torn write cannot explain what is wrong.
    let len = u32_at(head, 0);
    let payload_len = usize::try_from(len).unwrap_or(usize::MAX);
    if payload_len > MAX_PAYLOAD {
        return Err(Damage::TooLong { len });
    }
    let (kind, number) = (u16_at(head, 4), u64::from_le_bytes(array_at(head, 6)));
    if kind == 0 {
        return Err(Damage::KindZero);
    }
    if number != scan.next {
        return Err(Damage::Number { found: number });
    }
    if array_at(head, 14) != scan.head.0 {
        return Err(Damage::Chain);
    }
    let total = payload_len + RECORD_OVERHEAD;
    let Some(bytes) = rest.get(..total) else { return Ok(None) };
    let (content, sum) = bytes.split_at(total - 4);
    if checksum(&scan.header, content) != u32_at(sum, 0) {
        return if rest.len() == total { Ok(None) } else { Err(Damage::Content) };
    }
    let payload = content.get(HEAD_LEN..).unwrap_or_default().to_vec();
    Ok(Some((Record { number, kind, payload }, total, hash(content))))
}

/// A head that cannot be read is the start of an unfinished append only if nothing came after:
/// without this look ahead, one flipped bit in a length would make every later record vanish.
fn torn_unless_records_follow<T>(scan: &Scan, rest: &[u8]) -> Result<Option<T>, Damage> {
    if rest.len() > MAX_PAYLOAD + RECORD_OVERHEAD {
        return Err(Damage::LongTail);
    }
    let most = scan.next + to_u64(rest.len() / RECORD_OVERHEAD);
    let later = |head: &&[u8]| {
        let number = u64::from_le_bytes(array_at(head, 6));
        number > scan.next && number <= most && head_is_good(&scan.header, head)
    };
    match rest.windows(HEAD_LEN).skip(1).find(later) {
        Some(_) => Err(Damage::Head),
        None => Ok(None),
    }
}

/// The bytes of one record and its hash.
pub(crate) fn encode(
    header: &Header,
    number: u64,
    previous: Hash,
    kind: u16,
    payload: &[u8],
) -> (Vec<u8>, Hash) {
    let len = u32::try_from(payload.len()).expect("the caller checked the length against 1 MiB");
    let mut bytes = Vec::with_capacity(payload.len() + RECORD_OVERHEAD);
    bytes.extend(len.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes.extend(previous.0);
    bytes.extend(checksum(header, &bytes).to_le_bytes());
    bytes.extend(payload);
    let hash = hash(&bytes);
    bytes.extend(checksum(header, &bytes).to_le_bytes());
    (bytes, hash)
}

fn head_is_good(header: &Header, head: &[u8]) -> bool {
    checksum(header, &head[..HEAD_LEN - 4]) == u32_at(head, HEAD_LEN - 4)
}

/// Over the journal's id first: what another journal wrote is never taken for a record.
fn checksum(header: &Header, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header.id.0), bytes)
}

fn hash(bytes: &[u8]) -> Hash {
    Hash(*blake3::hash(bytes).as_bytes())
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn to_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
