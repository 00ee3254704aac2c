//! What one stream has received, and what became of it.

use std::collections::BTreeSet;

use wire::data::{Block, UNACKED_MAX};

/// What one stream has received, and what became of it: sequence numbers and credit. Pure; every
/// rule that a peer can break is checked here.
#[derive(Debug)]
pub struct Ledger {
    /// What the peer may still spend.
    credit: u64,
    /// What it may spend when nothing is in memory.
    share: u64,
    /// Of `credit`, what it does not know of yet.
    untold: u64,
    /// The number of the last block.
    received: u64,
    /// Every block up to this one is durable or was refused.
    settled_upto: u64,
    /// Blocks behind `settled_upto` that are settled already: writers finish in any order.
    settled: BTreeSet<u64>,
    /// Received, and neither written nor refused yet.
    unwritten: u64,
    flush: Option<Flush>,
}

#[derive(Clone, Copy, Debug)]
struct Flush {
    token: u64,
    upto: u64,
}

/// What is to be done after a block's memory was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// The peer should be told of its credit.
    pub tell: bool,
    /// A flush waits for nothing but a sync.
    pub hurry: bool,
}

/// What is to be said after blocks were settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    pub acked: Option<u64>,
    pub flushed: Option<u64>,
}

impl Ledger {
    pub const fn new(credit: u64) -> Self {
        let settled = BTreeSet::new();
        let (share, untold, received, settled_upto) = (credit, 0, 0, 0);
        let (unwritten, flush) = (0, None);
        Self { credit, share, untold, received, settled_upto, settled, unwritten, flush }
    }

    /// A block has come that costs this much.
    pub fn receive(&mut self, block: &Block, cost: u64) -> Result<(), String> {
        if block.seq != self.received + 1 {
            return Err(format!("block number {} follows {}", block.seq, self.received));
        }
        if block.seq - self.settled_upto > UNACKED_MAX {
            return Err(format!("more than {UNACKED_MAX} blocks without acknowledgement"));
        }
        self.credit = self.credit.checked_sub(cost).ok_or("credit exceeded")?;
        self.received = block.seq;
        self.unwritten += 1;
        Ok(())
    }

    /// A block was written or refused, and its memory is free.
    pub const fn release(&mut self, cost: u64) -> Released {
        self.credit += cost;
        self.untold += cost;
        self.unwritten -= 1;
        // Every telling wakes up three tasks, so not for every block; but when nothing more will
        // be released, the peer must know of all of it, or it might wait for ever.
        let tell = self.untold >= self.share / 8 || self.unwritten == 0;
        if tell {
            self.untold = 0;
        }
        Released { tell, hurry: self.unwritten == 0 && self.flush.is_some() }
    }

    /// Blocks are durable or were refused.
    pub fn settle(&mut self, seqs: impl IntoIterator<Item = u64>) -> Settled {
        let before = self.settled_upto;
        self.settled.extend(seqs);
        while self.settled.remove(&(self.settled_upto + 1)) {
            self.settled_upto += 1;
        }
        let acked = (self.settled_upto > before).then_some(self.settled_upto);
        Settled { acked, flushed: self.finish_flush() }
    }

    /// A flush has come. Answers whether it waits for nothing but a sync; [`Settled`] may say that
    /// it is done already.
    pub fn flush(&mut self, token: u64) -> (Settled, bool) {
        self.flush = Some(Flush { token, upto: self.received });
        let settled = Settled { acked: None, flushed: self.finish_flush() };
        (settled, self.flush.is_some() && self.unwritten == 0)
    }

    fn finish_flush(&mut self) -> Option<u64> {
        let done = self.flush.filter(|flush| flush.upto <= self.settled_upto)?;
        self.flush = None;
        Some(done.token)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use units::{BlockIndex, Digest, DiskNo};
    use wire::data::{Content, Encoding};

    use super::*;

    fn block(seq: u64) -> Block {
        Block {
            seq,
            disk: DiskNo(0),
            block: BlockIndex(seq),
            hash: Digest([1; 32]),
            content: Content::Zero,
            encoding: Encoding::Raw,
            raw_len: 0,
        }
    }

    #[test]
    fn a_peer_that_breaks_a_rule_is_told_which() {
        let mut ledger = Ledger::new(10_000);
        assert!(ledger.receive(&block(2), 1).unwrap_err().contains("follows 0"));
        ledger.receive(&block(1), 9_000).unwrap();
        assert!(ledger.receive(&block(1), 1).unwrap_err().contains("follows 1"));
        assert!(ledger.receive(&block(2), 1_001).unwrap_err().contains("credit"));
        ledger.receive(&block(2), 1_000).unwrap();
    }

    #[test]
    fn too_many_blocks_without_acknowledgement_are_refused() {
        let mut ledger = Ledger::new(u64::MAX / 2);
        for seq in 1..=UNACKED_MAX {
            ledger.receive(&block(seq), 0).unwrap();
        }
        assert!(ledger.receive(&block(UNACKED_MAX + 1), 0).is_err());
        ledger.settle([1]);
        ledger.receive(&block(UNACKED_MAX + 1), 0).unwrap();
    }

    /// Blocks that cost the whole share each: the next one needs all of it.
    #[test]
    fn all_credit_is_told_when_nothing_is_in_memory() {
        let mut ledger = Ledger::new(8_000);
        ledger.receive(&block(1), 7_900).unwrap();
        ledger.receive(&block(2), 50).unwrap();
        assert!(!ledger.release(50).tell);
        assert!(ledger.release(7_900).tell);
        ledger.receive(&block(3), 1).unwrap();
        assert!(ledger.release(1).tell);
    }

    #[test]
    fn a_flush_of_nothing_is_done_at_once() {
        let done = Settled { acked: None, flushed: Some(7) };
        assert_eq!(Ledger::new(0).flush(7), (done, false));
    }

    proptest! {
        /// Blocks settle in any order, in groups of any size.
        #[test]
        fn nothing_is_acknowledged_before_everything_up_to_it_is_settled(order in Just((1_u64..=30).collect::<Vec<_>>()).prop_shuffle(), cuts in proptest::collection::vec(1_usize..8, 1..30)) {
            let mut ledger = Ledger::new(1000);
            for seq in 1..=30 {
                ledger.receive(&block(seq), 1).unwrap();
            }
            let (settled, hurry) = ledger.flush(9);
            prop_assert!(settled.flushed.is_none() && !hurry);
            let (mut left, mut done) = (order.as_slice(), BTreeSet::new());
            let mut flushed = false;
            for cut in cuts.iter().cycle() {
                let (group, rest) = left.split_at((*cut).min(left.len()));
                left = rest;
                done.extend(group.iter().copied());
                let settled = ledger.settle(group.iter().copied());
                if let Some(upto) = settled.acked {
                    prop_assert!((1..=upto).all(|seq| done.contains(&seq)));
                    prop_assert!(!done.contains(&(upto + 1)));
                }
                flushed |= settled.flushed == Some(9);
                prop_assert_eq!(flushed, done.len() == 30);
                if left.is_empty() { break; }
            }
        }
    }
}
