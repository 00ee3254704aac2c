//! The sockets of a connection become data streams to the destination.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use transfer::meet::{self, Met};
use transfer::secure::{self, Identity, PublicKey, Trust};
use wire::purpose::Purpose;

use super::order::Way;
use crate::session::ByteStream;
use crate::source::SourceError;

const MEET_WITHIN: Duration = Duration::from_secs(30);

pub type DataStream = tokio_rustls::TlsStream<ByteStream>;

/// Every stream of a connection, secured, in order.
pub async fn open(
    sockets: Vec<OwnedFd>,
    way: Way,
    identity: &Identity,
    generation: u64,
    peer: PublicKey,
) -> Result<Vec<DataStream>, SourceError> {
    let raw = match way {
        Way::Relay { ahead } => relayed(sockets, ahead)?,
        Way::Direct => direct(sockets, generation).await?,
    };
    // Both ends of every stream shake hands at the same time: the sum of the round trips counts.
    let mut shaking = tokio::task::JoinSet::new();
    for (number, stream) in (0_u16..).zip(raw) {
        let identity = identity.clone();
        shaking.spawn(async move {
            let secured = secure::connect(stream, &identity, Trust::Only(peer)).await;
            (number, secured)
        });
    }
    let mut secured = BTreeMap::new();
    while let Some(joined) = shaking.join_next().await {
        let (number, stream) = joined?;
        let stream = stream.map_err(|cause| SourceError::Secure { number, cause })?;
        secured.insert(number, stream.stream);
    }
    Ok(secured.into_values().collect())
}

fn relayed(sockets: Vec<OwnedFd>, ahead: Vec<Vec<u8>>) -> Result<Vec<ByteStream>, SourceError> {
    let mut streams: Vec<ByteStream> = Vec::new();
    for (socket, ahead) in sockets.into_iter().zip(ahead) {
        let stream = tokio::net::UnixStream::from_std(UnixStream::from(socket));
        streams.push(Box::new(Met::new(stream.map_err(SourceError::Socket)?, ahead)));
    }
    Ok(streams)
}

async fn direct(sockets: Vec<OwnedFd>, generation: u64) -> Result<Vec<ByteStream>, SourceError> {
    let mut streams: Vec<ByteStream> = Vec::new();
    for (stream, socket) in (0..).zip(sockets) {
        let tcp = tokio::net::TcpStream::from_std(TcpStream::from(socket));
        let tcp = tcp.map_err(SourceError::Socket)?;
        tcp.set_nodelay(true).map_err(SourceError::Socket)?;
        let purpose = Purpose::Data { generation, stream };
        streams.push(Box::new(meet::open(tcp, purpose, MEET_WITHIN).await?));
    }
    Ok(streams)
}
