//! A hypervisor's connection to a far disk, of which writes are acknowledged at once:
//! [`causeway_mobility::relay::Early`] at its source, [`causeway_mobility::relay::InOrder`] beside the disk. Whatever
//! either end says, nothing more is kept than what they say that they keep; and no more goes on than came.

use std::sync::Arc;

use causeway_mobility::relay::{Early, InOrder};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, duplex, split};
use tokio::runtime::Builder;
use tokio::task::yield_now;

use crate::memory::bounded;
use crate::script::Script;

const MEMORY: usize = 8 << 20;
const ACTS_MAX: usize = 400;
const BEGINS: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\0";
/// With an export that can flush.
const GREETING: &[u8] =
    b"NBDMAGICIHAVEOPT\0\x03\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c\
    \0\0\0\0\0\0\x40\0\0\0\0\x05\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x01\0\0\0\0";

pub fn check(bytes: &[u8]) {
    let script = Script(bytes);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("the machine has room for it");
    bounded(MEMORY, || runtime.block_on(talk(script)));
}

async fn talk(mut script: Script<'_>) {
    let (near, inner) = duplex(64 << 10);
    let ((near_ear, near_mouth), kinds) = (split(near), script.byte());
    if kinds & 2 == 0 {
        let (out, back) = split(Early::new(inner, Arc::default()));
        between(script, kinds, (near_mouth, near_ear), (back, out)).await;
    } else {
        let (back, out) = split(InOrder::new(inner));
        between(script, kinds, (out, back), (near_mouth, near_ear)).await;
    }
}

/// What the client says and hears, and what the server does.
async fn between(
    mut script: Script<'_>,
    kinds: u8,
    (mut client_says, mut client_hears): (impl AsyncWrite + Unpin, impl AsyncRead + Unpin),
    (mut server_says, mut server_hears): (impl AsyncWrite + Unpin, impl AsyncRead + Unpin),
) {
    let (mut said, mut gone) = (0, 0);
    if kinds & 1 == 0 {
        let _taken = tokio::join!(client_says.write_all(BEGINS), server_says.write_all(GREETING));
        said = BEGINS.len();
    }
    let mut number = 0_u64;
    for _ in 0..ACTS_MAX {
        let Some(act) = script.next() else { break };
        match act % 8 {
            few @ 0..=3 => {
                let bytes = if few == 3 { script.bytes().to_vec() } else { request(&mut script) };
                match some_to(&mut client_says, &bytes).await {
                    Some(len) => said += len,
                    None => return,
                }
            }
            few @ 4..=6 => {
                let which = if act & 64 == 0 { number } else { u64::from(script.byte()) };
                let bytes = if few == 6 {
                    script.bytes().to_vec()
                } else {
                    number += 1;
                    reply(which, &mut script)
                };
                if some_to(&mut server_says, &bytes).await.is_none() {
                    return;
                }
            }
            _ => {
                let mut piece = vec![0; 1 + usize::from(script.short()) % 5000];
                match some_of(&mut server_hears, &mut piece).await {
                    Some(len) => gone += len,
                    None => return,
                }
                if some_of(&mut client_hears, &mut piece).await.is_none() {
                    return;
                }
                assert!(gone <= said, "{gone} of {said} bytes went");
            }
        }
    }
}

/// As much as there is room for; nobody waits for more. `None`: it has broken.
async fn some_to(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Option<usize> {
    tokio::select! {
        biased;
        written = to.write(bytes) => written.ok(),
        () = yield_now() => Some(0),
    }
}

async fn some_of(from: &mut (impl AsyncRead + Unpin), piece: &mut [u8]) -> Option<usize> {
    tokio::select! {
        biased;
        read = from.read(piece) => read.ok(),
        () = yield_now() => Some(0),
    }
}

fn request(script: &mut Script<'_>) -> Vec<u8> {
    let kind = script.byte() % 8;
    let length = u32::from(script.short() % 600);
    let mut said = 0x2560_9513_u32.to_be_bytes().to_vec();
    said.extend([0, script.byte() & 1, 0, kind]);
    said.extend(u64::from(script.byte() % 16).to_be_bytes());
    said.extend((u64::from(script.byte()) << (script.byte() % 56)).to_be_bytes());
    said.extend(length.to_be_bytes());
    if kind == 1 {
        said.resize(said.len() + length as usize, 5);
    }
    said
}

fn reply(cookie: u64, script: &mut Script<'_>) -> Vec<u8> {
    match script.byte() % 8 {
        0 => {
            let len = u32::from(script.byte());
            let mut said = 0x668e_33ef_u32.to_be_bytes().to_vec();
            said.extend([0, script.byte() & 1, script.byte() & 0x80, script.byte() % 8]);
            said.extend(cookie.to_be_bytes());
            said.extend(len.to_be_bytes());
            said.resize(said.len() + len as usize, 3);
            said
        }
        few => {
            let error = u32::from(few == 1);
            let mut said = 0x6744_6698_u32.to_be_bytes().to_vec();
            said.extend(error.to_be_bytes());
            said.extend(cookie.to_be_bytes());
            said
        }
    }
}
