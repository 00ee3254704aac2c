//! A lease from a DHCP server: RFC 2131 as far as a helper needs it, which lives for minutes or
//! hours and never renews.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::BROADCAST, 67);
const CLIENT_PORT: u16 = 68;

const TRIES: u32 = 10;
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// The largest answer: a UDP packet on Ethernet.
const ANSWER_MAX: usize = 1500;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const COOKIE: [u8; 4] = [99, 130, 83, 99];

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const ASK: u8 = 3;
const ACKNOWLEDGE: u8 = 5;

const OPTION_MASK: u8 = 1;
const OPTION_ROUTER: u8 = 3;
const OPTION_ADDRESS: u8 = 50;
const OPTION_KIND: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_END: u8 = 255;

#[derive(Debug, Error)]
pub enum DhcpError {
    #[error("cannot use the network for DHCP")]
    Socket(#[from] io::Error),

    #[error("no DHCP server answered {TRIES} times")]
    Unanswered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Option<Ipv4Addr>,
    server: Ipv4Addr,
}

/// Asks on the interface, which is up and has no address yet. `transaction`: any number.
pub async fn lease(interface: &str, mac: [u8; 6], transaction: u32) -> Result<Lease, DhcpError> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLIENT_PORT)).await?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    for _ in 0..TRIES {
        let discover = message(DISCOVER, mac, transaction, None);
        let Some(offer) = exchange(&socket, &discover, OFFER, mac, transaction).await? else {
            continue;
        };
        let ask = message(ASK, mac, transaction, Some(&offer));
        if let Some(lease) = exchange(&socket, &ask, ACKNOWLEDGE, mac, transaction).await? {
            return Ok(lease);
        }
    }
    Err(DhcpError::Unanswered)
}

async fn exchange(
    socket: &UdpSocket,
    message: &[u8],
    wanted: u8,
    mac: [u8; 6],
    transaction: u32,
) -> io::Result<Option<Lease>> {
    socket.send_to(message, SocketAddr::from(SERVER)).await?;
    let deadline = Instant::now() + ANSWER_WITHIN;
    let mut buffer = [0; ANSWER_MAX];
    while let Ok(received) = timeout_at(deadline, socket.recv_from(&mut buffer)).await {
        let (len, _) = received?;
        if let Some((kind, lease)) = parse(&buffer[..len], mac, transaction)
            && kind == wanted
        {
            return Ok(Some(lease));
        }
    }
    Ok(None)
}

fn message(kind: u8, mac: [u8; 6], transaction: u32, offer: Option<&Lease>) -> Vec<u8> {
    let mut bytes = vec![REQUEST, 1, 6, 0];
    bytes.extend(transaction.to_be_bytes());
    // Seconds; the flag that answers come as broadcasts, since we have no address to send them to.
    bytes.extend([0, 0, 0x80, 0]);
    // Four addresses, the hardware address in 16 bytes, names of server and file.
    bytes.extend([0; 16]);
    bytes.extend(mac);
    bytes.extend([0; 10 + 64 + 128]);
    bytes.extend(COOKIE);
    bytes.extend([OPTION_KIND, 1, kind]);
    if let Some(offer) = offer {
        bytes.extend([OPTION_ADDRESS, 4]);
        bytes.extend(offer.address.octets());
        bytes.extend([OPTION_SERVER, 4]);
        bytes.extend(offer.server.octets());
    }
    // Which options we would like to know.
    bytes.extend([55, 2, OPTION_MASK, OPTION_ROUTER, OPTION_END]);
    bytes
}

/// Kind and content of an answer to us; `None` for anything else.
fn parse(bytes: &[u8], mac: [u8; 6], transaction: u32) -> Option<(u8, Lease)> {
    let ours = bytes.first() == Some(&REPLY)
        && bytes.get(4..8)? == transaction.to_be_bytes()
        && bytes.get(28..34)? == mac
        && bytes.get(236..240)? == COOKIE;
    if !ours {
        return None;
    }
    let address = address(bytes.get(16..20)?)?;
    let (mut kind, mut prefix, mut gateway, mut server) = (None, None, None, None);
    let mut options = bytes.get(240..)?;
    while let [code, rest @ ..] = options {
        match *code {
            0 => {
                options = rest;
                continue;
            }
            OPTION_END => break,
            _ => {}
        }
        let (len, rest) = rest.split_first()?;
        let value = rest.get(..usize::from(*len))?;
        match *code {
            OPTION_KIND => kind = value.first().copied(),
            OPTION_MASK => prefix = self::address(value).map(|mask| u32::from(mask).count_ones()),
            OPTION_ROUTER => gateway = value.get(..4).and_then(self::address),
            OPTION_SERVER => server = self::address(value),
            _ => {}
        }
        options = &rest[usize::from(*len)..];
    }
    let prefix = u8::try_from(prefix.unwrap_or(24)).ok()?;
    Some((kind?, Lease { address, prefix, gateway, server: server? }))
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    fn answer(kind: u8) -> Vec<u8> {
        let mut bytes = message(kind, MAC, 77, None);
        bytes.truncate(240);
        bytes[0] = REPLY;
        bytes[16..20].copy_from_slice(&[10, 0, 2, 15]);
        bytes.extend([0, OPTION_KIND, 1, kind, OPTION_SERVER, 4, 10, 0, 2, 2]);
        bytes.extend([
            OPTION_MASK,
            4,
            255,
            255,
            254,
            0,
            OPTION_ROUTER,
            8,
            10,
            0,
            2,
            2,
            10,
            0,
            2,
            3,
        ]);
        bytes.push(OPTION_END);
        bytes
    }

    #[test]
    fn an_offer_is_read_with_padding_and_two_routers() {
        let (kind, lease) = parse(&answer(OFFER), MAC, 77).unwrap();
        assert_eq!(kind, OFFER);
        assert_eq!(lease.address, Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(lease.prefix, 23);
        assert_eq!(lease.gateway, Some(Ipv4Addr::new(10, 0, 2, 2)));
    }

    #[test]
    fn answers_to_others_are_not_ours() {
        assert_eq!(parse(&answer(OFFER), MAC, 78), None);
        assert_eq!(parse(&answer(OFFER), [0; 6], 77), None);
        assert_eq!(parse(&message(OFFER, MAC, 77, None), MAC, 77), None, "a request");
    }

    proptest! {
        #[test]
        fn no_options_make_it_panic(options in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = answer(OFFER);
            bytes.truncate(240);
            bytes.extend(options);
            let _either = parse(&bytes, MAC, 77);
        }
    }
}
