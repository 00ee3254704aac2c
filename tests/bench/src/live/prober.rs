//! Who asks the guest from outside all the time: ICMP echoes, from the bridge of each site.
//!
//! The guest has one address, and its gateway is at both sites: whichever of the two it is at, there it
//! is asked and answers, and nobody has to look for it. What it answers goes over no measured path.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::Site;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto,
    socket_with,
};

/// From one question to the next.
const EVERY: Duration = Duration::from_millis(10);

/// Marks our echoes.
const ID: u16 = 0xCA05;

#[derive(Debug)]
pub struct Prober {
    began: Instant,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// When answers came, since it began.
    heard: Mutex<Vec<Duration>>,
    ended: AtomicBool,
}

impl Prober {
    pub fn start(sites: [&Site; 2], guest: Ipv4Addr) -> Result<Self> {
        let (began, shared) = (Instant::now(), Arc::<Shared>::default());
        let mut threads = Vec::new();
        for site in sites {
            let socket = site.inside(|| {
                let (family, icmp) = (AddressFamily::INET, Some(ipproto::ICMP));
                socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, icmp)
            })??;
            let shared = Arc::clone(&shared);
            threads.push(std::thread::spawn(move || ask(&socket, guest, began, &shared)));
        }
        Ok(Self { began, shared, threads })
    }

    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The longest time within it in which nothing came.
    pub fn largest_gap(&self, window: Range<Duration>) -> Duration {
        let heard = self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner);
        largest_gap(&heard, window)
    }

    /// Whether an answer came after that.
    pub fn has_heard_since(&self, since: Duration) -> bool {
        let heard = self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().rev().take(16).any(|at| *at > since)
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn ask(socket: &OwnedFd, guest: Ipv4Addr, began: Instant, shared: &Shared) {
    let (guest, mut next, mut number) = (SocketAddrV4::new(guest, 0), Instant::now(), 0);
    while !shared.ended.load(Ordering::Relaxed) {
        let wait = next.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            number = u16::wrapping_add(number, 1);
            // Lost like any other that is not answered.
            let _ = sendto(socket, &echo(number), SendFlags::DONTWAIT, &guest);
            next = Instant::now().max(next + EVERY);
            continue;
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
        if !poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)).is_ok_and(|n| n > 0) {
            continue;
        }
        let mut packet = [0; 128];
        if let Ok((_, len)) = recv(socket, &mut packet, RecvFlags::DONTWAIT)
            && is_answer(&packet[..len.min(128)])
        {
            let now = began.elapsed();
            shared.heard.lock().unwrap_or_else(PoisonError::into_inner).push(now);
        }
    }
}

fn echo(number: u16) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = 8;
    packet[4..6].copy_from_slice(&ID.to_be_bytes());
    packet[6..8].copy_from_slice(&number.to_be_bytes());
    let sum: u32 = packet.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    let folded = (sum & 0xFFFF) + (sum >> 16);
    let folded = (folded & 0xFFFF) + (folded >> 16);
    packet[2..4].copy_from_slice(&(!folded).to_be_bytes()[2..]);
    packet
}

/// With the IP header that a raw socket shows.
fn is_answer(packet: &[u8]) -> bool {
    let header = packet.first().map_or(0, |byte| usize::from(byte & 0xF) * 4);
    let Some(icmp) = packet.get(header..) else { return false };
    icmp.len() >= 8 && icmp[0] == 0 && icmp[4..6] == ID.to_be_bytes()
}

fn largest_gap(heard: &[Duration], window: Range<Duration>) -> Duration {
    // Two threads enter what they hear, so that neighbours may be the wrong way round.
    let mut inside: Vec<_> = heard.iter().copied().filter(|at| window.contains(at)).collect();
    inside.extend([window.start, window.end]);
    inside.sort_unstable();
    inside.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_between_answers_and_the_window_ends_it() {
        let ms = Duration::from_millis;
        let heard = [ms(5), ms(100), ms(90), ms(400), ms(410)];
        assert_eq!(largest_gap(&heard, ms(50)..ms(405)), ms(300));
        assert_eq!(largest_gap(&heard, ms(405)..ms(1000)), ms(590));
        assert_eq!(largest_gap(&[], ms(10)..ms(30)), ms(20));
    }

    #[test]
    fn an_echo_sums_up_to_nothing_and_its_answer_is_known() {
        let mut packet = echo(0xFFFE);
        let sum: u32 = packet.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
        assert_eq!((sum & 0xFFFF) + (sum >> 16), 0xFFFF);
        packet[0] = 0;
        let with_header = [&[0x45; 20][..], &packet].concat();
        assert!(is_answer(&with_header) && !is_answer(&with_header[..20]) && !is_answer(&[]));
        packet[5] ^= 1;
        assert!(!is_answer(&[&[0x45; 20][..], &packet].concat()));
    }
}
