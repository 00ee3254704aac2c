//! What the kernel's command line asks of the helper.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use thiserror::Error;

/// `causeway.net=dhcp`, or `causeway.net=10.0.0.5/24,10.0.0.1` with or without the gateway; and
/// `causeway.listen=7447`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    pub network: Option<Network>,
    pub port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Dhcp,
    Static { address: IpAddr, prefix: u8, gateway: Option<IpAddr> },
}

#[derive(Debug, PartialEq, Eq, Error)]
pub enum ArgumentError {
    #[error("not dhcp or an address like 10.0.0.5/24,10.0.0.1: {text:?}")]
    Network { text: String },

    #[error("not a port: {text:?}")]
    Port { text: String },
}

impl FromStr for Arguments {
    type Err = ArgumentError;

    fn from_str(command_line: &str) -> Result<Self, ArgumentError> {
        let mut arguments = Self::default();
        for word in command_line.split_whitespace() {
            if let Some(text) = word.strip_prefix("causeway.net=") {
                arguments.network = Some(text.parse()?);
            } else if let Some(text) = word.strip_prefix("causeway.listen=") {
                let port = text.parse().ok().filter(|port| *port != 0);
                let error = || ArgumentError::Port { text: text.to_owned() };
                arguments.port = Some(port.ok_or_else(error)?);
            }
        }
        Ok(arguments)
    }
}

impl FromStr for Network {
    type Err = ArgumentError;

    fn from_str(text: &str) -> Result<Self, ArgumentError> {
        if text == "dhcp" {
            return Ok(Self::Dhcp);
        }
        let error = || ArgumentError::Network { text: text.to_owned() };
        let (network, gateway) = match text.split_once(',') {
            Some((network, gateway)) => (network, Some(gateway.parse().map_err(|_| error())?)),
            None => (text, None),
        };
        let (address, prefix) = network.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let same_family =
            gateway.is_none_or(|gateway: IpAddr| gateway.is_ipv4() == address.is_ipv4());
        if prefix > longest || !same_family {
            return Err(error());
        }
        Ok(Self::Static { address, prefix, gateway })
    }
}

impl Network {
    pub const fn leased(address: Ipv4Addr, prefix: u8, gateway: Option<Ipv4Addr>) -> Self {
        let gateway = match gateway {
            Some(gateway) => Some(IpAddr::V4(gateway)),
            None => None,
        };
        Self::Static { address: IpAddr::V4(address), prefix, gateway }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_others_are_left_alone() {
        let parsed: Arguments =
            "console=ttyS0 causeway.net=10.0.0.5/24,10.0.0.1 quiet causeway.listen=7447"
                .parse()
                .unwrap();
        assert_eq!(parsed.port, Some(7447));
        let expected = Network::leased([10, 0, 0, 5].into(), 24, Some([10, 0, 0, 1].into()));
        assert_eq!(parsed.network, Some(expected));
        assert_eq!("console=ttyS0".parse(), Ok(Arguments::default()));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["10.0.0.5", "10.0.0.5/33", "10.0.0.5/24,x", "fd00::1/64,10.0.0.1", ""] {
            assert!(text.parse::<Network>().is_err(), "{text:?}");
        }
        assert!("causeway.listen=0".parse::<Arguments>().is_err());
    }
}
