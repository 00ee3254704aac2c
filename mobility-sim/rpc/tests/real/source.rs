//! A real libvirtd that sends a VM to a session.

use rpc::error::RemoteError;
use rpc::flags::Flags;
use rpc::server::{Ended, Event, Goodbye, Session};

use crate::daemon::Daemon;
use crate::peer::Peer;

const FULL: &str = "west has no room for web1: free 16 MiB there, or send it elsewhere";

fn refuse(session: &mut Session, event: &Event) {
    if let Event::Prepare { serial, .. } = event {
        session.answer_prepare(*serial, Err(RemoteError::operation_failed(FULL))).unwrap();
    }
}

#[test]
fn a_refused_prepare_is_shown_word_for_word_and_the_vm_runs_on() {
    let (source, peer) = (Daemon::with_vm(), Peer::start(refuse));
    let said = source.virsh(&["migrate", "--live", "--p2p", "web1", &peer.uri]);
    assert_eq!(said, Err(format!("error: {FULL}\n\n")));
    assert_eq!(source.state(), "running");
    println!("{:?}", peer.called());
    let Event::Prepare { xml, flags, cookie, .. } = peer.event() else { panic!("no Prepare") };
    assert!(xml.contains("<name>web1</name>"), "{xml}");
    assert_eq!(flags, Flags::LIVE | Flags::PEER2PEER);
    assert!(cookie.ends_with(b"</qemu-migration>\n\0"), "{}", String::from_utf8_lossy(&cookie));
    assert_eq!(peer.event(), Event::Closing(Goodbye::Unregistered));
    assert_eq!(peer.event(), Event::Closing(Goodbye::Closed));
    assert_eq!(peer.event(), Event::Closed(Ended::Closed));
}

#[test]
fn direct() {
    let (source, peer) = (Daemon::with_vm(), Peer::start(refuse));
    let said = source.virsh(&["migrate", "--live", "web1", &peer.uri]);
    println!("{said:?} {:?}", peer.called());
    while let Event::Prepare { .. } | Event::Closing(_) = dbg!(peer.event()) {}
    assert_eq!(source.state(), "running");
}
