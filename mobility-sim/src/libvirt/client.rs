//! One connection to this site's libvirtd. A VM that arrives through it is gone with it, until
//! Finish: libvirtd then destroys what is half there.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use rpc::client::{CALLS_MAX, CallRefused, Client, Event, Limits};
use rpc::error::RemoteError;
use rpc::feature::Feature;
use rpc::procedures::{Call, Reply};
use site::ByteStream;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::select;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Endpoint;
use crate::net::{Carries, Net};

/// Open until it is dropped.
pub struct Daemon {
    asks: mpsc::Sender<Ask>,
    over: CancellationToken,
}

struct Ask {
    call: Call,
    answer: oneshot::Sender<Result<Reply, DaemonError>>,
}

#[derive(Debug, Error)]
pub enum DaemonError {
    #[error("cannot connect to libvirtd at {endpoint}")]
    Connect { endpoint: Endpoint, source: io::Error },
    /// In its own words.
    #[error("{0}")]
    Refused(RemoteError),
    /// Nothing was said to it.
    #[error("libvirtd is not to be asked that")]
    NotAsked(#[from] CallRefused),
    #[error("the connection to libvirtd broke")]
    Lost,
    #[error("libvirtd did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// What a loaded machine takes to open a connection.
const OPEN_MAX: Duration = Duration::from_secs(20);

impl Daemon {
    pub async fn open(net: &dyn Net, endpoint: &Endpoint) -> Result<Self, DaemonError> {
        let connect = |source| DaemonError::Connect { endpoint: endpoint.clone(), source };
        let stream = match timeout(OPEN_MAX, net.connect(endpoint, Carries::Calls)).await {
            Ok(stream) => stream.map_err(connect)?,
            Err(_) => return Err(connect(io::ErrorKind::TimedOut.into())),
        };
        let (asks, asked) = mpsc::channel(CALLS_MAX);
        let over = CancellationToken::new();
        tokio::spawn(drive(stream, asked, over.clone()));
        let daemon = Self { asks, over };
        daemon.call(Call::AuthList, OPEN_MAX).await?;
        daemon.call(Call::supports(Feature::ProgramKeepalive), OPEN_MAX).await?;
        let name = Some("qemu:///system".to_owned());
        daemon.call(Call::Open { name, flags: 0 }, OPEN_MAX).await?;
        Ok(daemon)
    }

    /// After a time-out it is not known whether it was, or will be, carried out.
    pub async fn call(&self, call: Call, within: Duration) -> Result<Reply, DaemonError> {
        let (answer, answered) = oneshot::channel();
        let asking = async {
            self.asks.send(Ask { call, answer }).await.map_err(|_| DaemonError::Lost)?;
            answered.await.map_err(|_| DaemonError::Lost)?
        };
        timeout(within, asking).await.map_err(|_| DaemonError::TimedOut(within))?
    }

    /// It is broken, or closed by the other end.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }
}

async fn drive(stream: ByteStream, mut asks: mpsc::Receiver<Ask>, over: CancellationToken) {
    let _over = over.drop_guard();
    let began = Instant::now();
    let mut client = Client::new(Limits::default(), Duration::ZERO);
    let mut waiting: HashMap<u32, oneshot::Sender<_>> = HashMap::new();
    let (mut from, mut to) = split(stream);
    let (mut input, mut output) = (vec![0; 64 << 10], Vec::new());
    loop {
        while let Some(event) = client.event() {
            let (serial, answer) = match event {
                Event::Reply { serial, reply } => (serial, Ok(reply)),
                Event::Failed { serial, error } => (serial, Err(DaemonError::Refused(error))),
                Event::Closed(ended) => {
                    tracing::debug!(%ended, "connection to libvirtd is over");
                    return;
                }
            };
            if let Some(waits) = waiting.remove(&serial) {
                // Whoever asked may have given up.
                let _ = waits.send(answer);
            }
        }
        output.extend(client.output());
        let tick = client.next_tick().map_or(began + super::server::FOREVER, |at| began + at);
        select! {
            read = from.read(&mut input), if client.wants_input() => match read {
                Ok(len) if len > 0 => client.push(&input[..len], began.elapsed()),
                _ => client.hang_up(),
            },
            written = to.write(&output), if !output.is_empty() => match written {
                Ok(len) => drop(output.drain(..len)),
                Err(_) => client.hang_up(),
            },
            ask = asks.recv(), if waiting.len() < CALLS_MAX => match ask {
                Some(Ask { call, answer }) => match client.call(&call) {
                    Ok(serial) => drop(waiting.insert(serial, answer)),
                    // Whoever asked may have given up.
                    Err(refused) => drop(answer.send(Err(refused.into()))),
                },
                None => return,
            },
            () = sleep_until(tick) => client.tick(began.elapsed()),
        }
    }
}
