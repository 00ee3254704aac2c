//! The network between us and a guest: a relay that can fall silent, as a cut path does.

use std::net::Ipv4Addr;
use std::sync::Arc;

use guest_ssh::SshTarget;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Nothing is closed when it is cut: bytes just stop.
pub struct Path {
    pub port: u16,
    cut: Arc<watch::Sender<bool>>,
    _tasks: JoinSet<()>,
}

impl Path {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let here = listener.local_addr().unwrap().port();
        let cut = Arc::new(watch::Sender::new(false));
        let mut tasks = JoinSet::new();
        let its_cut = Arc::clone(&cut);
        tasks.spawn(async move {
            let mut relays = JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                relays.spawn(relay(near_read, far_write, its_cut.subscribe()));
                relays.spawn(relay(far_read, near_write, its_cut.subscribe()));
            }
        });
        Self { port: here, cut, _tasks: tasks }
    }

    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub fn mend(&self) {
        self.cut.send_replace(false);
    }

    pub fn target(&self, through: SshTarget) -> SshTarget {
        SshTarget { port: self.port, ..through }
    }
}

async fn relay(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut cut: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if cut.wait_for(|cut| !cut).await.is_err() {
            return;
        }
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = cut.changed() => continue,
        };
        match read {
            Ok(0) | Err(_) => {
                to.shutdown().await.ok();
                return;
            }
            Ok(n) => {
                if to.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}
