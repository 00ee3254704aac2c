//! Sockets for data streams to the destination: handed in by the coordinator, or dialled.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use wire::data::STREAMS_MAX;

use super::error::SourceError;
use crate::session::lock;

/// The coordinator opens the streams before or while it asks for the connection.
const ARRIVE_WITHIN: Duration = Duration::from_secs(60);

/// An address that does not answer within this is not the one.
const DIAL_WITHIN: Duration = Duration::from_secs(5);

/// Streams that the coordinator handed in and nobody has asked for yet.
pub struct Arrivals<S> {
    waiting: Mutex<Waiting<S>>,
    news: Notify,
}

struct Waiting<S> {
    /// Streams of a lower one are closed.
    generation: u64,
    streams: BTreeMap<u16, S>,
}

impl<S> Default for Arrivals<S> {
    fn default() -> Self {
        let waiting = Waiting { generation: 0, streams: BTreeMap::new() };
        Self { waiting: Mutex::new(waiting), news: Notify::new() }
    }
}

impl<S> Arrivals<S> {
    /// Keeps a stream; a second one of the same number replaces the first, which was given up.
    pub fn put(&self, generation: u64, number: u16, stream: S) {
        let mut waiting = lock(&self.waiting);
        if generation < waiting.generation || number >= STREAMS_MAX {
            return;
        }
        if generation > waiting.generation {
            *waiting = Waiting { generation, streams: BTreeMap::new() };
        }
        waiting.streams.insert(number, stream);
        drop(waiting);
        self.news.notify_waiters();
    }

    pub fn clear(&self) {
        lock(&self.waiting).streams.clear();
    }

    /// All streams of a generation, in order.
    pub async fn take(&self, generation: u64, count: u16) -> Result<Vec<S>, SourceError> {
        let deadline = Instant::now() + ARRIVE_WITHIN;
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            let arrived = {
                let mut waiting = lock(&self.waiting);
                if waiting.generation > generation {
                    return Err(SourceError::Superseded);
                }
                let all = waiting.generation == generation
                    && (0..count).all(|number| waiting.streams.contains_key(&number));
                if all {
                    let streams = std::mem::take(&mut waiting.streams);
                    let wanted = |(number, stream)| (number < count).then_some(stream);
                    return Ok(streams.into_iter().filter_map(wanted).collect());
                }
                if waiting.generation == generation { waiting.streams.len() } else { 0 }
            };
            if timeout_at(deadline, news).await.is_err() {
                let waited = ARRIVE_WITHIN;
                return Err(SourceError::NotAllStreams { arrived, wanted: count, waited });
            }
        }
    }
}

/// TCP connections to the first of these addresses that answers.
pub async fn dial(addresses: &[String], count: u16) -> Result<Vec<TcpStream>, SourceError> {
    let mut cause = None;
    for address in addresses {
        let Ok(address) = address.parse::<SocketAddr>() else { continue };
        match timeout(DIAL_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(first)) => return dial_all(first, address, count).await,
            Ok(Err(error)) => cause = Some(error),
            Err(_) => cause = Some(std::io::Error::from(std::io::ErrorKind::TimedOut)),
        }
    }
    Err(SourceError::Unreachable { addresses: addresses.join(", "), cause })
}

async fn dial_all(
    first: TcpStream,
    address: SocketAddr,
    count: u16,
) -> Result<Vec<TcpStream>, SourceError> {
    let mut streams = vec![first];
    while streams.len() < usize::from(count) {
        let stream = TcpStream::connect(address).await.map_err(|cause| {
            SourceError::Unreachable { addresses: address.to_string(), cause: Some(cause) }
        })?;
        streams.push(stream);
    }
    Ok(streams)
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    fn stream() -> DuplexStream {
        duplex(16).0
    }

    #[tokio::test(start_paused = true)]
    async fn streams_are_taken_once_all_are_there() {
        let arrivals = Arrivals::default();
        arrivals.put(3, 1, stream());
        let late = async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            arrivals.put(3, 0, stream());
        };
        let (taken, ()) = tokio::join!(arrivals.take(3, 2), late);
        assert_eq!(taken.unwrap().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_that_do_not_come_are_counted_in_the_error() {
        let arrivals = Arrivals::default();
        arrivals.put(3, 1, stream());
        let error = arrivals.take(3, 2).await.err().unwrap();
        assert!(
            matches!(error, SourceError::NotAllStreams { arrived: 1, wanted: 2, .. }),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_generation_closes_the_streams_of_an_older_one() {
        let arrivals = Arrivals::default();
        arrivals.put(3, 0, stream());
        arrivals.put(4, 0, stream());
        arrivals.put(3, 1, stream());
        assert!(matches!(arrivals.take(3, 2).await, Err(SourceError::Superseded)));
        assert_eq!(arrivals.take(4, 1).await.unwrap().len(), 1);
    }
}
