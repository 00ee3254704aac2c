//! A client against a real libvirtd.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rpc::client::{Client, Event, Limits};
use rpc::error::{Code, Origin, RemoteError};
use rpc::feature::Feature;
use rpc::flags::Flags;
use rpc::params::{Name, Params};
use rpc::procedures::{Auth, Begin, Call, Confirm, Prepare, Procedure, Reply};

use crate::daemon::Daemon;
use crate::peer::PATIENCE;

struct Connection {
    stream: UnixStream,
    client: Client,
    began: Instant,
}

impl Connection {
    fn to(daemon: &Daemon) -> Self {
        Self::with_limits(daemon, Limits::default())
    }

    fn with_limits(daemon: &Daemon, limits: Limits) -> Self {
        let stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
        stream.set_read_timeout(Some(Duration::from_millis(20))).expect("for a while");
        let began = Instant::now();
        Self { stream, client: Client::new(limits, began.elapsed()), began }
    }

    fn opened(daemon: &Daemon) -> Self {
        let mut connection = Self::to(daemon);
        let name = Some("qemu:///system".to_owned());
        assert_eq!(connection.ask(&Call::AuthList), Ok(Reply::AuthList(vec![Auth::None])));
        let feature = Call::supports(Feature::ProgramKeepalive);
        assert_eq!(connection.ask(&feature), Ok(Reply::Supported(1)));
        let opened = connection.ask(&Call::Open { name, flags: 0 });
        assert_eq!(opened, Ok(Reply::Done(Procedure::Open)));
        connection
    }

    /// One step of reading, writing and waiting.
    fn turn(&mut self) -> Option<Event> {
        let output = self.client.output();
        self.stream.write_all(&output).expect("the daemon reads");
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.client.hang_up(),
            Ok(len) => self.client.push(&bytes[..len], self.began.elapsed()),
            Err(_) => self.client.tick(self.began.elapsed()),
        }
        self.client.event()
    }

    fn event(&mut self) -> Event {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(event) = self.turn() {
                return event;
            }
        }
        panic!("nothing came");
    }

    /// Answers pings while somebody else works.
    fn meanwhile<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let working = scope.spawn(work);
            while !working.is_finished() {
                assert_eq!(self.turn(), None);
            }
            working.join().expect("it does not panic")
        })
    }

    fn ask(&mut self, call: &Call) -> Result<Reply, RemoteError> {
        let called = self.client.call(call).expect("there is room for a call");
        match self.event() {
            Event::Reply { serial, reply } if serial == called => Ok(reply),
            Event::Failed { serial, error } if serial == called => Err(error),
            other => panic!("{other:?} for call {called}"),
        }
    }
}

#[test]
fn a_real_libvirtd_says_who_it_is_and_what_it_does_not_have() {
    let daemon = Daemon::start();
    let mut connection = Connection::opened(&daemon);
    for feature in [
        Feature::MigrationP2p,
        Feature::MigrationV3,
        Feature::MigrationParams,
        Feature::RemoteEventCallback,
        Feature::RemoteCloseCallback,
    ] {
        assert_eq!(connection.ask(&Call::supports(feature)), Ok(Reply::Supported(1)));
    }
    assert_eq!(connection.ask(&Call::GetHostname), Ok(Reply::Hostname("source".to_owned())));
    assert_eq!(connection.ask(&Call::GetType), Ok(Reply::Type("QEMU".to_owned())));
    assert_eq!(connection.ask(&Call::GetUri), Ok(Reply::Uri("qemu:///system".to_owned())));
    assert_eq!(connection.ask(&Call::IsSecure), Ok(Reply::Secure(true)));
    let version = connection.ask(&Call::GetLibVersion);
    assert!(
        matches!(version, Ok(Reply::LibVersion(version)) if version >= 9_000_000),
        "{version:?}"
    );
    let version = connection.ask(&Call::GetVersion);
    assert!(matches!(version, Ok(Reply::Version(version)) if version >= 7_000_000), "{version:?}");
    let Ok(Reply::Capabilities(xml)) = connection.ask(&Call::GetCapabilities) else {
        panic!("no capabilities");
    };
    assert!(xml.starts_with("<capabilities>"), "{xml}");

    let error = connection.ask(&Call::LookupByName("web1".to_owned())).unwrap_err();
    assert_eq!((error.code, error.domain), (Code::NO_DOMAIN, Origin::QEMU));
    assert_eq!(error.message, "Domain not found: no domain with matching name 'web1'");
    let error = connection.ask(&Call::LookupByUuid([7; 16])).unwrap_err();
    assert_eq!(error.code, Code::NO_DOMAIN);

    // What it refuses at Prepare, in its own words.
    let mut params = Params::new();
    params.add(&Name::DESTINATION_XML, "<domain/>").unwrap();
    let prepare = Prepare { params, cookie: vec![], flags: Flags::LIVE };
    let error = connection.ask(&Call::Prepare(prepare)).unwrap_err();
    assert_eq!((error.code, error.domain), (Code(21), Origin::DOMAIN));
    assert_eq!(error.message, "missing name information");

    let registered = connection.ask(&Call::RegisterCloseCallback);
    assert_eq!(registered, Ok(Reply::Done(Procedure::RegisterCloseCallback)));
    let unregistered = connection.ask(&Call::UnregisterCloseCallback);
    assert_eq!(unregistered, Ok(Reply::Done(Procedure::UnregisterCloseCallback)));
    assert_eq!(connection.ask(&Call::Close), Ok(Reply::Done(Procedure::Close)));
    assert_eq!(connection.event(), Event::Closed(rpc::client::Ended::HungUp));
}

#[test]
fn several_calls_wait_at_once_and_each_gets_its_own_reply() {
    let daemon = Daemon::with_vm();
    let mut connection = Connection::opened(&daemon);
    let calls = [
        Call::GetHostname,
        Call::LookupByName("web1".to_owned()),
        Call::LookupByName("web2".to_owned()),
        Call::GetType,
    ];
    let serials: Vec<u32> =
        calls.iter().map(|call| connection.client.call(call).unwrap()).collect();
    assert!(connection.client.call(&Call::GetUri).is_err(), "the daemon would stop reading");
    for _ in &calls {
        match connection.event() {
            Event::Reply { serial, reply: Reply::Hostname(_) } => assert_eq!(serial, serials[0]),
            Event::Reply { serial, reply: Reply::Found(_, domain) } => {
                assert_eq!((serial, domain.name.as_str()), (serials[1], "web1"));
            }
            Event::Failed { serial, .. } => assert_eq!(serial, serials[2]),
            Event::Reply { serial, reply: Reply::Type(_) } => assert_eq!(serial, serials[3]),
            other => panic!("{other:?}"),
        }
    }
    let Ok(Reply::Found(_, domain)) = connection.ask(&calls[1]) else { panic!("no web1") };
    let state = connection.ask(&Call::GetState { domain, flags: 0 });
    assert_eq!(state, Ok(Reply::State { state: 1, reason: 1 }), "running, booted");
}

#[test]
fn pings_are_answered_by_a_real_libvirtd() {
    let daemon = Daemon::start();
    let limits = Limits {
        keepalive_interval: Duration::from_millis(50),
        keepalive_count: 20,
        ..Limits::default()
    };
    let mut connection = Connection::with_limits(&daemon, limits);
    let feature = Call::supports(Feature::ProgramKeepalive);
    assert_eq!(connection.ask(&feature), Ok(Reply::Supported(1)));
    let asked = connection.client.next_tick();
    // More intervals than may go without a frame.
    while connection.began.elapsed() < Duration::from_secs(2) {
        assert_eq!(connection.turn(), None);
    }
    assert!(connection.client.next_tick() > asked);
}

/// Nobody resumes it, by whatever way; it can be suspended and ended. That a command waits for 30 s before it
/// is refused is libvirtd's own.
#[test]
fn a_vm_that_a_migration_holds_is_not_changed_until_it_is_confirmed_or_the_connection_ends() {
    let daemon = Daemon::with_vm();
    daemon.virsh(&["suspend", "web1"]).unwrap();
    let found = Call::LookupByName("web1".to_owned());
    let flags = Flags::LIVE | Flags::CHANGE_PROTECTION | Flags::UNSAFE;
    for by_word in [true, false] {
        let mut holding = Connection::opened(&daemon);
        let Ok(Reply::Found(_, domain)) = holding.ask(&found) else { panic!("no web1") };
        let begin = Begin { domain: domain.clone(), params: Params::new(), flags };
        let begun = holding.ask(&Call::Begin(begin));
        assert!(matches!(&begun, Ok(Reply::Begun(begun)) if begun.xml.contains("web1")));
        if by_word {
            let resumed = holding.meanwhile(|| daemon.virsh(&["resume", "web1"]));
            let is_refused = |said: &String| said.contains("cannot acquire state change lock");
            assert!(resumed.as_ref().is_err_and(is_refused), "{resumed:?}");
        }
        assert_eq!(daemon.state(), "paused");
        holding.meanwhile(|| daemon.virsh(&["suspend", "web1"])).unwrap();
        if by_word {
            let (params, cookie) = (Params::new(), vec![]);
            let confirm = Confirm { domain, params, cookie, flags, cancelled: true };
            let confirmed = holding.ask(&Call::Confirm(confirm));
            assert_eq!(confirmed, Ok(Reply::Done(Procedure::Confirm3Params)));
        }
        drop(holding);
        assert_eq!(daemon.state(), "paused", "as it was");
        daemon.virsh(&["resume", "web1"]).unwrap();
        daemon.virsh(&["suspend", "web1"]).unwrap();
    }
}
