//! A real virsh that takes a session for a libvirtd.

use rpc::server::{Ended, Event, Goodbye};

use crate::peer::Peer;
use lab::daemon::virsh_within;

/// One that hangs is ended after so long.
const BOUND: std::time::Duration = std::time::Duration::from_secs(30);

#[test]
fn virsh_is_told_who_this_host_is_and_that_it_lists_nothing() {
    let peer = Peer::start(|_, _| {});
    let ask = |args: &[&str]| virsh_within(BOUND, &peer.uri, args);
    assert_eq!(ask(&["hostname"]), Ok("agent-west\n".to_owned()));
    assert_eq!(ask(&["uri"]), Ok(format!("{}\n", peer.uri)));
    let version = ask(&["version"]).unwrap();
    assert!(version.contains("Running hypervisor: QEMU 7.2.22"), "{version}");
    assert_eq!(ask(&["capabilities"]), Ok("<capabilities/>\n".to_owned()));
    let listed = ask(&["list"]).unwrap_err();
    assert!(listed.contains("unknown procedure"), "{listed}");
    assert!(listed.contains("this host only takes migrations"), "{listed}");
    let state = ask(&["domstate", "web1"]).unwrap_err();
    assert!(state.contains("failed to get domain 'web1'"), "{state}");
    for _ in 0..6 {
        let goodbye = Event::Closing { how: Goodbye::Closed, after_handover: false };
        while peer.event() != goodbye {}
        assert_eq!(peer.event(), Event::Closed(Ended::Closed));
    }
}

#[test]
fn virsh_gives_up_on_a_host_that_answers_no_pings() {
    let peer = Peer::mute_at(59);
    let said = virsh_within(BOUND, &peer.uri, &["-k", "1", "-K", "1", "hostname"]).unwrap_err();
    assert!(said.contains("keepalive timeout"), "{said}");
}
