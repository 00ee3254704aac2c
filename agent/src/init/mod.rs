//! The agent as the helper's init: the whole user space of a machine that does nothing but receive
//! disks. When it ends, however it ends, the machine is off.
//!
//! Two processes: init mounts, loads drivers and powers off; the receiver, its only child, does all
//! the rest, confined ([`crate::sandbox`]). Whatever comes in from outside is read by the receiver.

mod arguments;
mod dhcp;
mod network;
mod ports;
mod system;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::CapabilitySet;
use thiserror::Error;
use tokio::time::interval;
use tracing::{error, info, warn};
use transfer::secure::Identity;
use units::chain;

use self::arguments::{ArgumentError, Arguments};
use self::ports::Port;
use self::system::SystemError;
use crate::destination::Destination;
use crate::inspect::{self, Tree};
use crate::sandbox::{self, Needs, Sockets};
use crate::session::{Allowed, Events, Host, Role as _, Tasks};

/// Ports may appear at any time: the hypervisor plugs them in.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Direct connections at the same time: two generations of streams.
const CONNECTIONS_MAX: usize = 128;

/// The hidden subcommand that makes this binary the receiver.
pub const SUBCOMMAND: &str = "receiver";

#[derive(Debug, Error)]
pub enum InitError {
    #[error(transparent)]
    System(#[from] SystemError),

    #[error("the kernel's command line")]
    Arguments(#[from] ArgumentError),

    #[error("cannot start")]
    Runtime(#[source] io::Error),

    #[error("cannot start the receiver")]
    Receiver(#[source] io::Error),
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
    log_to_console();
    info!(version = env!("CARGO_PKG_VERSION"), "causeway helper starts");
    system::load_drivers(&Tree::of_this_system());
    let receiver = Command::new("/proc/self/exe").arg0(crate::PROGRAM).arg(SUBCOMMAND).spawn();
    system::reap_until(&receiver.map_err(InitError::Receiver)?);
    Ok(())
}

fn log_to_console() {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).without_time().init();
}

/// The whole life of the receiver. When it ends, init powers the machine off.
pub fn receive() -> Result<(), InitError> {
    log_to_console();
    crate::daemon::end_on_panic();
    let _name = rustix::thread::set_name(c"causeway-receive");
    let tree = Tree::of_this_system();
    let arguments: Arguments = tree.text("proc/cmdline").unwrap_or_default().parse()?;
    // A card is configured, and DHCP answers on a low port.
    let capabilities = match arguments.network {
        Some(_) => {
            CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::NET_BIND_SERVICE
        }
        None => CapabilitySet::empty(),
    };
    sandbox::confine(&Needs {
        read: &[Path::new("/proc"), Path::new("/sys")],
        // Targets and ports, which may appear at any time.
        devices: &[Path::new("/dev")],
        sockets: Sockets::Own { listen: arguments.port },
        capabilities,
    });
    let runtime = crate::runtime().map_err(InitError::Runtime)?;
    runtime.block_on(serve(tree, arguments));
    Ok(())
}

async fn serve(tree: Tree, arguments: Arguments) {
    let identity = Identity::generate();
    let events = Events::default();
    let destination = Destination::new(identity.clone(), events.clone(), arguments.port);
    let boot_id = inspect::boot_id(&tree);
    let host = Host::new(destination, identity, events, boot_id);
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
    tokio::select! {
        never = ports => match never {},
        never = connections => match never {},
        () = host.ended() => {}
    }
    info!("asked to end");
    host.role().wind_up().await;
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
