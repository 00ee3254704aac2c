//! A real libvirtd that sends a VM to a session.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use rpc::error::RemoteError;
use rpc::flags::Flags;
use rpc::procedures::{Domain, Finished, Prepared};
use rpc::server::{Ended, Event, Goodbye, Session};

use crate::daemon::Daemon;
use crate::peer::Peer;

const FULL: &str = "west has no room for web1: free 16 MiB there, or send it elsewhere";

/// What virsh prints of an error.
fn shown(message: &str) -> Result<String, String> {
    Err(format!("error: {message}\n"))
}

/// Nothing was handed over before it.
const fn goodbye(how: Goodbye) -> Event {
    Event::Closing { how, after_handover: false }
}

fn refuse(session: &mut Session, event: &Event) {
    if let Event::Prepare { serial, .. } = event {
        let error = RemoteError::operation_failed(FULL);
        session.answer_prepare(*serial, Err(error)).expect("it waits");
    }
}

#[test]
fn a_refused_prepare_is_shown_word_for_word_and_the_vm_runs_on() {
    let (source, peer) = (Daemon::with_vm(), Peer::start(refuse));
    let said = source.virsh(&["migrate", "--live", "--p2p", "web1", &peer.uri]);
    assert_eq!(said, shown(FULL));
    assert_eq!(source.state(), "running");
    let Event::Prepare { xml, flags, cookie, .. } = peer.event() else { panic!("no Prepare") };
    assert!(xml.contains("<name>web1</name>"), "{xml}");
    assert_eq!(flags, Flags::LIVE | Flags::PEER2PEER);
    assert!(cookie.ends_with(b"</qemu-migration>\n\0"), "{}", String::from_utf8_lossy(&cookie));
    assert_eq!(peer.event(), goodbye(Goodbye::Unregistered));
    assert_eq!(peer.event(), goodbye(Goodbye::Closed));
    assert_eq!(peer.event(), Event::Closed(Ended::Closed));
    assert_eq!(peer.called(), "66 60/10 1 60/14 60/15 360 60/4 60/6 60/13 303 361 2");

    // Directly virsh is the client, asks less, and closes without unregistering anything.
    let peer = Peer::start(refuse);
    assert_eq!(source.virsh(&["migrate", "--live", "web1", &peer.uri]), shown(FULL));
    assert_eq!(source.state(), "running");
    assert!(matches!(peer.event(), Event::Prepare { flags: Flags::LIVE, .. }));
    assert_eq!(peer.event(), goodbye(Goodbye::Closed));
    assert_eq!(peer.event(), Event::Closed(Ended::Closed));
    assert_eq!(peer.called(), "66 60/10 1 60/14 60/15 60/13 303 2");
}

#[test]
fn what_this_host_does_not_take_is_refused_without_asking_anybody() {
    let (source, peer) = (Daemon::with_vm(), Peer::start(|_, _| {}));
    let migrate = |options: &[&str]| {
        source.virsh(&[&["migrate", "--live", "--p2p", "web1", &peer.uri], options].concat())
    };
    let said = migrate(&["--postcopy"]);
    assert_eq!(said, shown("this host takes no migrations with --postcopy: leave that out"));
    let said = migrate(&["--tunnelled"]);
    assert_eq!(said, shown("this host takes no tunnelled migrations: leave --tunnelled out"));
    assert_eq!(source.state(), "running");
    for _ in 0..2 {
        assert_eq!(peer.event(), goodbye(Goodbye::Unregistered));
        assert_eq!(peer.event(), goodbye(Goodbye::Closed));
        assert_eq!(peer.event(), Event::Closed(Ended::Closed));
    }
}

#[test]
fn a_source_gives_up_on_a_host_that_answers_no_pings() {
    let (source, peer) = (Daemon::with_vm(), Peer::mute_at(303));
    let said = source.virsh(&["migrate", "--live", "--p2p", "web1", &peer.uri]).unwrap_err();
    assert!(said.contains("client socket is closed"), "{said}");
    let log = source.log();
    assert!(log.contains("connection closed due to keepalive timeout"), "{log}");
    assert_eq!(source.state(), "running");
}

/// A destination of the RAM stream that takes in everything and then says that all is well.
fn sink() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let uri = format!("tcp:{}", listener.local_addr().expect("its address"));
    thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let (mut stream_so_far, mut piece) = (vec![], vec![0; 1 << 20]);
        while !is_whole(&stream_so_far) {
            let len = stream.read(&mut piece)?;
            stream_so_far.extend_from_slice(&piece[..len]);
            if len == 0 {
                return Ok(());
            }
        }
        // On the return path: SHUT, 4 bytes, no error. The source waits for it, and not before.
        stream.write_all(&[0, 1, 0, 4, 0, 0, 0, 0])?;
        while stream.read(&mut piece)? > 0 {}
        Ok(())
    });
    uri
}

/// A stream ends with a description of all that was in it, its length in four bytes before it.
fn is_whole(stream: &[u8]) -> bool {
    let begin = b"{\"page_size\"";
    let Some(at) = stream.windows(begin.len()).rposition(|bytes| bytes == begin) else {
        return false;
    };
    let len = stream[..at].last_chunk().expect("a length stands before it");
    stream[at..].len() >= usize::try_from(u32::from_be_bytes(*len)).expect("32 bits fit")
}

/// The source's cookie as if another host had written it.
fn from_elsewhere(cookie: &[u8]) -> Vec<u8> {
    let text = str::from_utf8(cookie).expect("XML");
    let of = |tag: &str| {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let at = text.find(&open).expect("it is there");
        text[at..at + text[at..].find(&close).expect("it ends") + close.len()].to_owned()
    };
    format!(
        "<qemu-migration>{}{}<hostname>agent-west</hostname>\
         <hostuuid>8e7c8bd1-7f5c-4ac4-9e1d-0a3cf1c2d3e4</hostuuid></qemu-migration>\0",
        of("name"),
        of("uuid"),
    )
    .into_bytes()
}

/// Takes the VM in, as far as its source can tell; `finish` is what it is told in the end.
fn take_in(
    uri: &'static str,
    finish: fn(&str) -> Result<Finished, RemoteError>,
) -> impl FnMut(&mut Session, &Event) + Send {
    move |session, event| match event {
        Event::Prepare { serial, cookie, .. } => {
            let uri = if uri.is_empty() { sink() } else { uri.to_owned() };
            let prepared = Prepared { cookie: from_elsewhere(cookie), uri: Some(uri) };
            session.answer_prepare(*serial, Ok(prepared)).expect("it waits");
        }
        Event::Finish { serial, name, .. } => {
            session.answer_finish(*serial, finish(name)).expect("it waits");
        }
        Event::Closing { .. } | Event::Closed(_) => {}
    }
}

fn arrived(name: &str) -> Result<Finished, RemoteError> {
    let domain = Domain { name: name.to_owned(), uuid: [7; 16], id: 1 };
    Ok(Finished { domain, cookie: vec![] })
}

#[test]
fn a_finish_that_is_answered_with_a_vm_ends_the_sources_and_then_comes_the_goodbye() {
    let p2p = "66 60/10 1 60/14 60/15 360 60/4 60/6 60/13 303 306 361 2";
    let direct = "66 60/10 1 60/14 60/15 60/13 303 306 2";
    for (options, called, goodbyes) in [
        (&["--p2p"][..], p2p, &[Goodbye::Unregistered, Goodbye::Closed][..]),
        (&[], direct, &[Goodbye::Closed]),
    ] {
        let (source, peer) = (Daemon::with_vm(), Peer::start(take_in("", arrived)));
        let command = [&["migrate", "--live", "web1", &peer.uri], options].concat();
        assert_eq!(source.virsh(&command), Ok(String::new()), "{}", source.log());
        assert_eq!(source.state(), "", "it is gone");
        assert!(matches!(peer.event(), Event::Prepare { .. }));
        let Event::Finish { name, cancelled, .. } = peer.event() else { panic!("no Finish") };
        assert_eq!((name.as_str(), cancelled), ("web1", false));
        for how in goodbyes {
            assert_eq!(peer.event(), Event::Closing { how: *how, after_handover: true });
        }
        assert_eq!(peer.event(), Event::Closed(Ended::Closed));
        assert_eq!(peer.called(), called);
    }
}

#[test]
fn a_finish_that_is_answered_with_an_error_lets_the_sources_vm_run_on() {
    let lost = |_: &str| Err(RemoteError::operation_failed("west lost power"));
    let (source, peer) = (Daemon::with_vm(), Peer::start(take_in("", lost)));
    let said = source.virsh(&["migrate", "--live", "--p2p", "web1", &peer.uri]);
    assert_eq!(said, shown("west lost power"));
    assert_eq!(source.state(), "running");
}

#[test]
fn a_source_that_cannot_send_says_so_in_finish() {
    let gone = |_: &str| Err(RemoteError::migrate_finish_ok());
    // The discard port, where nobody listens.
    let (source, peer) = (Daemon::with_vm(), Peer::start(take_in("tcp:127.0.0.1:9", gone)));
    let said = source.virsh(&["migrate", "--live", "--p2p", "web1", &peer.uri]).unwrap_err();
    assert!(said.contains("unable to connect to server at '127.0.0.1:9'"), "{said}");
    assert_eq!(source.state(), "running");
    assert!(matches!(peer.event(), Event::Prepare { .. }));
    assert!(matches!(peer.event(), Event::Finish { cancelled: true, .. }));
    assert_eq!(peer.event(), goodbye(Goodbye::Unregistered));
}
