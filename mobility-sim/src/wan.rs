//! The line to the other agent: TLS connections with pinned keys, one for the words of a migration
//! and one for each connection of a hypervisor's that is carried.

pub mod message;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use site::ByteStream;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::select;
use tokio::sync::mpsc;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use transfer::secure::{self, Identity, PublicKey, SecureError, Secured, Trust};

use crate::libvirt::Endpoint;
use crate::net::{Carries, Net};
use crate::relay::{ALIVE_EVERY, DEAD_AFTER};
use message::{HELLO_MAX, Hello, MESSAGE_MAX, Message, Purpose};

#[derive(Debug, Error)]
pub enum WanError {
    #[error("cannot reach the other agent at {address}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("the other agent is not who it should be, or does not talk")]
    Secure(#[from] SecureError),
    #[error("the line to the other agent broke")]
    Broken(#[source] io::Error),
    #[error("a message of {len} bytes, where at most {max} are taken")]
    TooLong { len: usize, max: usize },
    #[error("a message of the other agent was not understood: are both of the same version?")]
    NotUnderstood(#[source] serde_json::Error),
    #[error("the line to the other agent is gone")]
    Gone,
    #[error("the other agent did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// A connection with nothing said on it yet but who is there.
pub type Stream = Secured<ByteStream>;

const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Connects to the other agent and says what for.
pub async fn dial(
    net: &dyn Net,
    (address, key): (SocketAddr, PublicKey),
    me: &Identity,
    purpose: Purpose,
) -> Result<Stream, WanError> {
    let connect = |source| WanError::Connect { address, source };
    let endpoint = Endpoint::Tcp(address);
    let connecting = net.connect(&endpoint, Carries::Words);
    let stream = match timeout(CONNECT_MAX, connecting).await {
        Ok(stream) => stream.map_err(connect)?,
        Err(_) => return Err(connect(io::ErrorKind::TimedOut.into())),
    };
    let mut secured = secure::connect(stream, me, Trust::Only(key)).await?;
    let hello = Hello { version: message::VERSION, purpose };
    write(&mut secured.stream, &hello, HELLO_MAX).await?;
    Ok(secured)
}

/// Hears what a connection that was made to us is for.
pub async fn answer(
    stream: ByteStream,
    key: PublicKey,
    me: &Identity,
) -> Result<(Stream, Hello), WanError> {
    let mut secured = secure::accept(stream, me, Trust::Only(key)).await?;
    let hello = timeout(CONNECT_MAX, read(&mut secured.stream, HELLO_MAX)).await;
    let hello = hello.map_err(|_| WanError::TimedOut(CONNECT_MAX))??;
    Ok((secured, hello))
}

/// The words of one migration, both ways. Each end says so often that it is there; one that falls
/// silent is gone.
pub struct Control {
    send: mpsc::Sender<Message>,
    receive: mpsc::Receiver<Message>,
    /// The line broke, or was closed.
    pub over: CancellationToken,
}

/// Messages that wait: there is one question at a time.
const MESSAGES_MAX: usize = 4;

impl Control {
    pub fn new(stream: Stream) -> Self {
        let (from, to) = split(stream.stream);
        let (send, to_send) = mpsc::channel(MESSAGES_MAX);
        let (received, receive) = mpsc::channel(MESSAGES_MAX);
        let over = CancellationToken::new();
        tokio::spawn(speak(to, to_send, over.clone()));
        tokio::spawn(listen(from, received, over.clone()));
        Self { send, receive, over }
    }

    pub async fn say(&self, message: Message) -> Result<(), WanError> {
        self.send.send(message).await.map_err(|_| WanError::Gone)
    }

    /// What the other end says next.
    pub async fn hear(&mut self) -> Result<Message, WanError> {
        self.receive.recv().await.ok_or(WanError::Gone)
    }

    /// A question and its answer.
    pub async fn ask(&mut self, message: Message, within: Duration) -> Result<Message, WanError> {
        let asking = async {
            self.say(message).await?;
            self.hear().await
        };
        timeout(within, asking).await.map_err(|_| WanError::TimedOut(within))?
    }
}

async fn speak<W>(mut to: W, mut messages: mpsc::Receiver<Message>, over: CancellationToken)
where
    W: AsyncWrite + Unpin,
{
    let _over = over.drop_guard_ref();
    let mut alive = interval(ALIVE_EVERY);
    loop {
        let message = select! {
            message = messages.recv() => message,
            _ = alive.tick() => Some(Message::Alive),
            () = over.cancelled() => None,
        };
        let Some(message) = message else { break };
        if let Err(error) = write(&mut to, &message, MESSAGE_MAX).await {
            tracing::debug!(%error, "nothing more can be said");
            break;
        }
    }
    // So that the other end sees an end, and not an accident.
    let _ = timeout(CONNECT_MAX, to.shutdown()).await;
}

async fn listen<R>(mut from: R, received: mpsc::Sender<Message>, over: CancellationToken)
where
    R: AsyncRead + Unpin,
{
    let _over = over.drop_guard_ref();
    loop {
        let message = select! {
            message = timeout(DEAD_AFTER, read(&mut from, MESSAGE_MAX)) => message,
            () = over.cancelled() => return,
        };
        match message {
            Ok(Ok(Message::Alive)) => {}
            Ok(Ok(message)) => {
                if received.send(message).await.is_err() {
                    return;
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "nothing more is heard");
                return;
            }
            Err(_) => {
                tracing::warn!("the other agent has said nothing for {} s", DEAD_AFTER.as_secs());
                return;
            }
        }
    }
}

/// A length of four bytes, little endian, and so much JSON.
async fn write<W, T>(to: &mut W, message: &T, max: usize) -> Result<(), WanError>
where
    W: AsyncWrite + Unpin,
    T: Serialize + Sync,
{
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(WanError::NotUnderstood)?;
    let len = frame.len() - 4;
    match u32::try_from(len) {
        Ok(length) if len <= max => frame[..4].copy_from_slice(&length.to_le_bytes()),
        _ => return Err(WanError::TooLong { len, max }),
    }
    to.write_all(&frame).await.map_err(WanError::Broken)?;
    to.flush().await.map_err(WanError::Broken)
}

async fn read<R, T>(from: &mut R, max: usize) -> Result<T, WanError>
where
    R: AsyncRead + Unpin,
    T: DeserializeOwned,
{
    let mut length = [0; 4];
    from.read_exact(&mut length).await.map_err(WanError::Broken)?;
    let len = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if len > max {
        return Err(WanError::TooLong { len, max });
    }
    // It grows with what comes, not with what was announced.
    let mut bytes = Vec::new();
    let taken = from.take(u64::from(u32::from_le_bytes(length))).read_to_end(&mut bytes).await;
    if taken.map_err(WanError::Broken)? < len {
        return Err(WanError::Broken(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(&bytes).map_err(WanError::NotUnderstood)
}

#[cfg(test)]
mod tests;
