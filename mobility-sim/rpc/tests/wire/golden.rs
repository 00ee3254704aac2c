//! Bytes that do not change: ours, and those that libvirt 9.0.0 wrote.
//!
//! `libvirt-9.0.0/` holds what clients said in a whole migration each (a libvirtd in peer-to-peer
//! mode, virsh in direct mode), and what a libvirtd answered a client of ours.

use rpc::error::{Code, Origin, RemoteError};
use rpc::frame::{Frame, Kind, Status};
use rpc::procedures::{Call, Procedure, Reply};
use rpc::server::{Ended, Event, Goodbye};

use crate::samples::*;

const GOLDEN: &str = include_str!("golden.v1.txt");
const P2P: &[u8] = include_bytes!("libvirt-9.0.0/p2p.client");
const DIRECT: &[u8] = include_bytes!("libvirt-9.0.0/direct.client");
const DAEMON: &[u8] = include_bytes!("libvirt-9.0.0/daemon");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One line for each call, reply and error.
fn written() -> String {
    let mut lines = vec![];
    for call in calls() {
        let header = header(call.procedure().number(), 7);
        lines.push(format!("call {:?}: {}", call.procedure(), hex(&framed(7, &call))));
        assert_eq!(Call::decode(header.procedure, &call.encode()), Ok(call));
    }
    for reply in replies() {
        let header = header(reply.procedure().number(), 7).reply(Status::Ok);
        let frame = header.with_payload(&reply.encode());
        lines.push(format!("reply {:?}: {}", reply.procedure(), hex(&frame)));
        assert_eq!(Reply::decode(reply.procedure(), &reply.encode()), Ok(reply));
    }
    for error in errors() {
        lines.push(format!("error {}: {}", error.code.0, hex(error.encode())));
    }
    lines.join("\n") + "\n"
}

#[test]
fn calls_replies_and_errors_are_written_as_ever() {
    let written = written();
    for (line, golden) in written.lines().zip(GOLDEN.lines()) {
        assert_eq!(line, golden);
    }
    assert_eq!(written, GOLDEN);
}

#[test]
fn calls_of_libvirt_are_written_by_us_as_libvirt_wrote_them() {
    for (stream, calls) in [(P2P, 13), (DIRECT, 9)] {
        let frames = frames(stream);
        assert_eq!(frames.len(), calls);
        assert_eq!(frames.iter().flat_map(Frame::encode).collect::<Vec<u8>>(), stream);
        for Frame { header, payload } in frames {
            assert_eq!(header.kind, Kind::Call);
            let call = Call::decode(header.procedure, &payload).unwrap();
            assert_eq!(hex(&call.encode()), hex(&payload), "{:?}", call.procedure());
        }
    }
}

#[test]
fn replies_and_errors_of_libvirt_are_written_by_us_as_libvirt_wrote_them() {
    let frames = frames(DAEMON);
    assert_eq!(frames.len(), 20);
    for Frame { header, payload } in frames {
        let procedure = Procedure::from_number(header.procedure).unwrap();
        if header.status == Status::Ok {
            let reply = Reply::decode(procedure, &payload).unwrap();
            assert_eq!(hex(&reply.encode()), hex(&payload), "{procedure:?}");
        } else {
            let error = RemoteError::decode(&payload).unwrap();
            assert_eq!(error.encode(), payload);
            if procedure == Procedure::Prepare3Params {
                let same = RemoteError::new(Code(21), Origin::DOMAIN, "missing name information");
                assert_eq!(hex(same.encode()), hex(&payload));
            }
        }
    }
}

#[test]
fn a_session_understands_a_whole_migration_of_libvirt() {
    let goodbye = |how| Event::Closing { how, after_handover: true };
    for (stream, unregisters) in [(P2P, true), (DIRECT, false)] {
        let mut session = session();
        let (mut events, mut replies) = (vec![], vec![]);
        // As they came: a client waits for each reply.
        for frame in frames(stream) {
            session.push(&frame.encode(), START);
            while let Some(event) = session.event() {
                events.push(event.clone());
                match event {
                    Event::Prepare { serial, .. } => {
                        let error = Ok(rpc::procedures::Prepared { cookie: vec![], uri: None });
                        session.answer_prepare(serial, error).unwrap();
                    }
                    Event::Finish { serial, cookie, .. } => {
                        let domain = domain();
                        let finished = rpc::procedures::Finished { domain, cookie };
                        session.answer_finish(serial, Ok(finished)).unwrap();
                    }
                    Event::Closing { .. } | Event::Closed(_) => {}
                }
            }
            replies.extend(frames(&session.output()));
        }
        assert!(replies.iter().all(|frame| frame.header.status == Status::Ok));
        let [Event::Prepare { xml, .. }, Event::Finish { name, .. }, rest @ ..] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert!(xml.contains("<name>web1</name>"));
        assert_eq!(name, "web1");
        let mut end = vec![goodbye(Goodbye::Closed), Event::Closed(Ended::Closed)];
        if unregisters {
            end.insert(0, goodbye(Goodbye::Unregistered));
        }
        assert_eq!(rest, end);
    }
}
