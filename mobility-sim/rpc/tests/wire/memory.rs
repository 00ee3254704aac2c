//! How much memory reading takes: never more than a small multiple of what was sent.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rpc::client::{Client, Limits};
use rpc::error::RemoteError;
use rpc::frame::{Decoder, FRAME_MAX};
use rpc::procedures::{Call, Procedure, Reply};
use rpc::xdr::TEXT_MAX;

use crate::samples::*;

thread_local! {
    /// Bytes that this thread holds, and the most it ever held. Others have their own: tests run
    /// side by side.
    static HELD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn take(len: usize) {
    HELD.with(|held| {
        let (now, most) = held.get();
        let now = now.wrapping_add(len);
        // What another thread took and this one gave back may lie below zero.
        let most = if now < usize::MAX / 2 { most.max(now) } else { most };
        held.set((now, most));
    });
}

fn give_back(len: usize) {
    HELD.with(|held| {
        let (now, most) = held.get();
        held.set((now.wrapping_sub(len), most));
    });
}

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of it.
#[expect(unsafe_code, reason = "an allocator has no safe interface")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller keeps to `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        give_back(layout.size());
        // SAFETY: the caller keeps to `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        // Both are there while one is copied to the other.
        take(len);
        // SAFETY: the caller keeps to `GlobalAlloc::realloc`.
        let moved = unsafe { System.realloc(memory, layout, len) };
        give_back(layout.size());
        moved
    }
}

/// The most that was held at once on top of what was there.
fn taken<T>(run: impl FnOnce() -> T) -> usize {
    HELD.with(|held| held.set((0, 0)));
    drop(run());
    HELD.with(|held| held.get().1)
}

/// What small things take, whatever is sent.
const CONSTANT: usize = 16 << 10;

#[test]
fn a_length_that_is_only_said_costs_nothing() {
    let mut session = opened();
    let said = u32::try_from(FRAME_MAX).unwrap().to_be_bytes();
    assert!(taken(|| session.push(&said, START)) <= 4 << 10);
    let mut decoder = Decoder::new(FRAME_MAX);
    assert!(taken(|| decoder.push(&said)) <= 4 << 10);
    assert_eq!(decoder.next_frame(), Ok(None));
}

#[test]
fn arguments_take_at_most_four_times_what_was_sent() {
    for call in calls() {
        for payload in [call.encode(), words_that_say_much()] {
            let limit = 4 * payload.len() + CONSTANT;
            for procedure in Procedure::ALL {
                let taken_by_call = taken(|| Call::decode(procedure.number(), &payload));
                let taken_by_reply = taken(|| Reply::decode(procedure, &payload));
                let taken_by_error = taken(|| RemoteError::decode(&payload));
                let most = taken_by_call.max(taken_by_reply).max(taken_by_error);
                assert!(most <= limit, "{most} bytes for {} of {procedure:?}", payload.len());
            }
        }
    }
}

/// 64 parameters of which each says that it is as long as may be.
fn words_that_say_much() -> Vec<u8> {
    let mut payload = 64_u32.to_be_bytes().to_vec();
    for _ in 0..64 {
        payload
            .extend([0, 7, u32::try_from(TEXT_MAX).expect("4 MiB")].map(u32::to_be_bytes).concat());
    }
    payload
}

#[test]
fn a_large_prepare_takes_four_times_its_size_in_a_session_however_it_comes() {
    let mut large = prepare();
    large.params = rpc::params::Params::new();
    let xml = "x".repeat(TEXT_MAX);
    large.params.add(&rpc::params::Name::DESTINATION_XML, xml).unwrap();
    large.cookie = vec![1; 4 << 20];
    let bytes = framed(1, &Call::Prepare(large));
    let mut session = opened();
    let most = taken(|| {
        for piece in bytes.chunks(64 << 10) {
            session.push(piece, START);
        }
    });
    assert!(matches!(session.event(), Some(rpc::server::Event::Prepare { .. })));
    assert!(most <= 4 * bytes.len(), "{most} bytes for {}", bytes.len());
}

#[test]
fn what_a_client_is_sent_takes_four_times_its_size() {
    let xml = Reply::Capabilities("x".repeat(TEXT_MAX));
    let reply = header(7, 0).reply(rpc::frame::Status::Ok).with_payload(&xml.encode());
    let mut client = Client::new(Limits::default(), START);
    client.call(&Call::GetCapabilities).unwrap();
    let most = taken(|| reply.chunks(64 << 10).for_each(|piece| client.push(piece, START)));
    assert!(client.event().is_some());
    assert!(most <= 4 * reply.len(), "{most} bytes for {}", reply.len());
}
