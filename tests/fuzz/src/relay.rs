//! What mobility agents carry for hypervisors, and what one may say to the other:
//! [`causeway_mobility::relay`]. Whatever a hypervisor writes arrives as it was; whatever the other agent
//! says, an end keeps no more than it said that it would, and ends.

use std::sync::{Arc, OnceLock};

use causeway_mobility::relay::templates::Index;
use causeway_mobility::relay::{Meter, Migration, Part, Room, StreamKind, relay};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::runtime::Builder;

use crate::memory::bounded;
use crate::script::Script;

const PAGE: usize = 4096;
/// Acts of one hypervisor; more of them say nothing new.
const ACTS_MAX: usize = 60;
/// That an end takes for itself: windows of its compressor, 8 MiB of pages and of blocks each.
const MEMORY: usize = 192 << 20;
/// A connection after so many others does not look far back, which costs 128 MiB and most of a second: one
/// script of 16 does.
const NEAR: u32 = 8;
const FAR: u8 = 15;
const ROOM: Room = Room { memory: 8 << 20, disks: 8 << 20 };

/// Time is virtual: an end that waits for ever is given up at once.
pub fn check(bytes: &[u8]) {
    let mut script = Script(bytes);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("the machine has room for it");
    let hostile = script.byte() & 1 == 1;
    bounded(2 * MEMORY, || {
        if hostile {
            runtime.block_on(hears(script));
        } else {
            runtime.block_on(carries(script));
        }
    });
}

/// Two agents, and connections of one migration: a disk's, then memory's.
async fn carries(mut script: Script<'_>) {
    let from = Arc::new(Migration::new(ROOM));
    let to = Arc::new(Migration::new(ROOM).with_templates(Some(template())));
    let chosen = script.byte();
    let first = if chosen & FAR == 0 { 0 } else { NEAR };
    // It was told of so many of them by then.
    let templates = template();
    let told = templates.hashes().len().min(usize::from(chosen >> 5));
    assert!(from.add_templates(&templates.hashes()[..told]));
    let memory = [first, first + 1].map(|index| (StreamKind::Memory, index));
    for (kind, index) in [(StreamKind::Disk, 0)].into_iter().chain(memory) {
        let said = spoken(kind, index - first.min(index), &mut script);
        let sends = Part::Sends { kind, index, migration: Arc::clone(&from) };
        let takes = Part::Takes { kind, index, migration: Arc::clone(&to) };
        let (mut source, a) = duplex(64 << 10);
        let (mut destination, b) = duplex(64 << 10);
        let (a_far, b_far) = duplex(32 << 10);
        let (at_source, at_destination) = (Meter::default(), Meter::default());
        // Not too many pieces.
        let cut = (1 + usize::from(script.short())).max(said.len() / 500);
        let hypervisors = async {
            let writes = async {
                for piece in said.chunks(cut) {
                    source.write_all(piece).await.expect("its agent reads");
                    tokio::task::yield_now().await;
                }
                source.shutdown().await.expect("its agent reads");
                // What the other one answers is nothing but its end.
                let mut answer = Vec::new();
                source.read_to_end(&mut answer).await.expect("it is carried");
                assert!(answer.is_empty());
            };
            let reads = async {
                let mut arrived = Vec::new();
                destination.read_to_end(&mut arrived).await.expect("it is carried");
                assert!(arrived == said, "{} of {} bytes arrived", arrived.len(), said.len());
                destination.shutdown().await.expect("its agent reads");
            };
            tokio::join!(writes, reads)
        };
        let (one, other, _) = tokio::join!(
            relay(a, a_far, sends, &at_source),
            relay(b, b_far, takes, &at_destination),
            hypervisors
        );
        one.expect("nothing broke");
        other.expect("nothing broke");
    }
}

/// Of the pages that a hypervisor may write.
fn template() -> Arc<Index> {
    static TEMPLATE: OnceLock<Arc<Index>> = OnceLock::new();
    let read = || {
        let path = std::env::temp_dir().join(format!("causeway-fuzz-{}", std::process::id()));
        let pages = (0..8).flat_map(|which| (0..PAGE).map(move |at| byte_of(which, at)));
        std::fs::write(&path, pages.collect::<Vec<_>>()).expect("there is room for it");
        let index = Index::read(std::slice::from_ref(&path));
        assert!(!index.hashes().is_empty());
        std::fs::remove_file(&path).expect("it was written");
        Arc::new(index)
    };
    Arc::clone(TEMPLATE.get_or_init(read))
}

/// One end, of any part, and another agent that says anything.
async fn hears(mut script: Script<'_>) {
    let migration = Arc::new(Migration::new(ROOM).with_templates(Some(template())));
    let kind = if script.byte() & 1 == 1 { StreamKind::Memory } else { StreamKind::Disk };
    let part = match script.below(3) {
        0 => Part::Opaque,
        1 => Part::Sends { kind, index: NEAR, migration },
        _ => Part::Takes { kind, index: NEAR, migration },
    };
    let (hypervisor, local) = duplex(64 << 10);
    let (far, mut peer) = duplex(64 << 10);
    let meter = Meter::default();
    let talks = async move {
        while let Some(act) = script.next() {
            let said = match act % 4 {
                0 => script.bytes().to_vec(),
                // A head that may promise more than comes.
                1 => [&[script.byte()][..], &u32::from(script.short()).to_le_bytes()].concat(),
                2 => {
                    [&[script.byte()][..], &u32::from(script.byte()).to_be_bytes(), script.bytes()]
                        .concat()
                }
                _ => vec![script.byte(); usize::from(script.byte())],
            };
            if peer.write_all(&said).await.is_err() {
                return;
            }
        }
        let _ended = peer.shutdown().await;
    };
    let drains = drain(hypervisor);
    let _ended = tokio::join!(relay(local, far, part, &meter), talks, drains);
}

async fn drain(mut hypervisor: DuplexStream) {
    let mut buffer = [0; PAGE];
    while matches!(hypervisor.read(&mut buffer).await, Ok(1..)) {}
    let _ended = hypervisor.shutdown().await;
}

/// What a hypervisor may write: as QEMU does, with lies in it, or noise.
fn spoken(kind: StreamKind, index: u32, script: &mut Script<'_>) -> Vec<u8> {
    let mut said = Vec::new();
    match (kind, index) {
        (StreamKind::Disk, _) => said.extend(NBD_BEGINS),
        (StreamKind::Memory, 0) => said.extend(RAM_BEGINS),
        // A channel of multifd begins in a way of its own.
        (StreamKind::Memory, _) => said.extend(script.bytes()),
    }
    for _ in 0..ACTS_MAX {
        let Some(act) = script.next() else { break };
        match (act % 8, kind) {
            (0 | 1, StreamKind::Memory) => {
                let page = u64::from(script.byte());
                said.extend((page << 12 | 0x08).to_be_bytes());
                said.extend(b"\x06pc.ram");
                said.extend(content(script));
            }
            (2, StreamKind::Memory) => {
                said.extend((u64::from(script.byte()) << 12 | 0x28).to_be_bytes());
                said.extend(content(script));
            }
            (3, StreamKind::Memory) => {
                said.extend((u64::from(script.byte()) << 12 | 0x22).to_be_bytes());
                said.push(0);
            }
            (4, StreamKind::Memory) => {
                said.extend(0x10_u64.to_be_bytes());
                said.extend(b"\x7e\0\0\0\x02");
                said.extend([2, 0, 0, 0, 2]);
            }
            (0..=3, StreamKind::Disk) => {
                let blocks = 1 + script.below(4);
                let offset = u64::from(script.byte()) << (8 + script.below(5));
                said.extend(0x2560_9513_u32.to_be_bytes());
                said.extend([0, 0, 0, 1]);
                said.extend([7; 8]);
                said.extend(offset.to_be_bytes());
                said.extend(u32::try_from(blocks * PAGE).expect("few").to_be_bytes());
                for _ in 0..blocks {
                    said.extend(content(script));
                }
            }
            (5, _) => said.extend(script.long().to_be_bytes()),
            _ => said.extend(script.bytes()),
        }
    }
    said
}

/// One of a few pages, with something changed in it: what repeats is what an agent looks for.
fn content(script: &mut Script<'_>) -> Vec<u8> {
    let which = script.byte();
    let mut page: Vec<u8> = (0..PAGE).map(|at| byte_of(which & 7, at)).collect();
    for _ in 0..which >> 6 {
        let at = usize::from(script.short()) % PAGE;
        page[at] = script.byte();
    }
    page
}

fn byte_of(which: u8, at: usize) -> u8 {
    let [low, high, ..] = at.to_le_bytes();
    match which {
        0 => 0,
        1 => low,
        2 => high,
        _ => (low ^ which).wrapping_mul(which | 1).wrapping_add(high.rotate_left(3)),
    }
}

/// QEMU 7.2's beginning of a migration stream, with two blocks of memory.
const RAM_BEGINS: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x0epc-i440fx-7.2x\
    \x08\0\x01\0\x04\0\0\0\x01\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04\
    \0\0\0\0\x80\0\0\x04\x06pc.ram\0\0\0\0\x7f\xff\0\0\x03rom\0\0\0\0\0\x01\0\0\
    \0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\x02\0\0\0\x02";

/// What QEMU's client says before its first request.
const NBD_BEGINS: &[u8] =
    b"\0\0\0\x03IHAVEOPT\0\0\0\x08\0\0\0\0IHAVEOPT\0\0\0\x0a\0\0\0\x08\0\0\0\x04disk\
    IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x04disk\0\0";
