//! One disk or file from here to there over TCP, encrypted as a migration is: for measuring.
//!
//! Each end says its key on standard output and reads the other's from standard input, so that
//! whoever starts both introduces them to each other. Then each says how it went, as one line of
//! JSON.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use transfer::secure::{self, Identity, PublicKey, Trust};
use transfer::{
    BlockRead, BlockWrite, Caching, FileDisk, Holds, NoChanges, Receiver, ReceiverLimits,
    RoundOptions, Sender, SenderLimits, SourceDisk, TargetDisk,
};
use units::{BlockSize, Bytes, DiskNo, MigrationId};
use wire::control::RoundProgress;

#[derive(Debug, clap::Args)]
pub struct Send {
    /// The file or device to send
    source: PathBuf,

    /// Where the other end listens
    #[arg(long)]
    to: String,

    #[command(flatten)]
    common: Common,

    /// The highest zstd level; 0 for none
    #[arg(long, default_value_t = 1)]
    compress: i32,

    /// Bytes per second on the wire
    #[arg(long)]
    limit_rate: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub struct Receive {
    /// The file or device to write; as large as the source
    target: PathBuf,

    /// Where to listen; port 0 for any
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,

    #[command(flatten)]
    common: Common,

    /// The target holds something: read it first, and receive what differs
    #[arg(long)]
    used: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct Common {
    #[arg(long, default_value_t = 4)]
    streams: u16,

    /// Through the page cache, as is right for files that were just written
    #[arg(long)]
    cached: bool,
}

impl Common {
    const fn caching(&self) -> Caching {
        if self.cached { Caching::Cached } else { Caching::Direct }
    }
}

const GENERATION: u64 = 1;

pub async fn send(order: Send) -> Result<()> {
    let disk = FileDisk::open_source(&order.source, order.common.caching())?;
    let size = disk.size();
    let identity = Identity::generate();
    let peer = introduce(json!({ "key": identity.spki_hex() })).await?;
    let mut streams = Vec::new();
    let mut suite = String::new();
    for _ in 0..order.common.streams {
        let stream = TcpStream::connect(&order.to).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        let secured = secure::connect(stream, &identity, Trust::Only(peer)).await?;
        suite = secured.suite();
        streams.push(secured.stream);
    }
    let disk: Arc<dyn BlockRead> = Arc::new(disk);
    let source = SourceDisk { no: DiskNo(0), size, block_size: BlockSize::for_disk(size), disk };
    let sender =
        Sender::new(migration()?, vec![source], Arc::new(NoChanges), SenderLimits::default())?;
    sender.connect(GENERATION, streams).await?;
    let began = Instant::now();
    let options = RoundOptions {
        limit_rate: order.limit_rate.map(Bytes),
        limit_read: None,
        compress: order.compress,
    };
    let round = sender.round(0, options, &watch::channel(RoundProgress::default()).0).await;
    let elapsed = began.elapsed();
    if let Some(failure) = round.failure {
        return Err(failure).context("the round failed");
    }
    let digest = sender.seal(0)?;
    sender.disconnect().await;
    let elapsed = elapsed.as_secs_f64();
    let progress = round.progress;
    say(json!({ "elapsed_s": elapsed, "progress": progress, "digest": digest, "cipher": suite }))
        .await
}

pub async fn receive(order: Receive) -> Result<()> {
    let disk = FileDisk::open_target(&order.target, order.common.caching())?;
    let size = disk.size();
    let identity = Identity::generate();
    let listener = TcpListener::bind(&order.listen).await.context("cannot listen")?;
    let at = listener.local_addr()?.to_string();
    let disk: Arc<dyn BlockWrite> = Arc::new(disk);
    let block_size = BlockSize::for_disk(size);
    let holds = if order.used { Holds::Anything } else { Holds::Zeros };
    let target = TargetDisk { no: DiskNo(0), size, block_size, disk, holds };
    let receiver = Receiver::new(migration()?, vec![target], ReceiverLimits::default())?;
    receiver.index(|_, _| {}).await?;
    let peer = introduce(json!({ "key": identity.spki_hex(), "listens": at })).await?;
    let mut serving = JoinSet::new();
    for _ in 0..order.common.streams {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let secured = secure::accept(stream, &identity, Trust::Only(peer)).await?;
        let receiver = receiver.clone();
        serving.spawn(async move { receiver.serve(secured.stream).await });
    }
    while let Some(served) = serving.join_next().await {
        // The end of the first stream ends them all; what arrived is in the digest.
        if let Err(error) = served? {
            tracing::debug!(%error, "stream ended");
        }
    }
    say(json!({ "digest": receiver.digests().await? })).await
}

fn migration() -> Result<MigrationId> {
    Ok("bench".parse()?)
}

/// Says who we are, and hears who the other is: its key, in hexadecimal, on a line.
async fn introduce(own: serde_json::Value) -> Result<PublicKey> {
    say(own).await?;
    let mut line = String::new();
    BufReader::new(tokio::io::stdin()).read_line(&mut line).await?;
    line.trim().parse().context("the other end's key is expected on standard input")
}

async fn say(value: serde_json::Value) -> Result<()> {
    let mut stdout = tokio::io::stdout();
    stdout.write_all(format!("{value}\n").as_bytes()).await?;
    stdout.flush().await?;
    Ok(())
}
