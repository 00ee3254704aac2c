//! Agents and hosts that lie about how much there is. The VM goes on where it was, nothing is left, and who is told
//! reads what does not fit; the next migration arrives.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use causeway_mobility::libvirt::Endpoint;
use causeway_mobility::libvirt::client::Daemon;
use causeway_mobility::net::{Carries, Net};
use causeway_mobility::wan::message::{Carried, Message, Purpose};
use causeway_mobility::wan::{self, Control, WanError};
use model::Power;
use rpc::flags::Flags;
use rpc::params::{Name, Params};
use rpc::procedures::{Call, Prepare};
use site::ByteStream;
use tokio::io::copy_bidirectional;
use units::Bytes;

use crate::client::{Ended, cookie, definition};
use crate::hostile::{SOON, identity, next_arrives, untouched, with_stage};
use crate::judge::Operator;
use crate::net::Reach;
use crate::stage::{AGENT, Stage, WAN};
use crate::world::{Place, Who, World};

/// Where the destination's agent is, once somebody stands before it.
const BEHIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 3)), 7443);

type Lie = Box<dyn Fn(&mut Message) + Send + Sync>;

/// Somebody with both agents' keys, who passes on what they say, changed, until `stops`.
struct Liar {
    world: Arc<World>,
    who: Who,
    lie: Lie,
    stops: Arc<AtomicBool>,
}

impl Liar {
    /// Between the two.
    fn begins(world: &Arc<World>, lie: Lie) -> Arc<AtomicBool> {
        let stops = Arc::new(AtomicBool::new(false));
        let who = world.alive(|no| Who::Agent(Place::West, no)).unwrap();
        world.wires.moves(WAN, BEHIND);
        let liar = Self { world: Arc::clone(world), who, lie, stops: Arc::clone(&stops) };
        let door = liar.reach().listen(&Endpoint::Tcp(WAN), Carries::Words).unwrap();
        let liar = Arc::new(liar);
        tokio::spawn(async move {
            while let Ok((stream, _)) = door.accept().await {
                let liar = Arc::clone(&liar);
                // Whoever it comes from or goes to has ended it.
                tokio::spawn(async move { drop(liar.pass_on(stream).await) });
            }
        });
        stops
    }

    fn reach(&self) -> Reach {
        Reach { world: Arc::clone(&self.world), who: self.who }
    }

    async fn pass_on(&self, stream: ByteStream) -> Result<(), WanError> {
        let [east, west] = [Place::East, Place::West].map(|place| identity(&self.world, place));
        let (mut near, hello) = wan::answer(stream, east.public(), &west).await?;
        let (purpose, whom) = (hello.purpose, (BEHIND, west.public()));
        let mut far = wan::dial(&self.reach(), whom, &east, purpose.clone()).await?;
        if matches!(purpose, Purpose::Stream { .. } | Purpose::Templates { .. }) {
            let copied = copy_bidirectional(&mut near.stream, &mut far.stream).await;
            return copied.map(drop).map_err(WanError::Broken);
        }
        let (mut near, mut far) = (Control::new(near), Control::new(far));
        loop {
            tokio::select! {
                said = near.hear() => far.say(self.changed(said?)).await?,
                said = far.hear() => near.say(self.changed(said?)).await?,
            }
        }
    }

    fn changed(&self, mut message: Message) -> Message {
        if !self.stops.load(Ordering::Relaxed) {
            (self.lie)(&mut message);
        }
        message
    }
}

/// One migration with that lie, and one without.
fn is_found_out(lie: Lie, said: &str) {
    with_stage(async |stage| {
        let stops = Liar::begins(&stage.world, lie);
        stage.play().await;
        is_told(stage, said);
        stays(stage, said).await;
        stops.store(true, Ordering::Relaxed);
        next_arrives(stage, said).await;
    });
}

fn is_told(stage: &Stage, said: &str) {
    let told = stage.world.told.lock().unwrap().clone();
    assert!(matches!(&told[..], [told] if told.contains(said)), "{said}: {told:?}");
    assert_eq!(stage.ended, Some(Ended::Stays), "{said}");
}

/// Nobody has to do anything for that.
async fn stays(stage: &mut Stage, what: &str) {
    let outcome = stage.conclude(Operator::GoesOn).await;
    assert!(stage.violations.is_empty(), "{what}: {:?}", stage.violations);
    assert!(!outcome.moved && outcome.deeds.is_empty(), "{what}: {outcome}");
    assert_eq!(stage.world.guest().power(Place::East), Power::Running, "{what}");
    assert_eq!(stage.world.guest().power(Place::West), Power::Absent, "{what}");
}

#[test]
fn a_line_through_somebody_honest_carries_a_migration() {
    with_stage(async |stage| {
        Liar::begins(&stage.world, Box::new(|_| {}));
        next_arrives(stage, "nothing is changed").await;
    });
}

#[test]
fn a_destination_that_has_had_other_bytes_than_left_is_not_handed_the_vm() {
    let finished = |change: fn(&mut Carried)| {
        let lie = move |message: &mut Message| {
            if let Message::Finished(finished) = message {
                change(&mut finished.carried);
            }
        };
        Box::new(lie) as Lie
    };
    for (lie, said) in [
        (finished(|carried| carried.memory.0 -= 1), "of memory left, and"),
        (finished(|carried| carried.memory = Bytes(u64::MAX)), "and 18446744073709551615 arrived"),
        (finished(|carried| carried.disks = Bytes(0)), "and 0 arrived"),
        (finished(|carried| carried.disks.0 += 1), "of disks left, and"),
    ] {
        is_found_out(lie, said);
    }
}

#[test]
fn a_source_that_has_sent_other_bytes_than_came_does_not_move_its_vm() {
    let finish = |change: fn(&mut Carried)| {
        let lie = move |message: &mut Message| {
            if let Message::Finish(finish) = message {
                change(&mut finish.carried);
            }
        };
        Box::new(lie) as Lie
    };
    for (lie, said) in [
        (finish(|carried| carried.memory.0 += 1), "of memory left the source, and"),
        (finish(|carried| carried.memory = Bytes(0)), "of memory left the source, and"),
        (finish(|carried| carried.disks = Bytes(u64::MAX)), "of disks left the source, and"),
        (finish(|carried| carried.disks.0 -= 1), "of disks left the source, and"),
    ] {
        is_found_out(lie, said);
    }
}

#[test]
fn a_destination_whose_cookie_is_none_is_not_sent_the_vm() {
    let prepared = |cookie: fn(&str) -> String| {
        let lie = move |message: &mut Message| {
            if let Message::Prepared(prepared) = message {
                prepared.cookie = cookie(&prepared.cookie);
            }
        };
        Box::new(lie) as Lie
    };
    for (lie, said) in [
        (prepared(|cookie| cookie.replace("49153", "0")), "a port that is none"),
        (prepared(|cookie| cookie.replace("49153", "70000")), "a port that is none"),
        (prepared(|_| "<".repeat(1 << 20)), "cookie cannot be read"),
        (prepared(|_| " ".repeat(5 << 20)), "bytes of XML, 4194304 are read at most"),
    ] {
        is_found_out(lie, said);
    }
}

#[test]
fn a_disk_that_does_not_say_that_it_has_what_was_written_does_not_have_it() {
    with_stage(async |stage| {
        stage.world.forgetful.store(true, Ordering::Relaxed);
        stage.play().await;
        is_told(
            stage,
            "writes to disks that have not been answered, and that the source took for done: 1",
        );
        stays(stage, "a forgetful disk").await;
        stage.world.forgetful.store(false, Ordering::Relaxed);
        next_arrives(stage, "a forgetful disk").await;
    });
}

/// What a host says that its disk has, in bytes; `None`: it may come.
#[test]
fn a_disk_of_a_size_that_no_disk_has_is_refused_and_the_next_vm_arrives() {
    let none = Some("a disk that is none");
    let sizes = [
        ("4611686018427387904", Some("the disks may grow to 4.0 EiB")),
        ("18446744073709551615", Some("the disks may grow to 15.9 EiB")),
        ("18446744073709551616", none),
        ("-1", none),
        ("1e6", none),
        ("", none),
        // Nothing of QEMU's is copied to one of another size.
        ("0", Some("vda has no bytes")),
    ];
    for (size, said) in sizes {
        with_stage(async |stage| {
            let who = stage.world.begins(Who::Client);
            let reach = Reach { world: Arc::clone(&stage.world), who };
            let agent = Daemon::open(&reach, &Endpoint::Tcp(AGENT)).await.unwrap();
            let mut params = Params::new();
            params.replace(&Name::DESTINATION_XML, &*definition()).unwrap();
            let honest = String::from_utf8(cookie(true)).unwrap();
            let cookie = honest.replace("capacity='1048576'", &format!("capacity='{size}'"));
            assert_ne!(cookie, honest);
            let flags = Flags::LIVE | Flags::PEER2PEER | Flags::NON_SHARED_DISK;
            let prepare = Prepare { params, cookie: cookie.into_bytes(), flags };
            let answer = agent.call(Call::Prepare(prepare), SOON).await;
            if let Some(said) = said {
                let refused = answer.unwrap_err().to_string();
                assert!(refused.contains(said), "{size:?}: {refused}");
            }
            drop(agent);
            stage.settle().await;
            untouched(&stage.world, size);
            next_arrives(stage, size).await;
        });
    }
}
