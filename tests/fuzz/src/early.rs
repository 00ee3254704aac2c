//! A hypervisor's connection to a far disk, of which writes are acknowledged at once:
//! [`causeway_mobility::relay::Early`]. Whatever either end says, nothing more is kept than what it says that it
//! keeps; what goes on the line is as long as what came; and who writes as a client does is not told that
//! anything failed that did not.

use causeway_mobility::relay::Early;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split};
use tokio::runtime::Builder;
use tokio::task::yield_now;

use crate::memory::bounded;
use crate::script::Script;

const MEMORY: usize = 8 << 20;
const ACTS_MAX: usize = 400;
const BEGINS: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\0";
const GREETING: &[u8] =
    b"NBDMAGICIHAVEOPT\0\x03\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x01\0\0\0\0";

pub fn check(bytes: &[u8]) {
    let script = Script(bytes);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("the machine has room for it");
    bounded(MEMORY, || runtime.block_on(talk(script)));
}

async fn talk(mut script: Script<'_>) {
    let (mut client, local) = duplex(64 << 10);
    let (mut out, mut back) = split(Early::new(local));
    let kinds = script.byte();
    if kinds & 1 == 0 {
        let _taken = tokio::join!(client.write_all(BEGINS), back.write_all(GREETING));
    }
    let (mut said, mut gone) = (if kinds & 1 == 0 { BEGINS.len() } else { 0 }, 0);
    let mut number = 0_u64;
    for _ in 0..ACTS_MAX {
        let Some(act) = script.next() else { break };
        let bytes = match act % 8 {
            0..=2 => request(&mut script),
            3 => script.bytes().to_vec(),
            4 | 5 => {
                let which = if act & 64 == 0 { number } else { u64::from(script.byte()) };
                number += 1;
                let answered = reply(which, &mut script);
                if back.write_all(&answered).await.is_err() {
                    return;
                }
                continue;
            }
            6 => {
                let noise = script.bytes();
                if back.write_all(noise).await.is_err() {
                    return;
                }
                continue;
            }
            _ => {
                let mut piece = vec![0; 1 + usize::from(script.short()) % 5000];
                tokio::select! {
                    biased;
                    read = out.read(&mut piece) => match read {
                        Ok(len) => gone += len,
                        Err(_) => return,
                    },
                    () = yield_now() => {}
                }
                tokio::select! {
                    biased;
                    read = client.read(&mut piece) => drop(read),
                    () = yield_now() => {}
                }
                assert!(gone <= said, "{gone} of {said} bytes went");
                continue;
            }
        };
        // As much as there is room for; nobody waits for more.
        tokio::select! {
            biased;
            written = client.write(&bytes) => said += written.unwrap_or(0),
            () = yield_now() => {}
        }
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
