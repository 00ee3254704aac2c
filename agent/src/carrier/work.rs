//! What a carrier does once it is confined.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MlockAllFlags, mlockall, munlockall};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use track::{Audited, Moment, TrackerKind};
use transfer::control::{self, ControlError, ControlReader};
use transfer::secure::{Identity, PublicKey};
use transfer::{Changes as _, RoundOptions};
use wire::control::{Event, Sealed};

use super::descriptors;
use super::order::{Answer, Call, Order, Said, Status, Way};
use super::round::{Rounds, unwritten};
use super::streams;
use super::tracked::{Tracked, choice};
use crate::inspect::Tree;
use crate::inspect::stat::DiskStat;
use crate::source::{SourceError, to_failure};

/// Messages that wait for the agent to read them. Progress beyond this is dropped.
const WAITING: usize = 64;

pub struct Work {
    pub(super) tree: Tree,
    pub(super) tracked: Arc<Tracked>,
    pub(super) rounds: Rounds,
    identity: Identity,
    /// Held while streams are opened: one connection at a time.
    connecting: AsyncMutex<()>,
    at_rest: AtomicU64,
    sockets: OwnedFd,
    says: mpsc::Sender<Said>,
}

impl Work {
    /// Does what it is asked until the agent ends the stream. `sockets`: where those of a
    /// connection come in.
    pub async fn serve(
        tracked: Tracked,
        identity: Identity,
        sockets: OwnedFd,
        orders: OwnedReadHalf,
        mut answers: OwnedWriteHalf,
    ) -> Result<(), ControlError> {
        let (says, mut said) = mpsc::channel(WAITING);
        let report = tracked.report.clone();
        let work = Arc::new(Self {
            tree: Tree::of_this_system(),
            tracked: Arc::new(tracked),
            rounds: Rounds::default(),
            identity,
            connecting: AsyncMutex::new(()),
            at_rest: AtomicU64::new(0),
            sockets,
            says,
        });
        work.say(Said::Answer { id: 0, result: Ok(Answer::Started(report)) }).await;
        let mut orders = ControlReader::new(orders);
        let hear = async {
            while let Some(Call { id, order }) = orders.next().await? {
                // What others depend on is done before the next order is looked at.
                if let Order::Rest { number } = order {
                    work.rest(number);
                    work.say(Said::Answer { id, result: Ok(Answer::Done) }).await;
                    continue;
                }
                let work = Arc::clone(&work);
                tokio::spawn(async move {
                    let result = work.obey(order).await.map_err(to_failure);
                    work.say(Said::Answer { id, result }).await;
                });
            }
            Ok(())
        };
        let speak = async {
            while let Some(said) = said.recv().await {
                control::write(&mut answers, &said).await?;
            }
            Ok(())
        };
        tokio::select! {
            ended = hear => ended,
            ended = speak => ended,
        }
    }

    /// Waits for the agent if it is slow to listen.
    pub(super) async fn say(&self, said: Said) {
        // Nobody hears it: this process is about to end.
        let _heard = self.says.send(said).await;
    }

    pub(super) fn say_if_heard(&self, event: Event) {
        if let Err(error) = self.says.try_send(Said::Event(event)) {
            tracing::debug!(%error, "event not delivered");
        }
    }

    /// Which rest the guest is in, if it is.
    pub(super) fn at_rest(&self) -> Option<u64> {
        Some(self.at_rest.load(Ordering::SeqCst)).filter(|rest| *rest != 0)
    }

    fn rest(&self, number: u64) {
        if self.at_rest.swap(number, Ordering::SeqCst) != number {
            self.rounds.forget_drained();
        }
    }

    async fn obey(self: &Arc<Self>, order: Order) -> Result<Answer, SourceError> {
        let sender = &self.tracked.sender;
        match order {
            Order::Status => {
                return Ok(Answer::Status(Status {
                    connected: sender.generation(),
                    last: sender.last_generation(),
                    round: self.rounds.running(),
                }));
            }
            Order::Connect { generation, peer_key, way } => {
                self.connect(generation, &peer_key, way).await?;
            }
            Order::Disconnect => sender.disconnect().await,
            Order::Round { number, limit_rate, limit_read, compress } => {
                let options = RoundOptions { limit_rate, limit_read, compress };
                self.start_round(number, options).await?;
            }
            Order::LimitRate { bytes_per_s } => sender.limit_rate(bytes_per_s),
            Order::StopRound => sender.stop_round(),
            Order::StayInMemory => tokio::task::spawn_blocking(stay_in_memory).await?,
            Order::LeaveMemory => leave_memory(),
            Order::Rest { number } => self.rest(number),
            Order::Seal { rest } => return Ok(Answer::Sealed(self.seal(rest).await?)),
        }
        Ok(Answer::Done)
    }

    async fn connect(&self, generation: u64, peer_key: &str, way: Way) -> Result<(), SourceError> {
        let _one = self.connecting.lock().await;
        // In any case: what is left in the channel would be taken for the next one's.
        let (of, sockets) = descriptors::receive(&self.sockets).map_err(SourceError::Socket)?;
        let peer: PublicKey = peer_key.parse()?;
        if of != generation {
            return Err(SourceError::Superseded);
        }
        let opened = streams::open(sockets, way, &self.identity, generation, peer).await?;
        self.tracked.sender.connect(generation, opened).await?;
        Ok(())
    }

    /// Everything that was ever written is at the destination, and can be known to be: or an
    /// error. The agent knows whether the guest was at rest all the time.
    async fn seal(self: &Arc<Self>, rest: u64) -> Result<Sealed, SourceError> {
        let not_clean = |why: String| SourceError::NotClean { why };
        let drained = self.rounds.drained().filter(|drained| drained.rest == rest);
        let drained =
            drained.ok_or_else(|| not_clean("no round was completed at rest".to_owned()))?;
        let (work, before) = (Arc::clone(self), drained.stats.clone());
        let look = move || audit(&work.tracked, &before, &work.tracked.stats(&work.tree));
        let audit = tokio::task::spawn_blocking(look).await?.map_err(not_clean)?;
        let digests = self.tracked.sender.seal(drained.number)?;
        Ok(Sealed { digests, tracker: choice(self.tracked.marks.kind()), audit })
    }
}

/// Two independent words that nothing was written since the drain began: the tracker's and the
/// kernel's statistics. The answer is for the receipt.
fn audit(
    tracked: &Tracked,
    before: &[Option<DiskStat>],
    now: &[Option<DiskStat>],
) -> Result<String, String> {
    for disk in &tracked.disks {
        match tracked.marks.audit(disk.no, Moment::Quiesced) {
            Ok(Audited::Balanced) => {}
            Ok(Audited::Remarked { missed }) => {
                return Err(format!("{missed} written to disk {} had been missed", disk.no));
            }
            Ok(Audited::Open) => return Err(format!("disk {} is still busy", disk.no)),
            Err(doubt) => return Err(format!("disk {}: {doubt}", disk.no)),
        }
        let dirty = tracked.marks.dirty(disk.no);
        if tracked.marks.precise() && dirty != units::Bytes::ZERO {
            return Err(format!("{dirty} of disk {} were written since the drain", disk.no));
        }
    }
    unwritten(before, now)?;
    let sectors: Vec<String> = now.iter().flatten().map(|stat| stat.written.to_string()).collect();
    let tracker = match tracked.marks.kind() {
        TrackerKind::Bpf => {
            "bpf: every sector that the kernel counted was marked, and none is dirty"
        }
        TrackerKind::Rescan => "rescan: every block was read under freeze",
    };
    Ok(format!(
        "{tracker}; sectors written, before the drain and at the seal alike: {}",
        sectors.join(", ")
    ))
}

/// What is frozen cannot be read in again: memory stays.
pub fn stay_in_memory() {
    // First what is there, all of it; then what comes, as it comes: thread stacks are mostly
    // never touched.
    let now = mlockall(MlockAllFlags::CURRENT);
    let later = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = now.and_then(|()| mlockall(later)) {
        tracing::warn!(%error, "memory not locked");
    }
}

pub fn leave_memory() {
    // Nothing depends on it.
    let _unlocked = munlockall();
}
