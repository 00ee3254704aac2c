//! The data connections of VMs that are coming in: each is carried to the destination's hypervisor.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};
use units::chain;

use crate::progress::Meters;
use crate::relay::{RelayError, relay};
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
}

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
}

impl Streams {
    /// `end` closes them all.
    pub fn open(&self, token: Token, to: Data, end: &CancellationToken) -> Opened<'_> {
        let open = Open { to, end: end.clone(), meters: Meters::default() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone(), open);
        Opened { streams: self, token }
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
pub async fn carry(agent: &Agent, token: &Token, leads_to: Door, stream: wan::Stream) {
    let Some(Open { to, end, meters }) = agent.arrivals.streams.find(token) else {
        return debug!(%leads_to, "a stream of no migration");
    };
    let (address, meter) = match leads_to {
        Door::Memory => (Some(to.memory), &meters.memory),
        Door::Disks => (to.disks, &meters.disks),
    };
    let Some(address) = address else { return warn!("disks come where none are awaited") };
    let carried = async {
        let local = TcpStream::connect(address).await.map_err(RelayError::Local)?;
        local.set_nodelay(true).map_err(RelayError::Local)?;
        relay(local, stream.stream, meter).await
    };
    let carried = tokio::select! {
        carried = carried.instrument(info_span!("stream", %leads_to)) => carried,
        () = end.cancelled() => return,
    };
    match carried {
        Ok(()) => debug!(%leads_to, "a connection has ended"),
        Err(error) => warn!(%leads_to, "a data connection has ended: {}", chain(&error)),
    }
}
