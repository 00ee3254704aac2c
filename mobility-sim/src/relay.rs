//! One connection of QEMU's or libvirt's, carried to the other site and on to its real end.
//!
//! ```text
//!  source's QEMU ── local ──► relay ══ far: blocks, TLS ══► relay ── local ──► destination's QEMU
//!                ◄──                                                        ◄──
//! ```
//!
//! Both directions at once, each with an end of its own: QEMU closes the half that it does not need any
//! more. Not a byte is changed or kept back: what was read is sent at once, and no more is read than
//! the other side takes, so that what QEMU measures is the line and not a buffer. Where the far side
//! falls silent or breaks, the local connection is closed at once: QEMU then fails its migration and
//! goes on at the source, while a peer that only hangs would hold it for ever.

mod block;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, sleep_until};

pub use block::BLOCK_MAX;
use block::{Decoder, Encoder, Said};

/// The other end says that it is there at least so often.
pub const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// One that has said nothing for so long is gone: below libvirt's own 30 s, so that its keepalive does
/// not end the connection that the source waits on first.
pub const DEAD_AFTER: Duration = Duration::from_secs(20);

#[derive(Debug, Error)]
pub enum RelayError {
    #[error("the connection of this site's hypervisor broke")]
    Local(#[source] io::Error),
    #[error("the line to the other agent broke")]
    Far(#[source] io::Error),
    #[error("the other agent has said nothing for {} s", DEAD_AFTER.as_secs())]
    Silent,
    #[error("the other agent broke the protocol: {what}")]
    Protocol { what: &'static str },
}

/// Bytes so far, of one connection or of several.
#[derive(Debug, Default)]
pub struct Meter {
    /// Read from this site's hypervisor.
    pub taken: AtomicU64,
    /// Written to it.
    pub given: AtomicU64,
    /// Sent to the other agent, with all that is around it but TLS.
    pub sent: AtomicU64,
    pub received: AtomicU64,
}

/// Carries a connection to its end: both sides have said that nothing more comes.
///
/// # Errors
/// Where either breaks. Both are closed then.
pub async fn relay<L, F>(local: L, far: F, meter: &Meter) -> Result<(), RelayError>
where
    L: AsyncRead + AsyncWrite,
    F: AsyncRead + AsyncWrite,
{
    let ((from_local, to_local), (from_far, to_far)) = (split(local), split(far));
    let out = outwards(from_local, to_far, meter);
    let back = inwards(from_far, to_local, meter);
    // The first error drops the other direction, and with it both connections.
    tokio::try_join!(out, back)?;
    Ok(())
}

async fn outwards<L, F>(mut local: L, mut far: F, meter: &Meter) -> Result<(), RelayError>
where
    L: AsyncRead + Unpin,
    F: AsyncWrite + Unpin,
{
    let mut encoder = Encoder::new();
    let mut raw = vec![0; BLOCK_MAX];
    let mut said = Instant::now();
    loop {
        let block = tokio::select! {
            read = local.read(&mut raw) => match read.map_err(RelayError::Local)? {
                0 => break,
                len => {
                    meter.taken.fetch_add(len as u64, Ordering::Relaxed);
                    encoder.block(&raw[..len])
                }
            },
            () = sleep_until(said + ALIVE_EVERY) => Encoder::alive(),
        };
        send(&mut far, block, meter).await?;
        said = Instant::now();
    }
    // Nothing more comes, and nobody waits for it any longer.
    send(&mut far, Encoder::end(), meter).await
}

/// As long as it takes: the far hypervisor may be slow, and its agent says meanwhile that it is there. A
/// line that is cut the socket itself notices (`TCP_USER_TIMEOUT`).
async fn send<F>(far: &mut F, block: &[u8], meter: &Meter) -> Result<(), RelayError>
where
    F: AsyncWrite + Unpin,
{
    far.write_all(block).await.map_err(RelayError::Far)?;
    far.flush().await.map_err(RelayError::Far)?;
    meter.sent.fetch_add(block.len() as u64, Ordering::Relaxed);
    Ok(())
}

async fn inwards<F, L>(mut far: F, mut local: L, meter: &Meter) -> Result<(), RelayError>
where
    F: AsyncRead + Unpin,
    L: AsyncWrite + Unpin,
{
    let mut decoder = Decoder::new();
    loop {
        let (said, len) = decoder.next(&mut far).await?;
        meter.received.fetch_add(len as u64, Ordering::Relaxed);
        match said {
            Said::Alive => {}
            Said::End => break,
            Said::Bytes(bytes) => {
                local.write_all(bytes).await.map_err(RelayError::Local)?;
                meter.given.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
        }
    }
    local.shutdown().await.map_err(RelayError::Local)
}
