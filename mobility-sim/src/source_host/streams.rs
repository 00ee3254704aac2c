//! The data connections of VMs that are coming in: each is carried to the destination's hypervisor.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use site::ByteStream;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use units::chain;

use crate::destination_host::CONNECTIONS_MAX;
use crate::libvirt::Endpoint;
use crate::net::{Carries, Net};
use crate::progress::Meters;
use crate::relay::templates::{HASHES_AT_ONCE, Index};
use crate::relay::{DEAD_AFTER, InOrder, Migration, Part, RelayError, Share, relay};
use crate::serve::Agent;
use crate::wan;
use crate::wan::message::{Door, Token};

/// By the token that they show.
#[derive(Default)]
pub struct Streams(Mutex<HashMap<Token, Open>>);

#[derive(Clone)]
struct Open {
    to: Data,
    end: CancellationToken,
    meters: Meters,
    /// What has come, for whatever names it again.
    known: Arc<Migration>,
    memory: Turn,
    disks: Turn,
}

/// Connections reach the hypervisor in the order in which the source's made them: QEMU before 8.0
/// takes the first one for the one that carries what multifd does not, and resets it if it is not.
#[derive(Clone)]
struct Turn(watch::Sender<u32>);

impl Turn {
    fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    async fn connect(&self, net: &dyn Net, index: u32, to: SocketAddr) -> io::Result<ByteStream> {
        let mut turns = self.0.subscribe();
        let mine = timeout(TURN_MAX, turns.wait_for(|turn| *turn == index)).await;
        // Its sender is in our hands.
        mine.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, "an earlier connection is missing")
        })?
        .map_err(io::Error::other)?;
        let stream = net.connect(&Endpoint::Tcp(to), Carries::Data).await?;
        self.0.send_replace(index.saturating_add(1));
        Ok(stream)
    }
}

/// One before it that does not come by then never comes.
const TURN_MAX: Duration = Duration::from_secs(30);

/// Where the hypervisor listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    pub memory: SocketAddr,
    pub disks: Option<SocketAddr>,
}

/// Streams are let in until this is dropped; those that are in go on to their own end.
pub struct Opened<'a> {
    streams: &'a Streams,
    token: Token,
    meters: Meters,
}

impl Opened<'_> {
    pub const fn meters(&self) -> &Meters {
        &self.meters
    }
}

impl Streams {
    /// `end` closes them all. `share`: what they keep of what came; `templates`: what was there before.
    pub fn open(
        &self,
        token: Token,
        to: Data,
        share: Share,
        templates: Option<Arc<Index>>,
        end: &CancellationToken,
    ) -> Opened<'_> {
        let (memory, disks) = (Turn::new(), Turn::new());
        let meters = Meters::default();
        let known = Arc::new(Migration::of(share).with_templates(templates));
        let open = Open { to, end: end.clone(), meters: meters.clone(), known, memory, disks };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone(), open);
        Opened { streams: self, token, meters }
    }

    fn find(&self, token: &Token) -> Option<Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.streams.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.token);
    }
}

/// One of them, to its end.
pub async fn carry(agent: &Agent, token: &Token, leads_to: Door, index: u32, stream: wan::Stream) {
    let Some(Open { to, end, meters, known, memory, disks }) = agent.arrivals.streams.find(token)
    else {
        return debug!(%leads_to, "a stream of no migration");
    };
    let (address, meter, turn) = match leads_to {
        Door::Memory => (Some(to.memory), &meters.memory, memory),
        Door::Disks => (to.disks, &meters.disks, disks),
    };
    if index as usize >= CONNECTIONS_MAX {
        return warn!(index, "more connections than a migration has");
    }
    let Some(address) = address else { return warn!("disks come where none are awaited") };
    let carried = async {
        let local = turn.connect(&*agent.net, index, address).await.map_err(RelayError::Local)?;
        let part = Part::Takes { kind: leads_to.into(), index, migration: known };
        match leads_to {
            Door::Memory => relay(local, stream.stream, part, meter).await,
            Door::Disks => relay(InOrder::new(local), stream.stream, part, meter).await,
        }
    };
    let carried = tokio::select! {
        carried = carried => carried,
        () = end.cancelled() => return,
    };
    match carried {
        Ok(()) => debug!(%leads_to, "a connection has ended"),
        Err(error) => warn!(%leads_to, "a data connection has ended: {}", chain(&error)),
    }
}

/// What this site has of templates, to whoever belongs to the migration.
pub async fn tell_templates(agent: &Agent, token: &Token, mut stream: wan::Stream) {
    let open = agent.arrivals.streams.find(token);
    // No more of the migration: that ends when it does.
    let its = open.and_then(|open| Some((Arc::clone(open.known.templates()?), open.end)));
    let Some((index, end)) = its else {
        return debug!("templates are asked for by no migration");
    };
    let told = async {
        for hashes in index.hashes().chunks(HASHES_AT_ONCE) {
            let written = timeout(DEAD_AFTER, stream.stream.write_all(hashes.as_flattened())).await;
            written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        }
        stream.stream.shutdown().await
    };
    let told = tokio::select! {
        told = told => told,
        () = end.cancelled() => return,
    };
    if let Err(error) = told {
        debug!(%error, "templates were not told of");
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::net::Machine;

    #[tokio::test]
    async fn connections_are_made_in_the_sources_order_however_they_come() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let to = listener.local_addr().unwrap();
        let turn = Turn::new();
        for index in [2_u8, 0, 1] {
            let turn = turn.clone();
            tokio::spawn(async move {
                let mut stream = turn.connect(&Machine, index.into(), to).await.unwrap();
                stream.write_u8(index).await.unwrap();
            });
            tokio::task::yield_now().await;
        }
        for index in 0..3 {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), index);
        }
    }
}
