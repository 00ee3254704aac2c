//! The four messages of a preamble, and finding them in a stream of anything.

/// One end's random number for one attempt.
pub type Nonce = [u8; 16];

/// The length of every message, in bytes.
pub const MESSAGE_LEN: usize = 56;

/// Random, so that it does not occur in a disk's content or in TLS records by chance. Its first
/// byte is no TLS content type, so a TLS session that reads it fails at once.
const MAGIC: [u8; 16] = [
    0xc4, 0x9b, 0x13, 0xee, 0x07, 0x5a, 0xd1, 0x86, 0x3f, 0xa8, 0x62, 0xb5, 0x0c, 0x99, 0x71, 0xe0,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Open = 1,
    Accept = 2,
    Start = 3,
    Go = 4,
    /// The answer to an OPEN of a version that the acceptor does not speak. Carries the version
    /// that it does.
    Refuse = 5,
}

impl Kind {
    const fn from_tag(tag: u8) -> Option<Self> {
        Some(match tag {
            1 => Self::Open,
            2 => Self::Accept,
            3 => Self::Start,
            4 => Self::Go,
            5 => Self::Refuse,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    pub version: u16,
    pub opener: Nonce,
    /// All zeros where the sender does not know it yet.
    pub acceptor: Nonce,
}

impl Message {
    /// magic 16, kind 1, zero 1, version 2, opener 16, acceptor 16, CRC32C of all that 4.
    pub fn encode(&self) -> [u8; MESSAGE_LEN] {
        let mut bytes = [0; MESSAGE_LEN];
        bytes[..16].copy_from_slice(&MAGIC);
        bytes[16] = self.kind as u8;
        bytes[18..20].copy_from_slice(&self.version.to_le_bytes());
        bytes[20..36].copy_from_slice(&self.opener);
        bytes[36..52].copy_from_slice(&self.acceptor);
        let check = crc32c::crc32c(&bytes[..52]);
        bytes[52..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; MESSAGE_LEN]) -> Option<Self> {
        if bytes[..16] != MAGIC || bytes[17] != 0 {
            return None;
        }
        if bytes[52..] != crc32c::crc32c(&bytes[..52]).to_le_bytes() {
            return None;
        }
        let nonce = |at: usize| std::array::from_fn(|i| bytes[at + i]);
        Some(Self {
            kind: Kind::from_tag(bytes[16])?,
            version: u16::from_le_bytes([bytes[18], bytes[19]]),
            opener: nonce(20),
            acceptor: nonce(36),
        })
    }
}

/// Finds messages in a stream of anything. Holds at most one message's length less a byte.
#[derive(Debug, Default)]
pub struct Scanner {
    held: Vec<u8>,
}

impl Scanner {
    /// The next message in `input`, which is shortened by what was looked at. A message that is
    /// cut off by the start of another one does not hide it: the check fails, and the scan goes on
    /// one byte further.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Message> {
        while let Some((byte, rest)) = input.split_first() {
            *input = rest;
            self.held.push(*byte);
            while !could_begin(&self.held) {
                self.held.remove(0);
            }
            if let Ok(whole) = <&[u8; MESSAGE_LEN]>::try_from(self.held.as_slice()) {
                let found = Message::decode(whole);
                if found.is_some() {
                    self.held.clear();
                    return found;
                }
                self.held.remove(0);
                while !could_begin(&self.held) {
                    self.held.remove(0);
                }
            }
        }
        None
    }
}

/// Is `held` the beginning of a message as far as the magic tells? True for nothing at all.
fn could_begin(held: &[u8]) -> bool {
    let len = held.len().min(MAGIC.len());
    held[..len] == MAGIC[..len]
}
