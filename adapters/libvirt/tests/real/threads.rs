//! Alone in its process, because it counts the process's threads.

#![expect(clippy::unwrap_used, reason = "a test's own helpers fail as the test does")]

#[expect(dead_code, reason = "the tests beside it use the rest")]
mod daemon;
mod helper;

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use daemon::{Daemon, Network};
use site::{Site, SiteErrorKind, Takeover};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Looks until the last thread has had ample time to end: one that hangs stays for ever.
const LOOKS: usize = 1200;

fn channel_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("channel-")).count()
}

fn comes_true(fact: impl Fn() -> bool) -> bool {
    (0..LOOKS).any(|_| {
        let now = fact();
        if !now {
            sleep(Duration::from_millis(50));
        }
        now
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_leaves_no_thread_behind() {
    let daemon = Daemon::start(Network::Private);
    let site = daemon.site();
    let spec = helper::start(&site, "web2").await;
    for finish in [true, false, true, false] {
        let mut channel = loop {
            // A channel that was dropped is cut off in the background.
            match site.open_channel(spec.vm, 0, Takeover::Refuse).await {
                Ok(stream) => break stream,
                Err(error) => assert_eq!(error.kind, SiteErrorKind::Conflict, "{error}"),
            }
        };
        channel.write_all(b"hello\n").await.unwrap();
        assert!(comes_true(|| channel_threads() >= 3), "the control: a channel has its threads");
        if finish {
            channel.read_u8().await.unwrap();
            channel.shutdown().await.unwrap();
        }
    }
    assert!(comes_true(|| channel_threads() == 0), "{} threads are left", channel_threads());
}
