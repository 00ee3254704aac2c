//! What is thrown at an agent's own doors: lengths that are no lengths, calls that nobody makes then, crowds. Nothing
//! of it stops the agent, touches the VM or stands in the next migration's way.

use std::sync::Arc;
use std::time::Duration;

use causeway_mobility::libvirt::Endpoint;
use causeway_mobility::net::{Carries, Net};
use causeway_mobility::wan::message::{
    Door, HELLO_MAX, Hello, MESSAGE_MAX, Message, Prepare as Coming, Purpose, Token, VERSION,
};
use causeway_mobility::wan::{self, Control};
use rpc::flags::Flags;
use rpc::frame::{Decoder, FRAME_MAX, Header, Kind, Program, Status};
use rpc::params::{Name, Params};
use rpc::procedures::{Call, Finish, Prepare};
use site::ByteStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use transfer::secure::{self, Identity, Trust};
use units::Epoch;

use crate::client::{cookie, definition};
use crate::hostile::{SOON, Tells, identity, message, next_arrives, untouched, with_stage};
use crate::net::Reach;
use crate::stage::{AGENT, Stage, VM, WAN};
use crate::world::{Place, Who};

/// Longer than an agent waits for anything that was begun at its door.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an agent makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Makes {
    /// It closes the connection, by then at the latest.
    Closes,
    /// It answers with an error.
    Refuses,
    /// Both.
    RefusesAndCloses,
    /// It waits for the rest.
    Waits,
}

/// What it said before is not an answer to this.
async fn throw<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Makes {
    // Closed before all of it has come, or not read any more.
    let _ = timeout(PATIENCE, stream.write_all(bytes)).await;
    let mut decoder = Decoder::new(FRAME_MAX);
    let mut buffer = vec![0; 64 << 10];
    let closed = loop {
        match timeout(PATIENCE, stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => break true,
            Ok(Ok(len)) => decoder.push(&buffer[..len]),
            Err(_) => break false,
        }
    };
    let mut said = std::iter::from_fn(|| decoder.next_frame().unwrap_or_default());
    let refused = said.any(|frame| frame.header.status == Status::Error);
    match (refused, closed) {
        (true, true) => Makes::RefusesAndCloses,
        (true, false) => Makes::Refuses,
        (false, true) => Makes::Closes,
        (false, false) => Makes::Waits,
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn header(procedure: i32, serial: u32) -> Header {
    let (program, kind, status) = (Program::Remote, Kind::Call, Status::Ok);
    Header { program, procedure, kind, serial, status }
}

fn framed(serial: u32, call: &Call) -> Vec<u8> {
    header(call.procedure().number(), serial).with_payload(&call.encode())
}

const FLAGS: Flags = Flags(Flags::LIVE.0 | Flags::PEER2PEER.0 | Flags::NON_SHARED_DISK.0);

fn prepare(xml: &str, cookie: Vec<u8>) -> Call {
    let mut params = Params::new();
    params.replace(&Name::DESTINATION_XML, xml).unwrap();
    Call::Prepare(Prepare { params, cookie, flags: FLAGS })
}

fn finish() -> Call {
    let mut params = Params::new();
    params.replace(&Name::DESTINATION_NAME, VM).unwrap();
    Call::Finish(Finish { params, cookie: Vec::new(), flags: FLAGS, cancelled: false })
}

/// Elements in elements.
fn deep(levels: usize) -> String {
    format!("<domain>{}{}</domain>", "<a>".repeat(levels), "</a>".repeat(levels))
}

const GROWS: &str = "<!DOCTYPE domain [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>\
    <domain><name>&b;&b;&b;</name></domain>";

type Bomb = (&'static str, Vec<u8>, Makes);

/// By whoever has not opened a connection of libvirt's.
fn at_the_hosts_door() -> Vec<Bomb> {
    use Makes::{Closes, RefusesAndCloses};
    vec![
        ("nothing", Vec::new(), Closes),
        ("a frame of 4 GiB", words(&[u32::MAX]), Closes),
        ("a frame of 32 MiB", words(&[32 << 20]), Closes),
        ("a frame that is shorter than its header", words(&[3]), Closes),
        ("the beginning of a frame", words(&[100, 0x2000_8086]), Closes),
        ("zeros", vec![0; 64 << 10], Closes),
        ("garbage", (0..=255).cycle().take(1 << 20).collect(), Closes),
        ("another protocol", b"GET / HTTP/1.1\r\nHost: east\r\n\r\n".to_vec(), Closes),
        (
            "a Prepare before the connection is open",
            framed(1, &prepare(&definition(), cookie(true))),
            RefusesAndCloses,
        ),
        ("a Finish before the connection is open", framed(1, &finish()), RefusesAndCloses),
    ]
}

/// By one who has.
fn at_an_open_door() -> Vec<Bomb> {
    use Makes::{Closes, Refuses, RefusesAndCloses, Waits};
    let stream = Header { kind: Kind::Stream, ..header(303, 1) };
    let reply = header(303, 1).reply(Status::Ok);
    let ping = Header { program: Program::Keepalive, kind: Kind::Message, ..header(1, 0) }
        .with_payload(&[]);
    let calls = |payload: &[u32]| header(303, 1).with_payload(&words(payload));
    let half = [words(&[2 << 20]), vec![0x20; 1 << 20]].concat();
    vec![
        ("a frame of 4 GiB", words(&[u32::MAX]), Closes),
        ("a frame of 32 MiB", words(&[32 << 20]), Closes),
        ("a frame that is a little too long", words(&[(2 << 20) + 1]), Closes),
        ("half of the longest frame", half, Waits),
        ("2^31 parameters", calls(&[1 << 31]), RefusesAndCloses),
        ("parameters that wrap", calls(&[(1 << 31) / 6 + 1, 0, 1, 0]), RefusesAndCloses),
        ("a name of 2^31 bytes", calls(&[1, 1 << 31]), RefusesAndCloses),
        ("a text of 4 GiB", calls(&[1, 0, 7, u32::MAX]), RefusesAndCloses),
        ("a cookie that is said to be too long", calls(&[0, (4 << 20) + 1]), RefusesAndCloses),
        ("a cookie of 3 MiB", framed(1, &prepare(&definition(), vec![b'<'; 3 << 20])), Closes),
        ("a cookie that is none", framed(1, &prepare(&definition(), vec![b'<'; 1 << 20])), Refuses),
        ("a cookie that is no text", framed(1, &prepare(&definition(), vec![0xff; 64])), Refuses),
        ("a definition that is deep", framed(1, &prepare(&deep(200_000), cookie(true))), Refuses),
        ("a definition that grows", framed(1, &prepare(GROWS, cookie(true))), Refuses),
        ("a Finish of nothing", framed(1, &finish()), Refuses),
        ("two of them at once", [framed(1, &finish()), framed(2, &finish())].concat(), Refuses),
        ("a stream", stream.with_payload(&[0; 64]), Closes),
        ("a reply", reply.with_payload(&[0; 64]), Closes),
        ("a procedure that is none", header(i32::MIN, 1).with_payload(&[]), Refuses),
        ("20 000 pings", ping.repeat(20_000), Waits),
    ]
}

/// The same of one with whom a migration begins.
fn amid_a_migration() -> Vec<Bomb> {
    let prepare = |serial| framed(serial, &prepare(&definition(), cookie(true)));
    let finish = |serial| framed(serial, &finish());
    vec![
        ("two Prepares at once", [prepare(1), prepare(2)].concat(), Makes::Refuses),
        ("two calls of one number", [prepare(1), prepare(1)].concat(), Makes::Closes),
        ("a Finish at once", [prepare(1), finish(2)].concat(), Makes::Refuses),
        ("and twice", [prepare(1), finish(2), finish(3)].concat(), Makes::Refuses),
        ("and a frame of 4 GiB", [prepare(1), words(&[u32::MAX])].concat(), Makes::Closes),
    ]
}

fn somebody(stage: &Stage) -> Reach {
    let who = stage.world.begins(Who::Client);
    Reach { world: Arc::clone(&stage.world), who }
}

async fn host(reach: &Reach, opens: bool) -> ByteStream {
    let mut stream = reach.connect(&Endpoint::Tcp(AGENT), Carries::Calls).await.unwrap();
    if opens {
        let open = Call::Open { name: Some("qemu:///system".to_owned()), flags: 0 };
        stream.write_all(&framed(0, &open)).await.unwrap();
        let len = timeout(PATIENCE, stream.read_u32()).await.expect("it is heard").unwrap();
        let mut opened = vec![0; usize::try_from(len).unwrap() - 4];
        stream.read_exact(&mut opened).await.unwrap();
    }
    stream
}

#[test]
fn what_a_host_throws_at_an_agent_does_not_stop_it() {
    let closed = at_the_hosts_door().into_iter().map(|bomb| (false, bomb));
    let open = at_an_open_door().into_iter().chain(amid_a_migration()).map(|bomb| (true, bomb));
    for (opens, (what, bytes, makes)) in closed.chain(open) {
        with_stage(async |stage| {
            let mut stream = host(&somebody(stage), opens).await;
            assert_eq!(throw(&mut stream, &bytes).await, makes, "{what}");
            drop(stream);
            stage.settle().await;
            untouched(&stage.world, what);
            next_arrives(stage, what).await;
        });
    }
}

#[test]
fn all_of_it_at_once_does_not_either() {
    with_stage(async |stage| {
        let reach = somebody(stage);
        let mut thrown = Vec::new();
        let bombs = [(false, at_the_hosts_door()), (true, at_an_open_door())];
        for (opens, bombs) in bombs {
            for (_, bytes, _) in bombs {
                let mut stream = host(&reach, opens).await;
                let _ = timeout(Duration::from_secs(1), stream.write_all(&bytes)).await;
                thrown.push(stream);
            }
        }
        // Nobody has let go of anything.
        next_arrives(stage, "all at once").await;
        assert_eq!(thrown.len(), 30);
    });
}

/// Length and words, as agents say them.
fn said(bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).unwrap();
    [&len.to_le_bytes()[..], bytes].concat()
}

fn claims(len: usize) -> Vec<u8> {
    u32::try_from(len).unwrap().to_le_bytes().to_vec()
}

fn hello(version: u16, purpose: Purpose) -> Vec<u8> {
    said(&serde_json::to_vec(&Hello { version, purpose }).unwrap())
}

fn begins() -> Purpose {
    Purpose::Migration { id: "native-7".parse().unwrap(), token: Token::new([7; 16]) }
}

/// By one whose key is not known.
fn at_the_neighbours_door() -> Vec<(&'static str, Vec<u8>)> {
    // TLS: a handshake of 16 MiB, and a record of 64 KiB.
    let handshake = vec![22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff];
    let record = [vec![22, 3, 1, 0xff, 0xff], vec![1; 0xffff]].concat();
    vec![
        ("nothing", Vec::new()),
        ("zeros", vec![0; 64 << 10]),
        ("garbage", (0..=255).cycle().take(1 << 20).collect()),
        ("a handshake of 16 MiB", handshake),
        ("a record of 64 KiB", record),
        ("words without a handshake", hello(VERSION, begins())),
    ]
}

/// By the neighbour itself, or whoever has its key.
fn by_the_neighbour() -> Vec<(&'static str, Vec<u8>)> {
    let token = Token::new([9; 16]);
    let stream = |index| {
        let (token, leads_to) = (token.clone(), Door::Memory);
        hello(VERSION, Purpose::Stream { token, leads_to, index })
    };
    let then = |bytes: Vec<u8>| [hello(VERSION, begins()), bytes].concat();
    vec![
        ("nothing", Vec::new()),
        ("a hello of 4 GiB", claims(0xffff_ffff)),
        ("a hello that is a little too long", claims(HELLO_MAX + 1)),
        ("the beginning of a hello", claims(HELLO_MAX)),
        ("a hello that is none", said(b"{}")),
        ("a hello of nothing", said(b"")),
        ("a hello that is deep", said(&vec![b'['; HELLO_MAX])),
        ("a hello of another version", hello(VERSION + 1, begins())),
        ("a stream of no migration", stream(0)),
        ("the last stream of no migration", stream(u32::MAX)),
        ("templates of no migration", hello(VERSION, Purpose::Templates { token: token.clone() })),
        ("a migration, and nothing", then(Vec::new())),
        ("words of 4 GiB", then(claims(0xffff_ffff))),
        ("words that are a little too many", then(claims(MESSAGE_MAX + 1))),
        ("the beginning of many words", then(claims(MESSAGE_MAX))),
        ("words that are none", then(said(&vec![0xff; 1 << 20]))),
        ("words that are deep", then(said(&vec![b'['; 1 << 20]))),
        ("words of nothing", then(said(b""))),
    ]
}

async fn neighbour(stage: &Stage, reach: &Reach) -> secure::Secured<ByteStream> {
    let stream = reach.connect(&Endpoint::Tcp(WAN), Carries::Words).await.unwrap();
    let (east, west) = (identity(&stage.world, Place::East), identity(&stage.world, Place::West));
    secure::connect(stream, &east, Trust::Only(west.public())).await.unwrap()
}

#[test]
fn what_is_thrown_at_the_door_for_the_other_agent_does_not_stop_it() {
    for (what, bytes) in at_the_neighbours_door() {
        with_stage(async |stage| {
            let reach = somebody(stage);
            let mut stream = reach.connect(&Endpoint::Tcp(WAN), Carries::Words).await.unwrap();
            assert_eq!(throw(&mut stream, &bytes).await, Makes::Closes, "{what}");
            untouched(&stage.world, what);
            next_arrives(stage, what).await;
        });
    }
    with_stage(async |stage| {
        let stream = somebody(stage).connect(&Endpoint::Tcp(WAN), Carries::Words).await.unwrap();
        let west = identity(&stage.world, Place::West).public();
        let stranger = secure::connect(stream, &Identity::generate(), Trust::Only(west)).await;
        if let Ok(mut stranger) = stranger {
            let begins = hello(VERSION, begins());
            assert_eq!(throw(&mut stranger.stream, &begins).await, Makes::Closes);
        }
        untouched(&stage.world, "a stranger");
        next_arrives(stage, "a stranger").await;
    });
}

#[test]
fn what_the_other_agent_throws_does_not_stop_it() {
    for (what, bytes) in by_the_neighbour() {
        with_stage(async |stage| {
            let mut secured = neighbour(stage, &somebody(stage)).await;
            assert_eq!(throw(&mut secured.stream, &bytes).await, Makes::Closes, "{what}");
            stage.settle().await;
            untouched(&stage.world, what);
            next_arrives(stage, what).await;
        });
    }
}

#[test]
fn a_vm_that_no_host_could_take_is_refused_to_the_other_agent() {
    type Change = fn(&mut Coming);
    let changes: [(&str, Change); 8] = [
        ("a cookie of 5 MiB", |coming| coming.cookie = " ".repeat(5 << 20)),
        ("a definition of 5 MiB", |coming| coming.xml = " ".repeat(5 << 20)),
        ("a definition that is deep", |coming| coming.xml = deep(200_000)),
        ("a definition that grows", |coming| coming.xml = GROWS.to_owned()),
        ("every flag", |coming| coming.flags = u32::MAX),
        ("an attempt after which there is none", |coming| coming.leaving.last = Epoch(u64::MAX)),
        ("another VM in its papers", |coming| coming.leaving.name = "web2".to_owned()),
        ("a name of 1 MiB", |coming| coming.leaving.name = "x".repeat(1 << 20)),
    ];
    for (what, change) in changes {
        with_stage(async |stage| {
            let reach = somebody(stage);
            let [east, west] = [Place::East, Place::West].map(|it| identity(&stage.world, it));
            let line = wan::dial(&reach, (WAN, west.public()), &east, begins()).await.unwrap();
            let mut control = Control::new(line);
            let Message::Prepare(mut coming) = message(Tells::Prepare) else { panic!() };
            change(&mut coming);
            let answer = control.ask(Message::Prepare(coming), SOON).await.unwrap();
            assert!(matches!(answer, Message::Failed(_)), "{what}: {answer:?}");
            drop(control);
            stage.settle().await;
            untouched(&stage.world, what);
            next_arrives(stage, what).await;
        });
    }
}

/// More than either door has places for.
const CROWD: usize = 300;

/// As many as are let in of those that come one after the other.
async fn crowd(reach: &Reach, at: Endpoint, carries: Carries) -> Vec<ByteStream> {
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.extend(reach.connect(&at, carries).await.ok());
        // Whoever is there hears of it.
        sleep(Duration::from_millis(1)).await;
    }
    crowd
}

#[test]
fn a_crowd_that_says_nothing_is_sent_away() {
    let doors = [(AGENT, Carries::Calls, 256), (WAN, Carries::Words, 64)];
    for (at, carries, places) in doors {
        with_stage(async |stage| {
            let crowd = crowd(&somebody(stage), Endpoint::Tcp(at), carries).await;
            assert!(crowd.len() > places, "{}", crowd.len());
            // All who were let in and those who waited for that, a few rounds of 30 s each.
            sleep(PATIENCE * 3).await;
            untouched(&stage.world, "a crowd");
            next_arrives(stage, "a crowd").await;
            drop(crowd);
        });
    }
}

/// They have opened their connections, and ask for nothing, not for keepalive either.
#[test]
fn hosts_that_want_nothing_do_not_keep_their_places() {
    with_stage(async |stage| {
        let reach = somebody(stage);
        let mut idle = Vec::new();
        for _ in 0..256 {
            idle.push(host(&reach, true).await);
        }
        sleep(PATIENCE * 6).await;
        next_arrives(stage, "hosts that want nothing").await;
        drop(idle);
    });
}

#[test]
fn hosts_that_came_and_went_leave_their_places() {
    with_stage(async |stage| {
        let reach = somebody(stage);
        for _ in 0..CROWD {
            drop(host(&reach, true).await);
        }
        untouched(&stage.world, "hosts that went");
        next_arrives(stage, "hosts that went").await;
    });
}
