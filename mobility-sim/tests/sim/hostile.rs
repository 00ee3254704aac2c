//! Peers that say what nobody says then: phases out of order, twice, after the end (b15). Nothing starts,
//! nothing is ended, nothing is left, and the next migration goes as if nothing had been.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use causeway_mobility::libvirt::Endpoint;
use causeway_mobility::libvirt::client::Daemon;
use causeway_mobility::net::{Carries, Net};
use causeway_mobility::wan::message::{
    self, Carried, Decided, Decision, Leaving, Message, Param, ParamValue, Purpose, Token,
};
use causeway_mobility::wan::{self, Control};
use handover::SigningKey;
use model::{Power, VmId};
use rpc::flags::Flags;
use rpc::params::{Name, Params};
use rpc::procedures::{Call, Finish, Prepare, Prepared, Reply};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use transfer::secure::Identity;
use units::{Bytes, Epoch};

use crate::client::{Ended, cookie, definition, ends, ports};
use crate::judge::{Operator, open};
use crate::matrix::BY_LIBVIRTD;
use crate::net::Reach;
use crate::stage::{AGENT, DATA, Stage, UUID, VM, WAN};
use crate::world::{Place, Who, World};

pub const SOON: Duration = Duration::from_secs(90);

/// All sequences of so many at most.
fn sequences<T: Copy>(of: &[T], len: usize) -> Vec<Vec<T>> {
    let mut all = vec![vec![]];
    let mut longest = all.clone();
    for _ in 0..len {
        let longer = |way: &Vec<T>| of.iter().map(|next| [&way[..], &[*next]].concat()).collect();
        longest = longest.iter().flat_map(|way: &Vec<T>| -> Vec<Vec<T>> { longer(way) }).collect();
        all.extend(longest.iter().cloned());
    }
    all
}

pub fn with_stage(play: impl AsyncFnOnce(&mut Stage)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut stage = Stage::set(BY_LIBVIRTD, Vec::new()).await;
        play(&mut stage).await;
    });
}

/// An agent's own.
pub fn identity(world: &World, place: Place) -> Identity {
    let key = std::fs::read(world.agents.state(place).join("key")).unwrap();
    Identity::from_pkcs8(&key).unwrap()
}

/// The next migration is one as any other.
pub async fn next_arrives(stage: &mut Stage, what: &str) {
    stage.play().await;
    let told = stage.world.told.lock().unwrap().clone();
    assert_eq!(stage.ended, Some(Ended::Moved), "{what}: {told:?}");
    let outcome = stage.conclude(Operator::GoesOn).await;
    assert!(stage.violations.is_empty(), "{what}: {:?}", stage.violations);
    assert!(outcome.moved && outcome.deeds.is_empty(), "{what}: {outcome}");
}

/// The VM runs where it was, and nothing of it is elsewhere.
pub fn untouched(world: &World, what: &str) {
    let mut guest = world.guest();
    assert!(guest.violations.is_empty(), "{what}: {:?}", guest.violations);
    assert_eq!(guest.power(Place::East), Power::Running, "{what}");
    assert_eq!(guest.latest(), 1, "{what}: it was stopped and went on");
    assert_eq!(guest.power(Place::West), Power::Absent, "{what}");
    assert!(guest.host(Place::West).volumes.is_empty(), "{what}: volumes are left");
    drop(guest);
    for place in [Place::East, Place::West] {
        assert_eq!(open(world, place), [], "{what}: not settled at {place}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Says {
    Prepare,
    /// All of memory and disks, made up.
    Data,
    Finish,
    Cancelled,
    Leave,
}

async fn say(agent: &Daemon, reach: &Reach, says: Says, prepared: &mut Option<Prepared>) {
    let flags = Flags::LIVE | Flags::PEER2PEER | Flags::NON_SHARED_DISK;
    let mut params = Params::new();
    params.replace(&Name::DESTINATION_XML, &*definition()).unwrap();
    let finish = |cancelled| {
        let mut params = params.clone();
        params.replace(&Name::DESTINATION_NAME, VM).unwrap();
        Call::Finish(Finish { params, cookie: Vec::new(), flags, cancelled })
    };
    match says {
        Says::Prepare => {
            let call = Call::Prepare(Prepare { params, cookie: cookie(true), flags });
            if let Ok(Reply::Prepared(said)) = agent.call(call, SOON).await {
                *prepared = Some(said);
            }
        }
        Says::Data => {
            let Some((memory, disks)) = prepared.as_ref().map(|said| ports(said).unwrap()) else {
                return;
            };
            for port in [disks, memory] {
                let to = Endpoint::Tcp(SocketAddr::new(DATA, port));
                let Ok(mut stream) = reach.connect(&to, Carries::Data).await else { continue };
                if stream.write_all(&vec![7; 3 * (8 << 10)]).await.is_ok() {
                    // Refused, or not.
                    let _ = timeout(SOON, ends(stream, 1)).await;
                }
            }
        }
        Says::Finish => {
            let answer = agent.call(finish(false), SOON).await;
            assert!(answer.is_err(), "a VM that runs was taken over: {answer:?}");
        }
        Says::Cancelled => drop(agent.call(finish(true), SOON).await),
        Says::Leave => drop(agent.call(Call::UnregisterCloseCallback, SOON).await),
    }
}

#[test]
fn whatever_a_hosts_neighbour_says_a_vm_that_runs_goes_on_there() {
    use Says::{Cancelled, Data, Finish, Leave, Prepare};
    for way in sequences(&[Prepare, Data, Finish, Cancelled, Leave], 3) {
        with_stage(async |stage| {
            let who = stage.world.begins(Who::Client);
            let reach = Reach { world: Arc::clone(&stage.world), who };
            let agent = Daemon::open(&reach, &Endpoint::Tcp(AGENT)).await.unwrap();
            let mut prepared = None;
            for says in &way {
                say(&agent, &reach, *says, &mut prepared).await;
            }
            assert!(prepared.is_some() || !matches!(way.first(), Some(Prepare)), "{way:?}");
            drop(agent);
            stage.settle().await;
            untouched(&stage.world, &format!("{way:?}"));
        });
    }
    // Prepared, all sent, finished: and then once more, by somebody who means it.
    with_stage(async |stage| {
        let who = stage.world.begins(Who::Client);
        let reach = Reach { world: Arc::clone(&stage.world), who };
        let agent = Daemon::open(&reach, &Endpoint::Tcp(AGENT)).await.unwrap();
        let mut prepared = None;
        for says in [Prepare, Data, Finish, Finish, Prepare, Cancelled] {
            say(&agent, &reach, says, &mut prepared).await;
        }
        drop(agent);
        stage.settle().await;
        untouched(&stage.world, "before another one");
        next_arrives(stage, "after all of it").await;
    });
}

#[derive(Clone, Copy, Debug)]
pub enum Tells {
    Prepare,
    Finish,
    Grant,
    Revoke,
    /// The same migration once more, on another line.
    Again,
}

pub fn message(tells: Tells) -> Message {
    let vm = VmId(UUID.parse().unwrap());
    let text =
        |cookie: Vec<u8>| String::from_utf8(cookie).unwrap().trim_end_matches('\0').to_owned();
    match tells {
        Tells::Prepare | Tells::Again => Message::Prepare(message::Prepare {
            leaving: Leaving {
                vm,
                name: VM.to_owned(),
                began_ms: 1,
                key: SigningKey::from_bytes(&[7; 32]).verifying_key().into(),
                last: Epoch(0),
            },
            xml: definition(),
            cookie: text(cookie(true)),
            flags: (Flags::LIVE | Flags::NON_SHARED_DISK).0,
            params: Vec::new(),
        }),
        Tells::Finish => Message::Finish(message::Finish {
            carried: Carried { memory: Bytes(1), disks: Bytes(1) },
            cookie: String::new(),
            flags: Flags::LIVE.0,
            params: vec![Param {
                field: "destination_name".to_owned(),
                value: ParamValue::Text(VM.to_owned()),
            }],
        }),
        Tells::Grant => Message::Decide(Decision::Grant { fence: "63617573".to_owned() }),
        Tells::Revoke => Message::Decide(Decision::Revoke),
    }
}

#[test]
fn whatever_another_agent_tells_nothing_starts_and_nothing_is_left() {
    use Tells::{Again, Finish, Grant, Prepare, Revoke};
    for way in sequences(&[Prepare, Finish, Grant, Revoke, Again], 3) {
        with_stage(async |stage| {
            let world = Arc::clone(&stage.world);
            // Not the source's agent, with its key.
            let reach = Reach { world: Arc::clone(&world), who: world.begins(Who::Client) };
            let (me, west) =
                (identity(&world, Place::East), identity(&world, Place::West).public());
            let id: units::MigrationId = "native-7".parse().unwrap();
            let line = async |purpose| {
                let whom = (WAN, west);
                Control::new(wan::dial(&reach, whom, &me, purpose).await.unwrap())
            };
            let begins = || Purpose::Migration { id: id.clone(), token: Token::new([7; 16]) };
            let mut control = line(begins()).await;
            for tells in &way {
                if matches!(tells, Again) {
                    control = line(begins()).await;
                }
                if let Ok(Message::Decided(decided)) = control.ask(message(*tells), SOON).await {
                    assert!(!matches!(decided, Decided::Granted { .. }), "{way:?}");
                }
            }
            drop(control);
            let mut control = line(Purpose::Decision { id: id.clone() }).await;
            let asked = control.ask(message(Grant), SOON).await;
            assert!(!matches!(asked, Ok(Message::Decided(Decided::Granted { .. }))), "{way:?}");
            drop(control);
            stage.settle().await;
            untouched(&world, &format!("{way:?}"));
        });
    }
}
