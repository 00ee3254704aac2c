//! The libvirtds, as far as a migration goes: what they do when they are called, and what either makes of a
//! migration that was under way when it was killed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use causeway_mobility::libvirt::Endpoint;
use causeway_mobility::net::{Carries, Listener, Net};
use model::Power;
use rpc::error::{Code, Origin, RemoteError};
use rpc::flags::Flags;
use rpc::frame::{Decoder, FRAME_MAX, Frame, Kind, Program, Status};
use rpc::params::Name;
use rpc::procedures::{
    Auth, Begun, Call, Domain as Named, Finish, Finished, Prepare, Prepared, Reply,
};
use site::{ByteStream, StoppedBy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};
use units::Epoch;

use crate::guest::{By, Domain, Job};
use crate::nbd;
use crate::net::Reach;
use crate::stage::{UUID, VM};
use crate::world::{Place, Who, World};

/// Where it is called.
pub const fn at(place: Place) -> SocketAddr {
    let host = match place {
        Place::East => IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)),
        Place::West => HOST,
    };
    SocketAddr::new(host, 16509)
}

/// `VIR_JOB_WAIT_TIME`
const JOB_WAIT: Duration = Duration::from_secs(30);

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 2));
const MEMORY: u16 = 49152;
const DISKS: u16 = 49153;

const CAPABILITIES: &str = "<capabilities><host><cpu><arch>x86_64</arch></cpu></host>\
    <guest><os_type>hvm</os_type><arch name='x86_64'><emulator>/usr/bin/qemu</emulator>\
    <machine>pc-q35-7.2</machine><domain type='kvm'/></arch></guest></capabilities>";

/// It comes up, and goes on with what it finds.
pub fn start(world: &Arc<World>, place: Place) {
    let who = world.begins(|no| Who::Libvirtd(place, no));
    let is_gone = world.guest().domain(place).is_some_and(|domain| {
        // Why a VM is off is not kept; nor what it held, and looked for.
        (domain.stopped_by, domain.held, domain.awaited) = (None, false, false);
        domain.gone
    });
    if is_gone {
        let reconnected = reconnects(Arc::clone(world), place);
        world.has_task(who, tokio::spawn(reconnected).abort_handle());
    } else {
        recover(world, place);
    }
    if !matches!(who, Who::Libvirtd(_, 1)) {
        world.hit(&format!("{} is back", who.name()));
    }
    let task = tokio::spawn(serve(Arc::clone(world), who, place));
    world.has_task(who, task.abort_handle());
}

/// `qemuProcessReconnect`: until it has found that there is no QEMU, it has the VM for what it was when it was ended.
async fn reconnects(world: Arc<World>, place: Place) {
    const TAKES: Duration = Duration::from_secs(6);
    sleep(TAKES).await;
    recover(&world, place);
    world.ends(place, StoppedBy::Crashed, By::Program);
}

/// `qemuProcessRecoverMigration`: by how far it was.
fn recover(world: &World, place: Place) {
    let job = {
        let mut guest = world.guest();
        let Some(domain) = guest.domain(place) else { return };
        std::mem::replace(&mut domain.job, Job::None)
    };
    match job {
        Job::Incoming => world.ends(place, StoppedBy::Other, By::Program),
        Job::Performs | Job::Confirms { cancelled: true } => world.guest().resumes(place),
        Job::Confirms { cancelled: false } => {
            confirm(world);
        }
        // "third party needs to check what to do next"
        Job::Performed | Job::None | Job::Begun => {}
    }
}

/// The source's VM has moved: it ends here.
pub fn confirm(world: &World) {
    {
        let mut guest = world.guest();
        let whole = guest.has_all_memory(Place::West) || guest.had_accident;
        if guest.has_all_memory(Place::East) && !whole {
            guest.violated("the source ends its VM, and the destination has not all of it");
        }
    }
    world.ends(Place::East, StoppedBy::Migrated, By::Program);
    if world.kind.moves_definition {
        world.guest().undefined(Place::East);
    }
}

async fn serve(world: Arc<World>, who: Who, place: Place) {
    let reach = Reach { world: Arc::clone(&world), who };
    let listener = reach.listen(&Endpoint::Tcp(at(place)), Carries::Calls).unwrap();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let task = tokio::spawn(hear(Arc::clone(&world), who, place, stream));
        world.has_task(who, task.abort_handle());
    }
}

/// One connection. A VM that is on its way in through it ends with it.
async fn hear(world: Arc<World>, who: Who, place: Place, mut stream: ByteStream) {
    let (mut brings, mut holds) = (false, false);
    // Whatever the reason that it ends.
    let _ = calls(&world, (who, place), &mut stream, (&mut brings, &mut holds)).await;
    if holds && let Some(domain) = world.guest().domain(place) {
        domain.held = false;
    }
    let still = |domain: &mut Domain| domain.job == Job::Incoming;
    if brings && world.guest().domain(Place::West).is_some_and(still) {
        world.ends(Place::West, StoppedBy::Other, By::Program);
    }
}

async fn calls(
    world: &Arc<World>,
    who: (Who, Place),
    stream: &mut ByteStream,
    (brings, holds): (&mut bool, &mut bool),
) -> std::io::Result<()> {
    let mut decoder = Decoder::new(FRAME_MAX);
    let mut buffer = vec![0; 64 << 10];
    loop {
        while let Some(Frame { header, payload }) = decoder.next_frame().unwrap() {
            if header.program == Program::Keepalive {
                // A ping; its answer is the next number.
                let mut pong = header;
                pong.procedure = 2;
                if header.procedure == 1 {
                    stream.write_all(&pong.with_payload(&[])).await?;
                }
                continue;
            }
            assert_eq!(header.kind, Kind::Call);
            let call = Call::decode(header.procedure, &payload).unwrap();
            let answer = answer(world, who, call, (brings, holds)).await;
            let frame = match answer {
                Ok(reply) => header.reply(Status::Ok).with_payload(&reply.encode()),
                Err(error) => header.reply(Status::Error).with_payload(error.encode()),
            };
            stream.write_all(&frame).await?;
        }
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            len => decoder.push(&buffer[..len]),
        }
    }
}

async fn answer(
    world: &Arc<World>,
    (who, place): (Who, Place),
    call: Call,
    (brings, holds): (&mut bool, &mut bool),
) -> Result<Reply, RemoteError> {
    let procedure = call.procedure();
    world.at(who, &format!("{} hears: {procedure:?}", who.name())).await;
    world.libvirtd_looks(place).await;
    let answer = match call {
        Call::AuthList => Ok(Reply::AuthList(vec![Auth::None])),
        Call::SupportsFeature(_) => Ok(Reply::Supported(1)),
        Call::GetCapabilities => Ok(Reply::Capabilities(CAPABILITIES.to_owned())),
        Call::LookupByUuid(_) if world.guest().domain(place).is_some() => {
            Ok(Reply::Found(procedure, named()))
        }
        Call::LookupByUuid(_) => Err(no_domain()),
        Call::GetState { .. } => {
            let mut guest = world.guest();
            match guest.shown(place) {
                Power::Running => Ok(Reply::State { state: 1, reason: 1 }),
                Power::Paused if guest.domain(place).is_some_and(|domain| domain.moves) => {
                    Ok(Reply::State { state: 3, reason: 2 })
                }
                Power::Paused => Ok(Reply::State { state: 3, reason: 1 }),
                Power::Off => Ok(Reply::State { state: 5, reason: 0 }),
                Power::Absent => Err(no_domain()),
            }
        }
        // Change protection: it lasts until it is cancelled, or the connection is over.
        Call::Begin(_) => {
            let is_busy = |domain: &mut Domain| domain.job != Job::None;
            let until = Instant::now() + JOB_WAIT;
            while world.guest().domain(place).is_some_and(is_busy) && Instant::now() < until {
                sleep(Duration::from_millis(100)).await;
            }
            let mut guest = world.guest();
            let domain = guest.domain(place);
            match domain.filter(|it| it.power.is_loaded() && it.job == Job::None && !it.held) {
                Some(domain) => {
                    (domain.held, *holds) = (true, true);
                    Ok(Reply::Begun(Begun { cookie: Vec::new(), xml: "<domain/>".to_owned() }))
                }
                None => Err(RemoteError::operation_failed("it does not run, or a job has it")),
            }
        }
        Call::Confirm(_) => {
            if std::mem::take(holds)
                && let Some(domain) = world.guest().domain(place)
            {
                domain.held = false;
            }
            Ok(Reply::Done(procedure))
        }
        Call::Undefine { .. } => {
            world.guest().undefined(Place::West);
            Ok(Reply::Done(procedure))
        }
        Call::Prepare(prepare) => {
            let prepared = prepares(world, &prepare);
            *brings |= prepared.is_ok();
            prepared
        }
        Call::Finish(finish) => finishes(world, &finish),
        _ => Ok(Reply::Done(procedure)),
    };
    world.at(who, &format!("{} has done: {procedure:?}", who.name())).await;
    answer
}

fn no_domain() -> RemoteError {
    RemoteError::new(Code::NO_DOMAIN, Origin::QEMU, "no such domain")
}

fn named() -> Named {
    Named { name: VM.to_owned(), uuid: UUID.parse::<uuid::Uuid>().unwrap().into_bytes(), id: 1 }
}

/// A VM that waits for its memory.
fn prepares(world: &Arc<World>, prepare: &Prepare) -> Result<Reply, RemoteError> {
    let xml: &str = prepare.params.get(&Name::DESTINATION_XML).unwrap();
    let document = roxmltree::Document::parse(xml).unwrap();
    let ours = document
        .descendants()
        .find(|node| node.has_tag_name(("https://causeway.dev/ns/1", "placeholder")));
    let ours = ours.map(|node| {
        let of = |name| node.attribute(name).unwrap();
        (of("migration").parse().unwrap(), Epoch(of("epoch").parse().unwrap()))
    });
    {
        let mut guest = world.guest();
        if guest.power(Place::West).is_loaded() {
            return Err(RemoteError::operation_failed("domain is already active"));
        }
        let domain = Domain {
            power: Power::Paused,
            memory: None,
            ours,
            job: Job::Incoming,
            ..Domain::running(0, false)
        };
        guest.host(Place::West).domain = Some(domain);
    }
    let qemu = world.begins(|no| Who::Qemu(Place::West, no));
    let reach = Reach { world: Arc::clone(world), who: qemu };
    let listen = |port| reach.listen(&Endpoint::Tcp(SocketAddr::new(HOST, port)), Carries::Data);
    let doors = [MEMORY, DISKS].map(|port| listen(port).unwrap());
    let task = tokio::spawn(takes(Arc::clone(world), qemu, doors));
    world.has_task(qemu, task.abort_handle());
    let cookie = format!(
        "<qemu-migration><name>{VM}</name><uuid>{UUID}</uuid><hostname>west-host</hostname>\
         <hostuuid>9a0f1c52-6f2d-4b0e-9d4e-0d5d1f6e3c1b</hostuuid>\
         <nbd port='{DISKS}'><disk target='vda' capacity='1048576'/></nbd></qemu-migration>\0"
    );
    let uri = Some(format!("tcp:west-host:{MEMORY}"));
    Ok(Reply::Prepared(Prepared { cookie: cookie.into_bytes(), uri }))
}

fn finishes(world: &Arc<World>, finish: &Finish) -> Result<Reply, RemoteError> {
    let is_whole = {
        let mut guest = world.guest();
        let disks = guest.host(Place::West).disks;
        let domain = guest.domain(Place::West).filter(|domain| domain.job == Job::Incoming);
        let Some(domain) = domain else {
            return Err(RemoteError::operation_failed("no domain is on its way in"));
        };
        domain.memory.is_some() && domain.memory == disks
    };
    if finish.cancelled || !is_whole {
        world.ends(Place::West, StoppedBy::Other, By::Program);
        return Err(match finish.cancelled {
            true => RemoteError::migrate_finish_ok(),
            false => RemoteError::operation_failed("the migration's stream ended early"),
        });
    }
    let mut guest = world.guest();
    if let Some(domain) = guest.domain(Place::West) {
        domain.job = Job::None;
        domain.persistent = finish.flags.contains(Flags::PERSIST_DEST);
    }
    if !finish.flags.contains(Flags::PAUSED) || world.kind.unheld {
        guest.resumes(Place::West);
    }
    if let Some(domain) = guest.domain(Place::West) {
        domain.poses = world.kind.unheld;
    }
    Ok(Reply::Finished(Finished { domain: named(), cookie: Vec::new() }))
}

/// The destination's QEMU: memory and disks, each with what it amounts to at its end.
async fn takes(world: Arc<World>, qemu: Who, [memory, disks]: [Box<dyn Listener>; 2]) {
    let take = async |door: Box<dyn Listener>| {
        let (mut stream, _) = door.accept().await.ok()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.ok()?;
        let (rest, write) = all.split_last_chunk::<8>()?;
        let (rest, len) = rest.split_last_chunk::<8>()?;
        let whole = u64::from_le_bytes(*len) == rest.len() as u64;
        whole.then(|| (u64::from_le_bytes(*write), stream))
    };
    let disks = async {
        if world.is_forgetful() {
            let (mut stream, _) = disks.accept().await.ok()?;
            world.guest().host(Place::West).disks = nbd::takes(&mut stream).await.ok();
            return None;
        }
        let (write, mut stream) = take(disks).await?;
        if !world.is_dead(qemu) {
            world.guest().host(Place::West).disks = Some(write);
        }
        stream.write_all(b"!").await.ok()
    };
    let memory = async {
        let (write, mut stream) = take(memory).await?;
        if !world.is_dead(qemu)
            && let Some(domain) = world.guest().domain(Place::West)
        {
            domain.memory = Some(write);
        }
        stream.write_all(b"!").await.ok()
    };
    tokio::join!(disks, memory);
    std::future::pending::<()>().await;
}
