//! Joins a stream from the source's agent with one into the helper, for agents that cannot reach
//! each other. What passes is theirs, encrypted end to end; we only carry it.

use std::io;

use site::ByteStream;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::task::JoinSet;

/// Bytes held per stream towards the destination. One libvirt stream packet (256 KiB) fits.
const FORTH: usize = 256 * 1024;
/// And back: acknowledgements. Every migration holds both for each of its streams.
const BACK: usize = 32 * 1024;

/// The joined streams of one generation. Dropping it cuts them all.
#[derive(Default)]
pub struct Relay {
    pumps: JoinSet<(u16, io::Result<(u64, u64)>)>,
}

impl Relay {
    pub fn join(&mut self, number: u16, mut source: ByteStream, mut destination: ByteStream) {
        self.pumps.spawn(async move {
            let done =
                copy_bidirectional_with_sizes(&mut source, &mut destination, FORTH, BACK).await;
            (number, done)
        });
    }

    /// Waits until one of the streams ends, which the data streams of a running round never do by
    /// themselves. Pends for ever where there are none.
    pub async fn broken(&mut self) -> String {
        match self.pumps.join_next().await {
            None => std::future::pending().await,
            Some(Ok((number, Ok(_)))) => format!("stream {number} was closed"),
            Some(Ok((number, Err(error)))) => format!("stream {number}: {error}"),
            Some(Err(error)) => format!("a stream's task ended: {error}"),
        }
    }
}
