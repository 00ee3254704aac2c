//! Ports for memory and disks: those that the operator named, or of the range that the agent may
//! use.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

use crate::libvirt::Endpoint;
use crate::net::{Carries, Listener, Net};

/// Ports that may be listened on, both ends among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("not a range of ports (FIRST-LAST, such as 49152-49215): {text:?}")]
pub struct PortRangeError {
    text: String,
}

impl Default for PortRange {
    /// libvirt's own.
    fn default() -> Self {
        Self { first: 49152, last: 49215 }
    }
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let error = || PortRangeError { text: text.to_owned() };
        let (first, last) = text.split_once('-').ok_or_else(error)?;
        let port = |text: &str| text.trim().parse().ok().filter(|port: &u16| *port != 0);
        let (first, last) = (port(first).ok_or_else(error)?, port(last).ok_or_else(error)?);
        if first > last { Err(error()) } else { Ok(Self { first, last }) }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Where an operator wants data to go: `tcp://HOST:PORT`, `tcp:HOST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataUri {
    pub host: String,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} cannot be used for {what}: only tcp://HOST:PORT is")]
pub struct DataUriError {
    text: String,
    what: &'static str,
}

impl DataUri {
    pub fn parse(text: &str, what: &'static str) -> Result<Self, DataUriError> {
        let error = || DataUriError { text: text.to_owned(), what };
        let rest = text.strip_prefix("tcp:").ok_or_else(error)?;
        let rest = rest.strip_prefix("//").unwrap_or(rest).trim_end_matches('/');
        let (host, port) = match rest.strip_prefix('[') {
            Some(inside) => {
                let (host, rest) = inside.split_once(']').ok_or_else(error)?;
                (host, rest.strip_prefix(':'))
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(word) {
            return Err(error());
        }
        let port = port.map(|port| port.parse().ok().filter(|port| *port != 0).ok_or_else(error));
        Ok(Self { host: host.to_owned(), port: port.transpose()? })
    }
}

/// With brackets where the host is an IPv6 address.
pub fn tcp_uri(host: &str, port: u16) -> String {
    if host.contains(':') { format!("tcp:[{host}]:{port}") } else { format!("tcp:{host}:{port}") }
}

#[derive(Debug, Error)]
pub enum ListenError {
    #[error("port {port} of the mobility agent cannot be listened on: name another one")]
    Named { port: u16, source: io::Error },
    #[error(
        "every port of {range} is in use: wait for another migration, or give it a wider range"
    )]
    Full { range: PortRange },
}

/// Listens for data of the site's hypervisors, on the named port or on any of the range.
pub fn listen(
    net: &dyn Net,
    address: IpAddr,
    named: Option<u16>,
    range: PortRange,
) -> Result<(Box<dyn Listener>, u16), ListenError> {
    let on = |port| {
        let at = Endpoint::Tcp(SocketAddr::new(address, port));
        net.listen(&at, Carries::Data).map(|listener| (listener, port))
    };
    match named {
        Some(port) => on(port).map_err(|source| ListenError::Named { port, source }),
        None => (range.first..=range.last)
            .find_map(|port| on(port).ok())
            .ok_or(ListenError::Full { range }),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::net::Machine;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn a_range_is_two_ports_in_order() {
        assert_eq!("49152-49215".parse(), Ok(PortRange::default()));
        assert_eq!("7-7".parse(), Ok(PortRange { first: 7, last: 7 }));
        for text in ["", "1", "0-5", "9-8", "1-70000", "a-b", "-"] {
            assert!(text.parse::<PortRange>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_operators_place_for_data_is_read() {
        let uri = |text| DataUri::parse(text, "memory");
        let is = |host: &str, port| Ok(DataUri { host: host.to_owned(), port });
        assert_eq!(uri("tcp://agent:50000"), is("agent", Some(50000)));
        assert_eq!(uri("tcp:10.0.0.1:50000"), is("10.0.0.1", Some(50000)));
        assert_eq!(uri("tcp://agent"), is("agent", None));
        assert_eq!(uri("tcp://[fd00::1]:5"), is("fd00::1", Some(5)));
        for text in ["unix:///run/x", "rdma://a:1", "tcp:", "tcp://a:0", "tcp://a:x", "tcp://a b:1"]
        {
            assert!(uri(text).is_err(), "{text}");
        }
        assert_eq!(tcp_uri("fd00::1", 5), "tcp:[fd00::1]:5");
    }

    #[tokio::test]
    async fn a_port_is_given_once_and_a_full_range_is_told() {
        let (taken, port) = {
            let any = std::net::TcpListener::bind((HERE, 0)).unwrap();
            let port = any.local_addr().unwrap().port();
            (any, port)
        };
        let range = PortRange { first: port, last: port };
        let full = listen(&Machine, HERE, None, range).err().unwrap();
        assert!(matches!(full, ListenError::Full { .. }), "{full}");
        let named = listen(&Machine, HERE, Some(port), range).err().unwrap().to_string();
        assert!(named.contains(&port.to_string()), "{named}");
        drop(taken);
        assert_eq!(listen(&Machine, HERE, None, range).unwrap().1, port);
    }
}
