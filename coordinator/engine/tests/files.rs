//! Every n-th system call on real files of the ledgers fails, n = 1, 2, … until none is left to fail.
//!
//! This program runs itself again under `strace`, which answers one call of the kernel's in its place:
//! a write, a sync or a rename that fails with EIO or ENOSPC. Whatever the process had said it did
//! before is there when it is started again, and then it comes to its end. (Short writes and torn tails
//! are `journal::faulty`'s: strace cannot do half of a call.)

#![expect(clippy::unwrap_used, reason = "a test helper that fails fails its test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use engine::custody::{Custody, CustodyError, CustodyOf, Folder, Papers, mark_seen};
use handover::{ContentBasis, DestinationState, Identity, SigningKey, SourceRequest, SourceState};
use journal::StoreId;
use model::{SiteName, VmId};
use site::{FenceStage, Site};
use site_memory::{Seed, World};
use units::{Digest, Epoch};

/// What is answered in the kernel's place.
const FAULTS: [(&str, &str); 8] = [
    ("write", "EIO"),
    ("write", "ENOSPC"),
    ("pwrite64", "EIO"),
    ("pwrite64", "ENOSPC"),
    ("fsync", "EIO"),
    ("fdatasync", "EIO"),
    ("rename", "EIO"),
    ("mkdir", "ENOSPC"),
];
/// The same in every process.
const VM: VmId = VmId(uuid::Uuid::from_u128(7));
/// Exit codes of the process: it has come so far ...
const STEPS: u8 = 5;
/// ... and this much more says that it was stopped there.
const STOPPED: u8 = 100;

fn main() -> ExitCode {
    match std::env::args().collect::<Vec<_>>().as_slice() {
        [_, verb, dir, done] if verb == "keep" => keep(Path::new(dir), done.parse().unwrap()),
        _ => every_nth_call_fails(),
    }
}

fn every_nth_call_fails() -> ExitCode {
    let mut tried = BTreeMap::new();
    for (call, error) in FAULTS {
        for nth in 1.. {
            let dir = tempfile::tempdir().unwrap();
            let fault = format!("inject={call}:error={error}:when={nth}");
            let trace = format!("trace={call}");
            let mut strace = Command::new("strace");
            strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &fault]);
            let (reached, stopped) = run(strace.arg(std::env::current_exe().unwrap()), &dir, 0);
            if !stopped {
                if !was_called(call, nth) {
                    tried.insert((call, error), nth - 1);
                    break;
                }
                // A folder that is there needs not be made; every other failure stops the process.
                assert_eq!(call, "mkdir", "{fault} was passed over");
            }
            let again = &mut Command::new(std::env::current_exe().unwrap());
            let (ended, stopped) = run(again, &dir, reached);
            assert!(!stopped && ended == STEPS, "after {fault} it came to {reached}, then {ended}");
        }
    }
    println!("the n-th call failed, for every n, and nothing was lost: {tried:?}");
    let real = ["pwrite64", "fsync", "fdatasync", "rename", "mkdir"];
    for call in real {
        assert!(tried.iter().any(|((tried, _), n)| *tried == call && *n > 0), "no {call} was made");
    }
    ExitCode::SUCCESS
}

/// Does a process that nothing is done to make so many of these calls?
fn was_called(call: &str, nth: usize) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("calls");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", &format!("trace={call}"), "-o"]).arg(&log);
    run(strace.arg(std::env::current_exe().unwrap()), &dir, 0);
    let calls = std::fs::read_to_string(log).unwrap();
    calls.lines().filter(|line| line.contains(&format!("{call}("))).count() >= nth
}

/// How far the process came that was to find `done` steps done, and whether something stopped it.
fn run(command: &mut Command, dir: &tempfile::TempDir, done: u8) -> (u8, bool) {
    let ledgers = dir.path().join("ledgers");
    let output = command.arg("keep").arg(&ledgers).arg(done.to_string()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code().unwrap_or_else(|| panic!("killed: {text}"));
    let code = u8::try_from(code).unwrap();
    let (stopped, reached) = (code >= STOPPED, code % STOPPED);
    assert!(reached <= STEPS && !text.contains("panicked"), "exit {code}: {text}");
    assert!(reached >= done, "{done} steps were said to be done, and {reached} are left: {text}");
    (reached, stopped)
}

/// The process: a fence is begun and made, called off, and released. `done` steps of it are behind.
fn keep(dir: &Path, done: u8) -> ExitCode {
    let mut reached = 0;
    // Without drivers of its own, which would write too.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let ended = runtime.block_on(steps(dir, done, &mut reached));
    if let Err(error) = &ended {
        let error = units::chain(error);
        eprintln!("stopped after {reached}: {error}");
        return ExitCode::from(STOPPED + reached);
    }
    ExitCode::from(reached)
}

async fn steps(dir: &Path, done: u8, reached: &mut u8) -> Result<(), CustodyError> {
    let (world, vm) = world();
    let [east, west] = sites();
    let mut custody = custody(&world, dir, vm)?;
    let epoch = Epoch(1);
    let record = world.site(&east).fence_capture(vm, FenceStage::Definition).await.unwrap();
    let content = [Digest([1; 32])];
    let at_start = far(&custody, epoch);
    assert!(at_start >= done, "panicked: {done} steps were said to be done, and {at_start} are");
    if at_start < 1 {
        custody.open_attempt(vm, &Papers::default()).await?;
    }
    *reached = 1;
    if at_start < 2 {
        custody.fence_intent(epoch, record.clone(), &content).await?;
    }
    *reached = 2;
    // What undoes it is what was there before it, whoever asks and when.
    let kept = custody.unfence_record(epoch, FenceStage::Definition).await?;
    assert_eq!(kept, Some(record), "panicked: what undoes the fence");
    if at_start < 3 {
        // A process that was started since does not believe a fence that it did not begin.
        let begun_here = at_start < 2;
        if begun_here {
            custody.fenced(epoch, "by a test", &content, ContentBasis::Drained).await?;
        }
    }
    *reached = 3;
    if at_start < 4 {
        let mark = mark_seen(&world.site(&west), vm).await;
        custody.revoke(epoch, &mark, None).await?;
    }
    *reached = 4;
    let DestinationState::Revoked(receipt) = custody.destination_state(epoch) else {
        panic!("nothing is revoked")
    };
    custody.source(epoch, SourceRequest::Release(receipt)).await?;
    custody.source(epoch, SourceRequest::Settled).await?;
    *reached = 5;
    Ok(())
}

/// How many steps the ledgers have.
fn far(custody: &Custody, epoch: Epoch) -> u8 {
    use {DestinationState as D, SourceState as S};
    match (custody.source_state(epoch), custody.destination_state(epoch)) {
        (S::Released { settled: true }, _) => 5,
        (_, D::Revoked(_)) => 4,
        (S::Fenced(_), _) => 3,
        (S::Fencing, _) => 2,
        (S::Known, D::Known) => 1,
        _ => 0,
    }
}

fn sites() -> [SiteName; 2] {
    ["east".parse().unwrap(), "west".parse().unwrap()]
}

/// Sites that keep nothing from one process to the next: what counts is on the disk.
fn world() -> (World, VmId) {
    let world = World::new();
    let [east, west] = sites();
    world.site(&east);
    world.site(&west);
    let vm = world.seed(&east, Seed::new("web1").disks(&[4096]).with(|vm| vm.id = VM));
    (world, vm)
}

fn custody(world: &World, dir: &Path, vm: VmId) -> Result<Custody, CustodyError> {
    let [east, west] = sites();
    let key = |n: u8| SigningKey::from_bytes(&[n; 32]);
    let identity = |site: &SiteName, own: u8, peer: &SiteName, other: u8| Identity {
        install: "test".parse().unwrap(),
        site: site.as_str().parse().unwrap(),
        key: Some(key(own)),
        pinned: BTreeMap::from([(peer.as_str().parse().unwrap(), key(other).verifying_key())]),
        former: BTreeMap::new(),
    };
    let of = CustodyOf {
        source: identity(&east, 1, &west, 2),
        destination: identity(&west, 2, &east, 1),
        at_source: Arc::new(world.site(&east)),
        at_destination: Arc::new(world.site(&west)),
        vm: vm.to_string().parse().unwrap(),
        ids: [StoreId([1; 16]), StoreId([2; 16])],
        plan: Digest([7; 32]),
    };
    let folder = Folder { path: dir.to_owned(), vm: of.vm.clone() };
    Custody::open(Box::new(folder), of)
}
