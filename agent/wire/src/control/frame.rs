//! Control messages as bytes: a length of four bytes, little-endian, and as many bytes of JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::CONTROL_MAX;

#[derive(Debug, Error)]
pub enum ControlFrameError {
    #[error("a control message of {len} bytes is longer than {CONTROL_MAX}")]
    TooLong { len: usize },

    #[error("an empty control message")]
    Empty,

    #[error("a control message that cannot be read")]
    Json {
        #[source]
        cause: serde_json::Error,
    },
}

/// One message as its frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ControlFrameError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)
        .map_err(|cause| ControlFrameError::Json { cause })?;
    let len = bytes.len() - 4;
    if len > CONTROL_MAX {
        return Err(ControlFrameError::TooLong { len });
    }
    let len = u32::try_from(len).map_err(|_| ControlFrameError::TooLong { len })?;
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    Ok(bytes)
}

/// The message at the start of `buffer` and how many bytes it took; `None`: not all there yet.
pub fn decode<T: DeserializeOwned>(buffer: &[u8]) -> Result<Option<(T, usize)>, ControlFrameError> {
    let Some((len, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
    let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
    match len {
        0 => return Err(ControlFrameError::Empty),
        _ if len > CONTROL_MAX => return Err(ControlFrameError::TooLong { len }),
        _ => {}
    }
    let Some(json) = rest.get(..len) else { return Ok(None) };
    let message =
        serde_json::from_slice(json).map_err(|cause| ControlFrameError::Json { cause })?;
    Ok(Some((message, 4 + len)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Call, Request};
    use super::*;

    /// As the first release wrote it. Never edited.
    const V1_STATUS: &[u8] = b"\x1b\0\0\0{\"id\":7,\"request\":\"status\"}";

    #[test]
    fn v1_frame_is_written_and_read_as_released() {
        let call = Call { id: 7, request: Request::Status };
        assert_eq!(encode(&call).unwrap(), V1_STATUS);
        assert_eq!(decode(V1_STATUS).unwrap(), Some((call, V1_STATUS.len())));
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_the_message_is_there() {
        let len = u32::try_from(CONTROL_MAX + 1).unwrap().to_le_bytes();
        assert!(matches!(decode::<Call>(&len), Err(ControlFrameError::TooLong { .. })));
        assert!(matches!(decode::<Call>(&[0; 4]), Err(ControlFrameError::Empty)));
        let long = "x".repeat(CONTROL_MAX);
        assert!(matches!(encode(&long), Err(ControlFrameError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode::<Call>(&bytes);
        }

        #[test]
        fn a_message_cut_short_is_not_yet_there(cut in 0_usize..31) {
            prop_assert!(matches!(decode::<Call>(&V1_STATUS[..cut]), Ok(None)));
        }
    }
}
