//! The agent as the helper's init: the whole user space of a machine that does nothing but receive
//! disks. When it ends, however it ends, the machine is off.

mod arguments;
mod dhcp;
mod network;
mod ports;
mod system;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::interval;
use tracing::{error, info, warn};
use transfer::secure::Identity;
use units::chain;

use self::arguments::{ArgumentError, Arguments};
use self::ports::Port;
use self::system::SystemError;
use crate::destination::Destination;
use crate::inspect::{self, Tree};
use crate::session::{Allowed, Events, Host, Role as _, Tasks};

/// Ports may appear at any time: the hypervisor plugs them in.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Direct connections at the same time: two generations of streams.
const CONNECTIONS_MAX: usize = 128;

#[derive(Debug, Error)]
enum InitError {
    #[error(transparent)]
    System(#[from] SystemError),

    #[error("the kernel's command line")]
    Arguments(#[from] ArgumentError),

    #[error("cannot start")]
    Runtime(#[source] io::Error),
}

/// Never returns: an init that ends takes the kernel down with it.
pub fn run() -> ! {
    power_off_on_panic();
    if let Err(error) = life() {
        error!(error = %chain(&error), "the helper cannot work");
    }
    system::power_off()
}

fn life() -> Result<(), InitError> {
    system::mount_kernel_file_systems()?;
    system::use_console()?;
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).without_time().init();
    info!(version = env!("CARGO_PKG_VERSION"), "causeway helper starts");
    let tree = Tree::of_this_system();
    system::load_drivers(&tree);
    let arguments: Arguments = tree.text("proc/cmdline").unwrap_or_default().parse()?;
    let runtime = crate::runtime().map_err(InitError::Runtime)?;
    runtime.block_on(serve(tree, arguments))
}

async fn serve(tree: Tree, arguments: Arguments) -> Result<(), InitError> {
    let identity = Identity::generate();
    let events = Events::default();
    let destination = Destination::new(identity.clone(), events.clone(), arguments.port);
    let boot_id = inspect::boot_id(&tree);
    let host = Host::new(destination, identity, events, boot_id);
    // Init gets no signal that it does not ask for; orphans are taken leave of here.
    let mut children = signal(SignalKind::child()).map_err(InitError::Runtime)?;
    let mut tasks = Tasks::new();
    if let Some(wanted) = arguments.network {
        let tree = tree.clone();
        tasks.spawn(async move {
            match network::configure(&tree, wanted).await {
                Ok(text) => info!("network {text}"),
                // The relay needs no network: the helper is of use all the same.
                Err(error) => error!(error = %chain(&error), "no network"),
            }
        });
    }
    let ports = serve_ports(&tree, &host);
    let connections = serve_connections(&host);
    tokio::pin!(ports, connections);
    loop {
        tokio::select! {
            never = &mut ports => match never {},
            never = &mut connections => match never {},
            _ = children.recv() => system::reap(),
            () = host.ended() => break,
        }
    }
    info!("asked to end");
    host.role().wind_up().await;
    Ok(())
}

/// Every port of ours, from when it appears to the end.
async fn serve_ports(tree: &Tree, host: &Arc<Host<Destination>>) -> Infallible {
    let mut tasks = Tasks::new();
    let mut served = BTreeSet::new();
    let mut look = interval(LOOK_EVERY);
    loop {
        look.tick().await;
        for (number, device) in ports::find(tree) {
            if served.contains(&device) {
                continue;
            }
            match Port::open(&tree.path(format!("dev/{device}"))) {
                Ok(port) => {
                    info!(port = number, device, "port");
                    tasks.spawn(serve_port(number, port, Arc::clone(host)));
                    served.insert(device);
                }
                // The node comes a moment after the device; it is looked for again.
                Err(error) => warn!(port = number, device, %error, "port not opened"),
            }
        }
    }
}

async fn serve_port(number: u16, port: Port, host: Arc<Host<Destination>>) {
    let allowed = if number == 0 { Allowed::Everything } else { Allowed::DataOnly };
    loop {
        let stream = port.next_session().await;
        host.serve(Box::new(stream), allowed).await;
    }
}

/// Direct connections carry data only: whoever can reach a port of the network is no coordinator.
async fn serve_connections(host: &Arc<Host<Destination>>) -> Infallible {
    let mut tasks = Tasks::new();
    loop {
        tokio::select! {
            stream = async { host.role().accept().await }, if tasks.len() < CONNECTIONS_MAX => {
                let host = Arc::clone(host);
                tasks.spawn(async move { host.serve(stream, Allowed::DataOnly).await });
            }
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// A bug must not leave a machine behind that runs for ever and does nothing.
fn power_off_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |what| {
        usual(what);
        system::power_off();
    }));
}
