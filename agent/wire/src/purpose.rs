//! What a session is for: one small frame, first after the preamble.
//!
//! It is sent in the clear, because it decides whose key the TLS handshake that follows has to
//! show. Lying about it gains nothing: the key is checked all the same, and a data stream says
//! again inside TLS which one it is.

use thiserror::Error;

/// What the session that follows is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Requests of the coordinator.
    Control,
    /// One of the data streams between two agents.
    Data { generation: u64, stream: u16 },
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PurposeError {
    #[error("a purpose is 1 to {PURPOSE_MAX} bytes long, not {len}")]
    Length { len: u8 },

    #[error("unknown purpose {tag} in {len} bytes")]
    Unknown { tag: u8, len: u8 },
}

/// The largest purpose, in bytes after the length. Room for fields to come.
pub const PURPOSE_MAX: u8 = 32;

const CONTROL: u8 = 1;
const DATA: u8 = 2;

impl Purpose {
    /// One byte of length, one of tag, the fields, little-endian.
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Control => vec![1, CONTROL],
            Self::Data { generation, stream } => {
                let mut bytes = vec![11, DATA];
                bytes.extend(generation.to_le_bytes());
                bytes.extend(stream.to_le_bytes());
                bytes
            }
        }
    }

    /// The purpose at the start of `bytes` and how many bytes it took; `None`: not all there yet.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, PurposeError> {
        let Some((len, rest)) = bytes.split_first() else { return Ok(None) };
        if *len == 0 || *len > PURPOSE_MAX {
            return Err(PurposeError::Length { len: *len });
        }
        let Some(body) = rest.get(..usize::from(*len)) else { return Ok(None) };
        let purpose = match body {
            [CONTROL] => Self::Control,
            [DATA, fields @ ..] if fields.len() == 10 => {
                let generation = std::array::from_fn(|i| fields[i]);
                let stream = u16::from_le_bytes([fields[8], fields[9]]);
                Self::Data { generation: u64::from_le_bytes(generation), stream }
            }
            _ => return Err(PurposeError::Unknown { tag: body[0], len: *len }),
        };
        Ok(Some((purpose, 1 + usize::from(*len))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the first release wrote them. Never edited.
    const V1_CONTROL: [u8; 2] = [1, 1];
    const V1_DATA: [u8; 12] = [11, 2, 7, 0, 0, 0, 0, 0, 0, 1, 3, 0];

    #[test]
    fn v1_purposes_read_and_write_as_released() {
        let data = Purpose::Data { generation: (1 << 56) + 7, stream: 3 };
        assert_eq!(Purpose::decode(&V1_CONTROL), Ok(Some((Purpose::Control, 2))));
        assert_eq!(Purpose::decode(&V1_DATA), Ok(Some((data, 12))));
        assert_eq!(Purpose::Control.encode(), V1_CONTROL);
        assert_eq!(data.encode(), V1_DATA);
    }

    #[test]
    fn what_is_no_purpose_is_refused() {
        assert_eq!(Purpose::decode(&[0]), Err(PurposeError::Length { len: 0 }));
        assert_eq!(Purpose::decode(&[33]), Err(PurposeError::Length { len: 33 }));
        assert_eq!(Purpose::decode(&[1, 0]), Err(PurposeError::Unknown { tag: 0, len: 1 }));
        assert_eq!(Purpose::decode(&[2, 2, 0]), Err(PurposeError::Unknown { tag: 2, len: 2 }));
    }

    proptest! {
        #[test]
        fn a_purpose_cut_short_is_not_yet_there(generation: u64, stream: u16, cut in 0_usize..12) {
            let bytes = Purpose::Data { generation, stream }.encode();
            prop_assert_eq!(Purpose::decode(&bytes[..cut]), Ok(None));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Purpose::decode(&bytes);
        }
    }
}
