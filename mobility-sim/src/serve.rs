//! The agent: whoever connects is heard, and what an earlier life left open is gone on with.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rpc::server::{Host, Limits, Session};
use site::Site;
use site_libvirt::{Acceleration, LibvirtConfig, LibvirtSite};
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};
use transfer::secure::Identity;
use units::{MigrationId, chain};

use crate::config::Config;
use crate::custody::Custody;
use crate::key::{self, KeyError};
use crate::ledger::{Ledger, LedgerError, Stage};
use crate::libvirt::server::Line;
use crate::libvirt::tls::{Doorman, TlsError};
use crate::wan::message::{self, Purpose};
use crate::wan::{self, Control, WanError};
use crate::{destination_host, flags, source_host};

#[derive(Debug, Error)]
pub enum ServeError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("another agent works with this state directory, or its ledger is not what it was")]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot listen on {on}")]
    Listen { on: String, source: io::Error },
    #[error("the system gives no runtime")]
    Runtime(#[source] io::Error),
}

/// What both roles share.
pub struct Agent {
    pub config: Config,
    pub identity: Identity,
    /// This site's platform.
    pub site: Arc<LibvirtSite>,
    /// How far each migration came.
    pub ledger: Ledger,
    /// Who may run.
    pub custody: Custody,
    pub arrivals: source_host::Arrivals,
}

/// How many may be at a door at once, before they have shown a key or a certificate.
const STRANGERS_MAX: usize = 64;

/// Connections of this site's hosts at once: each migration has one.
const HOSTS_MAX: usize = 256;

pub fn run(config: Config) -> Result<(), ServeError> {
    let identity = key::identity(&config.site.state_dir)?;
    let ledger = Ledger::open(&config.site.state_dir.join("ledger"))?;
    let libvirt = LibvirtConfig {
        acceleration: if config.arrivals.emulate {
            Acceleration::Never
        } else {
            Acceleration::Offered
        },
        ..LibvirtConfig::new(config.site.name.clone(), config.site.uri.clone())
    };
    let site = Arc::new(LibvirtSite::new(libvirt));
    let platform: Arc<dyn Site> = Arc::<LibvirtSite>::clone(&site);
    let custody = Custody::new(platform, config.site.state_dir.join("custody"));
    let arrivals = source_host::Arrivals::default();
    let agent = Arc::new(Agent { config, identity, site, ledger, custody, arrivals });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(serve(agent))
}

async fn serve(agent: Arc<Agent>) -> Result<(), ServeError> {
    let listen = &agent.config.listen;
    let mut tasks = JoinSet::new();
    let hosts = Arc::new(Semaphore::new(HOSTS_MAX));
    for address in &listen.libvirt {
        tasks.spawn(hear_hosts(Arc::clone(&agent), bind(*address).await?, Arc::clone(&hosts)));
    }
    if let Some(tls) = &listen.tls {
        let doorman = Doorman::new(tls)?;
        for address in &tls.at {
            let (listener, hosts) = (bind(*address).await?, Arc::clone(&hosts));
            tasks.spawn(hear_known_hosts(Arc::clone(&agent), listener, doorman.clone(), hosts));
        }
    }
    if let Some(path) = &listen.unix {
        tasks.spawn(hear_hosts_here(Arc::clone(&agent), bind_unix(path)?, hosts));
    }
    tasks.spawn(hear_neighbour(Arc::clone(&agent), bind(listen.wan).await?));
    go_on(&agent);
    info!(
        site = %agent.config.site.name,
        neighbour = %agent.config.neighbour.name,
        key = %agent.identity.public(),
        "ready"
    );
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    info!("ends; what is not settled is gone on with at the next start");
    Ok(())
}

/// Migrations that an earlier life of this agent did not see the end of.
fn go_on(agent: &Arc<Agent>) {
    for entry in agent.ledger.entries() {
        match entry.stage {
            Stage::Source(_) => destination_host::go_on(agent, &entry),
            Stage::Destination(_) => source_host::go_on(agent, &entry),
        }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listen = |source| ServeError::Listen { on: address.to_string(), source };
    TcpListener::bind(address).await.map_err(listen)
}

fn bind_unix(path: &PathBuf) -> Result<UnixListener, ServeError> {
    let listen = |source| ServeError::Listen { on: path.display().to_string(), source };
    // Of an earlier life: the state directory's lock says that there is no other.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(listen(error)),
        _ => {}
    }
    UnixListener::bind(path).map_err(listen)
}

async fn hear_hosts(agent: Arc<Agent>, listener: TcpListener, hosts: Arc<Semaphore>) {
    while let Ok(place) = Arc::clone(&hosts).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, peer)) => {
                debug!(%peer, "a host connects");
                if stream.set_nodelay(true).is_ok() {
                    play_destination(&agent, Box::new(stream), false, place);
                }
            }
            Err(error) => out_of_breath(&error).await,
        }
    }
}

async fn hear_known_hosts(
    agent: Arc<Agent>,
    listener: TcpListener,
    doorman: Doorman,
    hosts: Arc<Semaphore>,
) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    while let Ok(waits) = Arc::clone(&strangers).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (agent, doorman) = (Arc::clone(&agent), doorman.clone());
                let hosts = Arc::clone(&hosts);
                tokio::spawn(async move {
                    if stream.set_nodelay(true).is_err() {
                        return;
                    }
                    let taken = doorman.take_in(stream).await;
                    drop(waits);
                    match taken {
                        // Known by now: it waits for its place.
                        Ok(stream) => {
                            if let Ok(place) = hosts.acquire_owned().await {
                                play_destination(&agent, stream, true, place);
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

async fn hear_hosts_here(agent: Arc<Agent>, listener: UnixListener, hosts: Arc<Semaphore>) {
    while let Ok(place) = Arc::clone(&hosts).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => play_destination(&agent, Box::new(stream), true, place),
            Err(error) => out_of_breath(&error).await,
        }
    }
}

fn play_destination(
    agent: &Arc<Agent>,
    stream: site::ByteStream,
    secure: bool,
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
        secure,
        refused_flags: flags::REFUSED,
    };
    let line = Line::serve(stream, |now| Session::new(host, Limits::default(), now));
    let agent = Arc::clone(agent);
    tokio::spawn(async move {
        destination_host::serve(agent, line).await;
        drop(place);
    });
}

async fn hear_neighbour(agent: Arc<Agent>, listener: TcpListener) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    loop {
        // Those that wait for a place wait in the kernel's queue.
        let Ok(place) = Arc::clone(&strangers).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let agent = Arc::clone(&agent);
                tokio::spawn(async move {
                    let answered =
                        wan::answer(stream, agent.config.neighbour.key, &agent.identity).await;
                    drop(place);
                    match answered {
                        Ok((stream, hello)) => play_source(&agent, stream, hello).await,
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
        Purpose::Decision { id } => {
            source_host::hear_decisions(agent, &id, Control::new(stream), None).await;
        }
    }
}

/// Out of descriptors or memory: others will end.
async fn out_of_breath(error: &io::Error) {
    warn!(%error, "a connection was not taken");
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
}

/// A name for a new migration.
pub fn new_id() -> Result<MigrationId, getrandom::Error> {
    let mut random = [0; 6];
    getrandom::fill(&mut random)?;
    let id = format!("native-{}", hex::encode(random));
    Ok(id.parse().expect("letters, digits and one hyphen"))
}
