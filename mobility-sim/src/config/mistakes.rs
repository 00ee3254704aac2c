//! What is wrong with a configuration though each of its values is read.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::{fs, io, slice};

use transfer::secure::{Identity, PublicKey};
use units::chain;

use super::{Config, Listen, STATE_DIR_RELATIVE};
use crate::libvirt::Endpoint;
use crate::libvirt::tls::Doorman;
use crate::relay::templates;

impl Config {
    /// What each value alone does not show.
    pub(super) fn mistakes(&self) -> Vec<String> {
        let Self { site, listen, host, neighbour, arrivals, relay } = self;
        let no_network = |name: &String| matches!(&**name, "" | "bridge:");
        let wrong = [
            (site.state_dir.is_relative(), STATE_DIR_RELATIVE),
            (
                !is_uri(&site.uri),
                "site.uri: libvirt knows no such URI: give it as `virsh -c` takes it, such as qemu:///system",
            ),
            (
                listen.libvirt.is_empty() && listen.unix.is_none() && listen.tls.is_none(),
                "listen: nobody can migrate to it: give `libvirt` or `tls` an address, or `unix` a path",
            ),
            (
                listen.tls.as_ref().is_some_and(|tls| tls.at.is_empty()),
                "listen.tls.at: nobody reaches it: give it an address",
            ),
            (
                listen.unix.as_ref().is_some_and(|path| path.is_relative()),
                "listen.unix: give the whole path of a socket of this agent's own",
            ),
            (
                is_libvirts(listen, &site.socket),
                "listen.unix: libvirtd listens there (`site.socket`): give the path of a socket of this agent's own",
            ),
            (
                host.hostname.is_empty() || host.hostname.starts_with("localhost"),
                "host.hostname: libvirt refuses a neighbour of that name: give it one of its own",
            ),
            (
                host.hostname.contains(char::is_whitespace),
                "host.hostname: no host has blanks in its name: leave them out",
            ),
            (
                host.uuid.is_nil(),
                "host.uuid: a host has one: take what `uuidgen` prints, not a real host's",
            ),
            (
                host.data_address.is_unspecified(),
                "host.data-address: hypervisors connect to it: give this agent's own address",
            ),
            (
                neighbour.name == site.name,
                "neighbour.name: it is this site's own: name the other one",
            ),
            (
                neighbour.address.ip().is_unspecified() || neighbour.address.port() == 0,
                "neighbour.address: nobody is there: give the other agent's address and port",
            ),
            (
                own_key(&site.state_dir) == Some(neighbour.key),
                "neighbour.key: it is this agent's own: take what `causeway-mobility introduce` prints at the other one",
            ),
            (arrivals.pool.is_empty(), "arrivals.pool: name a storage pool of this site"),
            (
                arrivals.networks.iter().any(|(from, to)| from.is_empty() || no_network(to)),
                "arrivals.networks: one has no name: give networks of this site, or bridge:NAME",
            ),
            (
                arrivals.loaders.values().any(|code| !code.starts_with('/')),
                "arrivals.loaders: give whole paths of firmware on this site's hypervisor",
            ),
            (
                arrivals.templates.iter().any(|image| image.is_relative()),
                "arrivals.templates: give whole paths of raw images on this agent's machine",
            ),
            (
                arrivals.nvram_dir.as_ref().is_some_and(|dir| dir.is_relative()),
                "arrivals.nvram-dir: give the whole path of a folder on this site's hypervisor",
            ),
            (
                relay.memory_mib == 0,
                "relay.memory-mib: nothing is kept in none: give it some, or leave it out for 4096",
            ),
        ];
        let wrong = wrong.into_iter().filter(|(is, _)| *is).map(|(_, what)| what.to_owned());
        wrong.chain(doors(listen)).collect()
    }

    /// What is wrong with files that it names, those of this agent's machine.
    pub(super) fn files(&self) -> Vec<String> {
        let tls = self.listen.tls.iter().flat_map(Doorman::mistakes);
        let whole = self.arrivals.templates.iter().filter(|image| image.is_absolute());
        let images = whole.filter_map(|image| templates::check(slice::from_ref(image)).err());
        tls.map(|error| chain(&error)).chain(images.map(|error| error.to_string())).collect()
    }

    /// What is odd on this machine, and right where the agent is to run on another.
    pub fn warnings(&self) -> Vec<String> {
        let address = self.host.data_address;
        let elsewhere = is_elsewhere(address).then(|| {
            format!(
                "host.data-address: {address} is no address of this machine, and has to be one of the agent's"
            )
        });
        elsewhere.into_iter().collect()
    }
}

/// `SCHEME://SOMETHING`
fn is_uri(text: &str) -> bool {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    };
    text.split_once("://").is_some_and(|(scheme, rest)| {
        is_scheme(scheme) && !rest.is_empty() && !rest.contains(char::is_whitespace)
    })
}

/// By whatever name: `/var/run` is `/run`.
fn is_libvirts(listen: &Listen, socket: &Endpoint) -> bool {
    let (Some(own), Endpoint::Unix(libvirts)) = (&listen.unix, socket) else { return false };
    let real = |path: &Path| fs::canonicalize(path).ok();
    own == libvirts || real(own).is_some_and(|own| real(libvirts) == Some(own))
}

/// `None` where there is none yet, or none that can be read.
fn own_key(state_dir: &Path) -> Option<PublicKey> {
    let kept = fs::read(state_dir.join("key")).ok()?;
    Identity::from_pkcs8(&kept).ok().map(|identity| identity.public())
}

/// What is wrong with the addresses that it listens on.
fn doors(listen: &Listen) -> Vec<String> {
    let tls = listen.tls.iter().flat_map(|tls| &tls.at).map(|at| ("listen.tls.at", *at));
    let libvirt = listen.libvirt.iter().map(|at| ("listen.libvirt", *at));
    let all: Vec<_> = libvirt.chain(tls).chain([("listen.wan", listen.wan)]).collect();
    let mut wrong = Vec::new();
    for (no, (key, at)) in all.iter().enumerate() {
        if at.port() == 0 {
            wrong.push(format!("{key}: nobody finds port 0 of {}: give it another one", at.ip()));
        } else if let Some((before, _)) = all[..no].iter().find(|(_, other)| is_same(at, other)) {
            wrong.push(format!("{key}: {at} is taken by {before}: give it a port of its own"));
        }
    }
    wrong
}

/// Who listens on all addresses has the port on each.
fn is_same(one: &SocketAddr, other: &SocketAddr) -> bool {
    // On all of IPv6 is on all of IPv4 as well.
    let covers = |all: &SocketAddr, at: &SocketAddr| {
        all.ip().is_unspecified() && (all.is_ipv6() || at.is_ipv4())
    };
    one.port() == other.port()
        && (one.ip() == other.ip() || covers(one, other) || covers(other, one))
}

fn is_elsewhere(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0))
        .is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}
