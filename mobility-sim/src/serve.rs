//! The agent: whoever connects is heard, and what an earlier life left open is gone on with.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use journal::OpenError;
use rpc::server::{Host, Limits, Session};
use site::Site;
use site_ledger::AgentPaper;
use site_libvirt::{Acceleration, LibvirtConfig, LibvirtSite};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use transfer::secure::Identity;
use units::{MigrationId, chain};

use crate::config::{Config, Listen};
use crate::custody::Custody;
use crate::key::{self, KeyError};
use crate::ledger::{Entry, Ledger, LedgerError, Stage};
use crate::libvirt::Endpoint;
use crate::libvirt::server::Line;
use crate::libvirt::tls::{Doorman, TlsError};
use crate::net::{Carries, Listener, Machine, Net, Peer};
use crate::relay::Budget;
use crate::relay::templates::{self, Library};
use crate::wan::message::{self, Purpose};
use crate::wan::{self, Control, WanError};
use crate::{destination_host, flags, lost, source_host};

#[derive(Debug, Error)]
pub enum ServeError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("another agent works with this state directory: {}", .0.display())]
    Another(PathBuf),
    #[error("the ledger in this state directory cannot be used")]
    Ledger(#[source] LedgerError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot listen on {on}")]
    Listen { on: String, source: io::Error },
    #[error("the system gives no runtime")]
    Runtime(#[source] io::Error),
}

/// What both roles share.
pub struct Agent {
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    /// This site's platform.
    pub(crate) site: Arc<dyn Site>,
    pub(crate) net: Arc<dyn Net>,
    /// How far each migration came.
    pub(crate) ledger: Ledger,
    /// Who may run.
    pub(crate) custody: Custody,
    pub(crate) arrivals: source_host::Arrivals,
    /// What its relays may keep.
    pub(crate) budget: Budget,
    /// What its site has already of VMs to come.
    pub(crate) templates: Library,
    /// Its tasks end, wherever they are.
    ends: CancellationToken,
}

/// How many may be at a door at once, before they have shown a key or a certificate.
const STRANGERS_MAX: usize = 64;

/// Connections of this site's hosts at once: each migration has one.
const HOSTS_MAX: usize = 256;
/// With fewer places than that left, those that want nothing go.
const HOSTS_SPARE: usize = 64;

/// A libvirtd that is away comes back.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The longest call of a host, in bytes. A definition has some kilobytes; 256 hosts that are not asked who they are have
/// half a GiB on their way in by that.
const CALL_MAX: usize = 2 << 20;

pub fn run(config: Config) -> Result<(), ServeError> {
    let libvirt = LibvirtConfig {
        acceleration: if config.arrivals.emulate {
            Acceleration::Never
        } else {
            Acceleration::Offered
        },
        ..LibvirtConfig::new(config.site.name.clone(), config.site.uri.clone())
    };
    let site = Arc::new(LibvirtSite::new(libvirt));
    let agent = Arc::new(Agent::open(config, site, Arc::new(Machine))?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(async {
        agent.spawn(tell_of_itself(Arc::clone(&agent)));
        let terminated = async {
            match signal(SignalKind::terminate()) {
                Ok(mut signal) => drop(signal.recv().await),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = agent.serve() => return ended,
            () = terminated => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        info!("ends; what is not settled is gone on with at the next start");
        Ok(())
    })
}

/// Whoever begins a migration may see with whom it is paired.
async fn tell_of_itself(agent: Arc<Agent>) {
    let Config { site, neighbour, .. } = &agent.config;
    let paper = AgentPaper::new(
        (site.name.clone(), agent.identity.public().to_string()),
        (neighbour.name.clone(), neighbour.key.to_string()),
    );
    let mut told = String::new();
    while let Err(error) = paper.keep(&*agent.site).await {
        let why = chain(&error);
        if why != told {
            warn!("with whom it is paired is not kept at its site yet: {why}");
            told = why;
        }
        tokio::time::sleep(TELL_AGAIN_AFTER).await;
    }
}

impl Agent {
    /// With what its state directory holds, which is its alone.
    pub fn open(
        config: Config,
        site: Arc<dyn Site>,
        net: Arc<dyn Net>,
    ) -> Result<Self, ServeError> {
        let identity = key::identity(&config.site.state_dir)?;
        let ledger = Ledger::open(&config.site.state_dir.join("ledger"));
        let ledger = ledger.map_err(|error| match error {
            LedgerError::Open(OpenError::Locked) => {
                ServeError::Another(config.site.state_dir.clone())
            }
            error => ServeError::Ledger(error),
        })?;
        let custody = Custody::new(Arc::clone(&site), config.site.state_dir.join("custody"));
        let arrivals = source_host::Arrivals::default();
        let ends = CancellationToken::new();
        let budget = Budget::new(u64::from(config.relay.memory_mib) << 20);
        // What is wrong with one is no reason not to be there for VMs.
        if let Err(error) = templates::check(&config.arrivals.templates) {
            warn!("{error}");
        }
        let templates = Library::new(config.arrivals.templates.clone());
        // Nobody has asked yet: they are read until somebody does.
        let _ = templates.index();
        Ok(Self { config, identity, site, net, ledger, custody, arrivals, budget, templates, ends })
    }

    /// Until it is told to end.
    pub async fn serve(self: &Arc<Self>) -> Result<(), ServeError> {
        let Listen { libvirt, tls, unix, wan } = &self.config.listen;
        let hosts = Arc::new(Semaphore::new(HOSTS_MAX));
        for address in libvirt {
            let listener = self.listen(&Endpoint::Tcp(*address), Carries::Calls)?;
            self.spawn(hear_hosts(Arc::clone(self), listener, Link::Open, Arc::clone(&hosts)));
        }
        if let Some(tls) = tls {
            let doorman = Doorman::new(tls)?;
            for address in &tls.at {
                let listener = self.listen(&Endpoint::Tcp(*address), Carries::Calls)?;
                let (doorman, hosts) = (doorman.clone(), Arc::clone(&hosts));
                self.spawn(hear_known_hosts(Arc::clone(self), listener, doorman, hosts));
            }
        }
        if let Some(path) = unix {
            let listener = self.listen(&Endpoint::Unix(path.clone()), Carries::Calls)?;
            self.spawn(hear_hosts(Arc::clone(self), listener, Link::Secure, hosts));
        }
        let listener = self.listen(&Endpoint::Tcp(*wan), Carries::Words)?;
        self.spawn(hear_neighbour(Arc::clone(self), listener));
        go_on(self);
        info!(
            site = %self.config.site.name,
            neighbour = %self.config.neighbour.name,
            key = %self.identity.public(),
            "ready"
        );
        self.ends.cancelled().await;
        Ok(())
    }

    /// Everything of it ends where it is, as if it were killed.
    pub fn end(&self) {
        self.ends.cancel();
    }

    /// A task of its own: it ends with the agent, if not before. `None` then.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let ends = self.ends.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = ends.cancelled() => None,
                done = task => Some(done),
            }
        })
    }

    fn listen(&self, at: &Endpoint, carries: Carries) -> Result<Box<dyn Listener>, ServeError> {
        let listen = |source| ServeError::Listen { on: at.to_string(), source };
        self.net.listen(at, carries).map_err(listen)
    }
}

/// Migrations that an earlier life of this agent did not see the end of.
fn go_on(agent: &Arc<Agent>) {
    for entry in agent.ledger.entries() {
        go_on_with(agent, &entry);
    }
    agent.spawn(lost::take_back(Arc::clone(agent)));
}

pub(crate) fn go_on_with(agent: &Arc<Agent>, entry: &Entry) {
    match entry.stage {
        Stage::Source(_) => destination_host::go_on(agent, entry),
        Stage::Destination(_) => source_host::go_on(agent, entry),
    }
}

/// How hosts reach us.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Open,
    /// Encrypted, or on this machine.
    Secure,
}

async fn hear_hosts(
    agent: Arc<Agent>,
    listener: Box<dyn Listener>,
    link: Link,
    hosts: Arc<Semaphore>,
) {
    while let Ok(place) = Arc::clone(&hosts).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, peer)) => {
                debug!(%peer, "a host connects");
                play_destination(&agent, stream, &peer, link, place);
            }
            Err(error) => out_of_breath(&error).await,
        }
    }
}

async fn hear_known_hosts(
    agent: Arc<Agent>,
    listener: Box<dyn Listener>,
    doorman: Doorman,
    hosts: Arc<Semaphore>,
) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    while let Ok(waits) = Arc::clone(&strangers).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (whose, doorman) = (Arc::clone(&agent), doorman.clone());
                let hosts = Arc::clone(&hosts);
                agent.spawn(async move {
                    let taken = doorman.take_in(stream).await;
                    drop(waits);
                    match taken {
                        // Known by now: it waits for its place.
                        Ok(stream) => {
                            if let Ok(place) = hosts.acquire_owned().await {
                                play_destination(&whose, stream, &peer, Link::Secure, place);
                            }
                        }
                        Err(error) => warn!(%peer, %error, "a host was turned away"),
                    }
                });
            }
            Err(error) => out_of_breath(&error).await,
        }
    }
}

fn play_destination(
    agent: &Arc<Agent>,
    stream: site::ByteStream,
    peer: &Peer,
    link: Link,
    place: OwnedSemaphorePermit,
) {
    let played = &agent.config.host;
    let host = Host {
        hostname: played.hostname.clone(),
        uri: "qemu:///system".to_owned(),
        hypervisor_version: 7_002_000,
        libvirt_version: 9_000_000,
        capabilities: format!(
            "<capabilities><host><uuid>{}</uuid></host></capabilities>",
            played.uuid
        ),
        secure: link == Link::Secure,
        refused_flags: flags::REFUSED,
    };
    let limits = Limits { frame: CALL_MAX, ..Limits::default() };
    let line = Line::serve(stream, peer, |now| Session::new(host, limits, now));
    let whose = Arc::clone(agent);
    agent.spawn(async move {
        let is_crowded = || place.semaphore().available_permits() < HOSTS_SPARE;
        destination_host::serve(whose, line, is_crowded).await;
        drop(place);
    });
}

async fn hear_neighbour(agent: Arc<Agent>, listener: Box<dyn Listener>) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    loop {
        // Those that wait for a place wait in the kernel's queue.
        let Ok(place) = Arc::clone(&strangers).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let whose = Arc::clone(&agent);
                agent.spawn(async move {
                    let answered =
                        wan::answer(stream, whose.config.neighbour.key, &whose.identity).await;
                    drop(place);
                    match answered {
                        Ok((stream, hello)) => play_source(&whose, stream, hello).await,
                        Err(error @ WanError::Secure(_)) => {
                            warn!(%peer, "a stranger was turned away: {}", chain(&error));
                        }
                        Err(error) => debug!(%peer, "nobody there: {}", chain(&error)),
                    }
                });
            }
            Err(error) => out_of_breath(&error).await,
        }
    }
}

async fn play_source(agent: &Arc<Agent>, stream: wan::Stream, hello: message::Hello) {
    if hello.version != message::VERSION {
        let (theirs, ours) = (hello.version, message::VERSION);
        return warn!(theirs, ours, "the other agent is of another version: update the older one");
    }
    match hello.purpose {
        Purpose::Migration { id, token } => {
            source_host::receive(agent, id, token, Control::new(stream)).await;
        }
        Purpose::Stream { token, leads_to, index } => {
            source_host::carry(agent, &token, leads_to, index, stream).await;
        }
        Purpose::Templates { token } => {
            source_host::tell_templates(agent, &token, stream).await;
        }
        Purpose::Decision { id } => {
            source_host::hear_decisions(agent, &id, Control::new(stream), None).await;
        }
    }
}

/// Out of descriptors or memory: others will end.
async fn out_of_breath(error: &io::Error) {
    warn!(%error, "a connection was not taken");
    tokio::time::sleep(Duration::from_millis(200)).await;
}

/// A name for a new migration.
pub fn new_id() -> Result<MigrationId, getrandom::Error> {
    let mut random = [0; 6];
    getrandom::fill(&mut random)?;
    let id = format!("native-{}", hex::encode(random));
    Ok(id.parse().expect("letters, digits and one hyphen"))
}
