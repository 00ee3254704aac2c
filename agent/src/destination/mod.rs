//! The agent at the destination: in the helper, with the targets attached.
//!
//! ```text
//!  Attach       targets by serial number; what they hold is read, unless they are fresh
//!  Expect    →  a generation of data streams, from one key
//!  Digests   →  what was acknowledged, durable
//!  Reread    →  what is really there
//!  InspectBoot, Shutdown
//! ```
//!
//! Data streams come over the helper's ports, or over TCP. Each has to show the key that was
//! expected last; the receiver sees to it that an older generation writes nothing any more.

mod boot;
mod error;
mod targets;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio::sync::Mutex as AsyncMutex;
use tracing::{info, warn};
use transfer::meet::Met;
use transfer::secure::{self, Identity, PublicKey, Trust};
use transfer::{BlockRead, Receiver, ReceiverLimits};
use units::{MigrationId, chain};
use wire::control::{
    AgentDisk, AgentRole, AgentStatus, BootFinding, ErrorCode, Event, Failure, Reply, Request,
};

use crate::inspect::{self, Tree};
use crate::session::{ByteStream, Events, Role, UntilReopened, failure, lock};
use error::{DestinationError, to_failure};
use targets::Target;

pub struct Destination {
    tree: Tree,
    identity: Identity,
    events: Events,
    /// Where to listen for direct connections, if at all.
    port: Option<u16>,
    attached: Mutex<Option<Arc<Attached>>>,
    /// Held while targets are attached, or streams expected: one at a time.
    changing: AsyncMutex<()>,
    expected: Mutex<Option<Expected>>,
    /// Set once; whoever owns the helper accepts on it.
    listener: Mutex<Option<Arc<TcpListener>>>,
    listens: tokio::sync::Notify,
}

struct Attached {
    targets: Vec<Target>,
    receiver: Receiver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expected {
    generation: u64,
    streams: u16,
    peer: PublicKey,
}

impl Destination {
    pub fn new(identity: Identity, events: Events, port: Option<u16>) -> Arc<Self> {
        Arc::new(Self {
            tree: Tree::of_this_system(),
            identity,
            events,
            port,
            attached: Mutex::new(None),
            changing: AsyncMutex::new(()),
            expected: Mutex::new(None),
            listener: Mutex::new(None),
            listens: tokio::sync::Notify::new(),
        })
    }

    /// The next stream over TCP. Pends until direct connections are asked for.
    pub async fn accept(&self) -> ByteStream {
        loop {
            let listens = self.listens.notified();
            let listener = lock(&self.listener).clone();
            let Some(listener) = listener else {
                listens.await;
                continue;
            };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    info!(%peer, "direct connection");
                    if let Err(error) = stream.set_nodelay(true) {
                        warn!(%error, "small packets will wait");
                    }
                    return Box::new(stream);
                }
                Err(error) => {
                    warn!(%error, "no connection accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn attached(&self) -> Result<Arc<Attached>, DestinationError> {
        let what = "no targets are attached";
        lock(&self.attached).clone().ok_or(DestinationError::State { what, hint: "attach first" })
    }

    async fn attach(
        &self,
        owner: MigrationId,
        disks: Vec<AgentDisk>,
    ) -> Result<(), DestinationError> {
        let _one = self.changing.lock().await;
        let known = lock(&self.attached).clone();
        if let Some(known) = known {
            // Whether they were fresh is no news to those who have written them since.
            let same = |(target, disk): (&Target, &AgentDisk)| {
                AgentDisk { fresh: disk.fresh, ..target.asked.clone() } == *disk
            };
            if known.targets.len() == disks.len() && known.targets.iter().zip(&disks).all(same) {
                return Ok(());
            }
            let serials: Vec<&str> =
                known.targets.iter().map(|t| t.asked.device.as_str()).collect();
            return Err(DestinationError::OtherTargets { serials: serials.join(", ") });
        }
        let tree = self.tree.clone();
        let open = move || disks.iter().map(|disk| Target::open(&tree, disk)).collect();
        let opened: Result<Vec<Target>, DestinationError> =
            tokio::task::spawn_blocking(open).await?;
        let targets = opened?;
        let receiver = Receiver::new(
            owner,
            targets.iter().map(Target::to_receive).collect(),
            ReceiverLimits::default(),
        )?;
        let events = self.events.clone();
        receiver.index(move |done, total| events.tell(Event::Indexing { done, total })).await?;
        *lock(&self.attached) = Some(Arc::new(Attached { targets, receiver }));
        Ok(())
    }

    async fn expect(
        &self,
        generation: u64,
        streams: u16,
        peer_key: &str,
        listen: bool,
    ) -> Result<Vec<String>, DestinationError> {
        let peer = peer_key.parse()?;
        let attached = self.attached()?;
        let _one = self.changing.lock().await;
        let asked = Expected { generation, streams, peer };
        let known = *lock(&self.expected);
        match known {
            Some(known) if known == asked => {}
            Some(known) if known.generation >= generation => {
                return Err(DestinationError::OldGeneration {
                    asked: generation,
                    known: known.generation,
                });
            }
            _ => {
                attached.receiver.begin(generation).await?;
                *lock(&self.expected) = Some(asked);
            }
        }
        if listen { self.listen().await } else { Ok(Vec::new()) }
    }

    async fn listen(&self) -> Result<Vec<String>, DestinationError> {
        let Some(port) = self.port else {
            let what = "this helper has no network";
            let hint =
                "give it the kernel arguments causeway.net and causeway.listen, or use the relay";
            return Err(DestinationError::State { what, hint });
        };
        let known = lock(&self.listener).clone();
        if known.is_none() {
            let any: SocketAddr = (std::net::Ipv6Addr::UNSPECIFIED, port).into();
            // A kernel without IPv6 has only the other one.
            let listener = match TcpListener::bind(any).await {
                Ok(listener) => Ok(listener),
                Err(_) => TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port)).await,
            };
            let listener = listener.map_err(|cause| DestinationError::Listen { port, cause })?;
            *lock(&self.listener) = Some(Arc::new(listener));
            self.listens.notify_waiters();
        }
        let local = |address: &std::net::IpAddr| match address {
            std::net::IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
            std::net::IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
        };
        let addresses = inspect::network_addresses().into_iter().map(|(_, address, _)| address);
        let addresses = addresses.filter(|address| !local(address));
        Ok(addresses.map(|address| SocketAddr::new(address, port).to_string()).collect())
    }

    async fn inspect_boot(&self) -> Result<Vec<BootFinding>, DestinationError> {
        let attached = self.attached()?;
        let look = move || {
            let disks: Vec<&dyn BlockRead> =
                attached.targets.iter().map(|target| &*target.disk as &dyn BlockRead).collect();
            boot::findings(&disks)
        };
        Ok(tokio::task::spawn_blocking(look).await?)
    }

    async fn do_it(&self, owner: MigrationId, request: Request) -> Result<Reply, DestinationError> {
        match request {
            Request::Status => Ok(Reply::Status(self.status())),
            Request::Attach { disks } => {
                self.attach(owner, disks).await?;
                Ok(Reply::Done)
            }
            Request::Expect { generation, streams, peer_key, listen } => {
                let addresses = self.expect(generation, streams, &peer_key, listen).await?;
                Ok(Reply::Listening { addresses })
            }
            Request::Digests => {
                let disks = self.attached()?.receiver.digests().await?;
                Ok(Reply::Digests { disks })
            }
            Request::Reread => {
                let events = self.events.clone();
                let attached = self.attached()?;
                let tell = move |done, total| events.tell(Event::Indexing { done, total });
                Ok(Reply::Digests { disks: attached.receiver.reread(tell).await? })
            }
            Request::InspectBoot => Ok(Reply::Boot { findings: self.inspect_boot().await? }),
            Request::Disconnect => {
                if let Ok(attached) = self.attached() {
                    attached.receiver.disconnect().await;
                }
                Ok(Reply::Done)
            }
            _ => {
                let what = "this is asked of the source's agent";
                Err(DestinationError::State { what, hint: "this is a bug of the coordinator" })
            }
        }
    }

    fn status(&self) -> AgentStatus {
        AgentStatus {
            role: AgentRole::Destination,
            boot_id: inspect::boot_id(&self.tree),
            tracking: None,
            generation: lock(&self.expected).map(|expected| expected.generation),
            frozen: false,
            round: None,
            memory: inspect::own_memory(&self.tree),
        }
    }
}

impl Role for Destination {
    const ROLE: AgentRole = AgentRole::Destination;

    type Stream = ByteStream;

    async fn answer(
        self: Arc<Self>,
        owner: MigrationId,
        request: Request,
    ) -> Result<Reply, Failure> {
        // A task of its own, so that a bug in one request is an answer and not the helper's end.
        let done =
            tokio::spawn(async move { self.do_it(owner, request).await.map_err(to_failure) });
        let panicked = |_| failure(ErrorCode::Io, "a bug in the agent: see the helper's console");
        done.await.map_err(panicked)?
    }

    async fn data(self: Arc<Self>, generation: u64, number: u16, stream: Met<ByteStream>) {
        let expected = *lock(&self.expected);
        let fits = |known: &Expected| known.generation == generation && number < known.streams;
        let (Some(expected), Ok(attached)) = (expected.filter(fits), self.attached()) else {
            warn!(generation, stream = number, "unexpected data stream refused");
            return;
        };
        let stream = UntilReopened::new(stream);
        let secured = match secure::accept(stream, &self.identity, Trust::Only(expected.peer)).await
        {
            Ok(secured) => secured,
            Err(error) => {
                warn!(stream = number, error = %chain(&error), "data stream not secured");
                return;
            }
        };
        match attached.receiver.serve(secured.stream).await {
            Ok(()) => info!(generation, stream = number, "data stream ended"),
            Err(error) => {
                warn!(generation, stream = number, error = %chain(&error), "data stream broke");
            }
        }
    }

    async fn wind_up(self: Arc<Self>) {
        if let Ok(attached) = self.attached() {
            attached.receiver.disconnect().await;
            if let Err(error) = attached.receiver.digests().await {
                warn!(error = %chain(&error), "targets not made durable");
            }
        }
        rustix::fs::sync();
    }
}
