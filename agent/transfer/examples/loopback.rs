//! Copies one disk to another over TCP on this machine, authenticated and encrypted, and says how
//! fast: `cargo run --release -p transfer --example loopback -- SOURCE TARGET [STREAMS [LEVEL [MB/S]]]`.
//! The target is created, or emptied.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use transfer::secure::{self, Identity, Trust};
use transfer::{
    BlockRead as _, Caching, FileDisk, Holds, NoChanges, Receiver, ReceiverLimits, RoundOptions,
    Sender, SenderLimits, SourceDisk, TargetDisk,
};
use units::{BlockSize, Bytes, DiskNo};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: loopback SOURCE TARGET [STREAMS [LEVEL [MB/S]]]";
    let (source, target) = args.next().zip(args.next()).ok_or(usage)?;
    let streams: usize = args.next().map_or(Ok(2), |text| text.parse())?;
    let compress: i32 = args.next().map_or(Ok(0), |text| text.parse())?;
    let limit: Option<u64> = args.next().map(|text| text.parse()).transpose()?;
    let limit_rate = limit.map(|mb| Bytes(mb * 1_000_000));
    let (source, target) = (PathBuf::from(source), PathBuf::from(target));

    let source = FileDisk::open_source(&source, Caching::Cached)?;
    let (no, size) = (DiskNo(0), source.size());
    let block_size = BlockSize::for_disk(size);
    std::fs::File::create(&target)?.set_len(size.0)?;
    let target = FileDisk::open_target(&target, Caching::Cached)?;
    let target = TargetDisk { no, size, block_size, disk: Arc::new(target), holds: Holds::Zeros };
    let source = SourceDisk { no, size, block_size, disk: Arc::new(source) };
    let migration: units::MigrationId = "loopback".parse()?;
    let receiver = Receiver::new(migration.clone(), vec![target], ReceiverLimits::default())?;
    let sender =
        Sender::new(migration, vec![source], Arc::new(NoChanges), SenderLimits::default())?;

    let start = Instant::now();
    let ends = connect(&receiver, streams).await?;
    sender.connect(1, ends).await?;
    let (progress, _) = watch::channel(wire::control::RoundProgress::default());
    let round =
        sender.round(1, RoundOptions { limit_rate, limit_read: None, compress }, &progress).await;
    if let Some(failure) = round.failure {
        return Err(failure.into());
    }
    if sender.seal(1)? != receiver.digests().await? {
        return Err("the ends do not agree".into());
    }
    report(start, &round.progress);
    sender.disconnect().await;
    receiver.disconnect().await;
    Ok(())
}

/// Streams of which the receiver serves the other ends.
async fn connect(
    receiver: &Receiver,
    streams: usize,
) -> Result<Vec<tokio_rustls::TlsStream<TcpStream>>, Failure> {
    let (here, there) = (Identity::generate(), Identity::generate());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut ends = Vec::new();
    for _ in 0..streams {
        let (client, server) =
            tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
        let (client, (server, _)) = (client?, server?);
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (client, server) = tokio::join!(
            secure::connect(client, &here, Trust::Only(there.public())),
            secure::accept(server, &there, Trust::Only(here.public())),
        );
        ends.push(client?.stream);
        let (receiver, server) = (receiver.clone(), server?.stream);
        tokio::spawn(async move { receiver.serve(server).await });
    }
    Ok(ends)
}

fn report(start: Instant, progress: &wire::control::RoundProgress) {
    let seconds = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM unknown");
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // User and system time, in hundredths of a second (proc(5)).
    let mut ticks = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    let mut time = || ticks.next().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0) / 100.0;
    let (user, system) = (time(), time());
    for disk in &progress.disks {
        println!(
            "{} sent as {}, {} zeros, in {seconds:.2} s; CPU {user:.2} s user, {system:.2} s system; {peak}; {:?}",
            disk.sent, disk.wire, disk.zero, progress.bottleneck,
        );
    }
}
