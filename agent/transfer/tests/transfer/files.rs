//! Files, TCP and TLS: everything real.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use transfer::secure::{self, Identity, Trust};
use transfer::{
    Caching, FileDisk, Holds, NoChanges, Receiver, ReceiverLimits, RoundOptions, Sender,
    SenderLimits, SourceDisk, TargetDisk, meet,
};
use units::{BlockSize, Bytes, Digest, DiskNo, MigrationId};
use wire::purpose::Purpose;

/// Copies files over TCP as agents do; answers the digests that both ends name.
async fn copy(disks: &[(&Path, &Path)], holds: Holds, caching: Caching) -> Vec<Digest> {
    let migration: MigrationId = "files".parse().unwrap();
    let (mut sources, mut targets) = (Vec::new(), Vec::new());
    for (no, (source, target)) in (0..).zip(disks) {
        let (no, size) = (DiskNo(no), Bytes(source.metadata().unwrap().len()));
        let block_size = BlockSize::for_disk(size);
        let disk = Arc::new(FileDisk::open_source(source, caching).unwrap());
        sources.push(SourceDisk { no, size, block_size, disk });
        let disk = Arc::new(FileDisk::open_target(target, caching).unwrap());
        targets.push(TargetDisk { no, size, block_size, disk, holds });
    }
    let receiver = Receiver::new(migration.clone(), targets, ReceiverLimits::default()).unwrap();
    receiver.index(|_, _| {}).await.unwrap();
    let sender =
        Sender::new(migration, sources, Arc::new(NoChanges), SenderLimits::default()).unwrap();
    let (here, there) = (Identity::generate(), Identity::generate());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut streams = Vec::new();
    for stream in 0..2 {
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let purpose = Purpose::Data { generation: 1, stream };
        let (client, server) = tokio::join!(
            meet::open(client.unwrap(), purpose, std::time::Duration::from_secs(60)),
            meet::accept(server.unwrap().0),
        );
        let (told, server) = server.unwrap();
        assert_eq!(told, purpose);
        let (client, server) = tokio::join!(
            secure::connect(client.unwrap(), &here, Trust::Only(there.public())),
            secure::accept(server, &there, Trust::Only(here.public())),
        );
        streams.push(client.unwrap().stream);
        let (receiver, server) = (receiver.clone(), server.unwrap().stream);
        tokio::spawn(async move { receiver.serve(server).await });
    }
    sender.connect(1, streams).await.unwrap();
    let (progress, _) = watch::channel(Default::default());
    let options = RoundOptions { limit_rate: None, limit_read: None, compress: 3 };
    let round = sender.round(1, options, &progress).await;
    assert!(round.failure.is_none(), "{:?}", round.failure);
    let digests = sender.seal(1).unwrap();
    assert_eq!(receiver.digests().await.unwrap(), digests);
    assert_eq!(receiver.reread(|_, _| {}).await.unwrap(), digests);
    sender.disconnect().await;
    receiver.disconnect().await;
    digests
}

fn file(path: &Path, len: u64, pieces: &[(u64, &[u8])]) {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    for (at, piece) in pieces {
        file.write_all_at(piece, *at).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_odd_sizes_arrive_byte_by_byte() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut random = vec![0; 1_000_003];
    blake3::Hasher::new().finalize_xof().fill(&mut random);
    for caching in [Caching::Direct, Caching::Cached] {
        file(&at("a"), 5_000_001, &[(0, &random), (3_999_998, &random)]);
        file(&at("b"), 511, &[(3, b"short")]);
        for (name, len) in [("a2", 5_000_001), ("b2", 511)] {
            file(&at(name), len, &[]);
        }
        let disks = [(at("a"), at("a2")), (at("b"), at("b2"))];
        let disks: Vec<_> = disks.iter().map(|(a, b)| (a.as_path(), b.as_path())).collect();
        let first = copy(&disks, Holds::Zeros, caching).await;
        assert!(std::fs::read(at("a")).unwrap() == std::fs::read(at("a2")).unwrap());
        assert!(std::fs::read(at("b")).unwrap() == std::fs::read(at("b2")).unwrap());
        // Once more, over what is there.
        assert_eq!(copy(&disks, Holds::Anything, caching).await, first);
    }
}

/// 64 GiB without data but for some MiB: neither read nor written where there is nothing, and
/// both ends together stay within what one agent may use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_sparse_disk_costs_its_table_and_its_data() {
    // In a process of its own: what it takes is measured, and other tests run in this one.
    const ALONE: &str = "CAUSEWAY_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let this_test = "files::a_large_sparse_disk_costs_its_table_and_its_data";
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", this_test])
            .env(ALONE, "1")
            .output();
        let alone = alone.unwrap();
        let said = String::from_utf8_lossy(&alone.stdout);
        assert!(alone.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let dir = tempfile::tempdir_in(".").unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    let mut random = vec![0; 8 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut random);
    let size = (64 << 30) + 12_345;
    file(&source, size, &[(0, &random), (31 << 30, &random), (size - (8 << 20), &random)]);
    file(&target, size, &[]);
    copy(&[(&source, &target)], Holds::Zeros, Caching::Direct).await;
    let allocated = std::fs::metadata(&target).unwrap().blocks() * 512;
    assert!((24 << 20..26 << 20).contains(&allocated), "{allocated} bytes allocated");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(peak_kib < 128 << 10, "both ends took {peak_kib} KiB");
}
