//! Shapes that broke implementations of this protocol before, each by the name under which that
//! became known, and what else the other end may lie about.

use rpc::client::Violation as ClientViolation;
use rpc::client::{Client, Ended as ClientEnded, Event as ClientEvent, Limits as ClientLimits};
use rpc::frame::{FRAME_MAX, FRAME_MAX_BEFORE_OPEN, FrameError, Header, Kind, Program, Status};
use rpc::params::PARAMS_MAX;
use rpc::procedures::{Call, CallError, Procedure, Reply};
use rpc::server::{Ended, Event, Violation};
use rpc::xdr::{TEXT_MAX, XdrError};

use crate::samples::*;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// Why this is no Prepare.
fn prepare_error(payload: &[u8]) -> XdrError {
    match Call::decode(303, payload) {
        Err(CallError::Arguments { procedure: Procedure::Prepare3Params, cause }) => cause,
        other => panic!("{other:?}"),
    }
}

#[test]
fn cve_2024_2494_a_negative_length_is_larger_than_every_limit() {
    let minus_one = u32::MAX;
    let count = prepare_error(&words(&[minus_one]));
    assert_eq!(count, XdrError::Count { what: "parameters", count: minus_one, max: PARAMS_MAX });
    // A name, a text, a cookie of -1 bytes.
    let name = prepare_error(&words(&[1, minus_one, 7, 0]));
    assert_eq!(name, XdrError::Length { what: "parameter's name", len: minus_one, max: 79 });
    let text = prepare_error(&words(&[1, 0, 7, minus_one]));
    assert_eq!(text, XdrError::Length { what: "parameter's value", len: minus_one, max: TEXT_MAX });
    let cookie = prepare_error(&words(&[0, minus_one]));
    assert_eq!(cookie, XdrError::Length { what: "cookie", len: minus_one, max: 4 << 20 });
    let frame = words(&[minus_one]);
    let mut session = opened();
    session.push(&frame, START);
    let too_long = FrameError::TooLong { len: minus_one, max: FRAME_MAX };
    assert_eq!(session.event(), Some(Event::Closed(Ended::Violation(too_long.into()))));
}

#[test]
fn libvirt_903_a_count_times_a_size_does_not_wrap() {
    // Times 12 bytes this is 12 in 32 bits.
    let wraps = (1_u64 << 32).div_ceil(12) + 1;
    let count = u32::try_from(wraps).unwrap();
    let error = prepare_error(&words(&[count, 0, 1, 0]));
    assert_eq!(error, XdrError::Count { what: "parameters", count, max: PARAMS_MAX });
    // Within the limit of the count, and still more than there can be.
    let error = prepare_error(&words(&[64, 0, 1, 0]));
    assert_eq!(error, XdrError::TooShort { what: "parameters", wanted: 64 * 12, left: 12 });
    let auth = Reply::decode(Procedure::AuthList, &words(&[20, 0]));
    let what = "ways to authenticate";
    assert_eq!(auth, Err(XdrError::TooShort { what, wanted: 80, left: 4 }));
}

#[test]
fn cve_2012_4423_numbers_in_gaps_and_of_events_are_unknown_procedures() {
    let mut session = opened();
    // 0, a gap that once crashed, an event, the keepalive's, the largest, negative ones.
    for procedure in [0, 7_777, 107, 318, 362, i32::MAX, -1, i32::MIN] {
        session.push(&header(procedure, 1).with_payload(&[]), START);
        let answered = frames(&session.output());
        let error = rpc::error::RemoteError::decode(&answered[0].payload).unwrap();
        assert!(error.message.starts_with(&format!("unknown procedure: {procedure}:")), "{error}");
    }
    assert!(!session.is_over());
}

#[test]
fn cve_2012_3445_no_parameters_at_all_are_a_refusal() {
    let mut session = opened();
    session.push(&header(303, 1).with_payload(&words(&[0, 0, 67])), START);
    let answered = frames(&session.output());
    let error = rpc::error::RemoteError::decode(&answered[0].payload).unwrap();
    assert_eq!(error.message, "parameter 'destination_xml' is missing");
    assert_eq!(session.event(), None);
    assert!(!session.is_over());
}

#[test]
fn cve_2025_12748_a_definition_is_not_looked_at_before_the_connection_is_open() {
    let mut session = session();
    let max = FRAME_MAX_BEFORE_OPEN;
    let len = u32::try_from(max + 4).unwrap();
    session.push(&words(&[len]), START);
    let violation = Violation::Frame(FrameError::TooLong { len, max });
    assert_eq!(session.event(), Some(Event::Closed(Ended::Violation(violation))));
    // One that is small enough is refused and nobody sees it.
    let mut session = self::session();
    session.push(&framed(1, &Call::Prepare(prepare())), START);
    assert_eq!(frames(&session.output())[0].header.status, Status::Error);
    assert_eq!(session.event(), None);
}

#[test]
fn cve_2014_8136_a_refused_call_leaves_nothing_locked() {
    let mut session = opened();
    for _ in 0..3 {
        session.push(&header(303, 1).with_payload(&words(&[0, 0, 67])), START);
        session.push(&header(306, 2).with_payload(&words(&[0, 0, 67, 0])), START);
        assert_eq!(frames(&session.output()).len(), 2);
    }
    let mut honest = prepare();
    honest.params = rpc::params::Params::new();
    honest.params.add(&rpc::params::Name::DESTINATION_XML, "<domain/>").unwrap();
    session.push(&framed(3, &Call::Prepare(honest)), START);
    assert!(matches!(session.event(), Some(Event::Prepare { serial: 3, .. })));
}

#[test]
fn frames_with_file_descriptors_are_refused() {
    let mut bytes = framed(1, &Call::GetType);
    bytes[16..20].copy_from_slice(&4_u32.to_be_bytes());
    let mut session = opened();
    session.push(&bytes, START);
    let violation = Violation::Frame(FrameError::CarriesDescriptors { kind: 4 });
    assert_eq!(session.event(), Some(Event::Closed(Ended::Violation(violation))));
}

#[test]
fn a_flood_of_pings_is_answered_in_portions() {
    let header = Header { program: Program::Keepalive, kind: Kind::Message, ..header(1, 0) };
    let pings = header.with_payload(&[]).repeat(20_000);
    let mut session = session();
    session.push(&pings, START);
    assert!(!session.wants_input());
    let first = session.output();
    assert!(first.len() < rpc::server::OUTPUT_MAX + 64, "{} bytes at once", first.len());
}

/// How a client that called GetHostname ends when this comes.
fn client_hears(bytes: &[u8]) -> ClientEvent {
    let mut client = Client::new(ClientLimits::default(), START);
    assert_eq!(client.call(&Call::GetHostname), Ok(0));
    client.push(bytes, START);
    client.event().expect("an event")
}

#[test]
fn a_daemon_that_lies_ends_the_connection_with_the_lie_named() {
    let reply = |procedure, serial, status| header(procedure, serial).reply(status);
    let ended = |violation| ClientEvent::Closed(ClientEnded::Violation(violation));
    let called = Procedure::GetHostname;
    let other_serial = reply(59, 1, Status::Ok).with_payload(&[]);
    assert_eq!(client_hears(&other_serial), ended(ClientViolation::NotCalled { serial: 1 }));
    let other_procedure = reply(60, 0, Status::Ok).with_payload(&[0; 4]);
    let violation = ClientViolation::Procedure { serial: 0, called, found: 60 };
    assert_eq!(client_hears(&other_procedure), ended(violation));
    let status = Status::Continue;
    let unfinished = reply(59, 0, status).with_payload(&[]);
    assert_eq!(client_hears(&unfinished), ended(ClientViolation::Status { status }));
    for status in [Status::Ok, Status::Error] {
        let short = reply(59, 0, status).with_payload(&[0; 2]);
        let ClientEvent::Closed(ClientEnded::Violation(violation)) = client_hears(&short) else {
            panic!("it goes on");
        };
        assert!(matches!(violation, ClientViolation::Reply { serial: 0, .. }), "{violation}");
    }
    let calls_back = framed(0, &Call::GetHostname);
    let (program, kind) = (Program::Remote, Kind::Call);
    assert_eq!(client_hears(&calls_back), ended(ClientViolation::Kind { program, kind }));
}

#[test]
fn events_of_a_daemon_are_read_over() {
    let event = Header { kind: Kind::Message, ..header(318, 0) }.with_payload(&[1; 40]);
    let hostname = Reply::Hostname("east".to_owned());
    let reply = header(59, 0).reply(Status::Ok).with_payload(&hostname.encode());
    let heard = client_hears(&[event, reply].concat());
    assert_eq!(heard, ClientEvent::Reply { serial: 0, reply: hostname });
}

#[test]
fn a_reply_comes_once() {
    let hostname = Reply::Hostname("east".to_owned());
    let reply = header(59, 0).reply(Status::Ok).with_payload(&hostname.encode());
    let mut client = Client::new(ClientLimits::default(), START);
    client.call(&Call::GetHostname).unwrap();
    client.push(&reply.repeat(2), START);
    assert!(matches!(client.event(), Some(ClientEvent::Reply { .. })));
    let not_called = ClientViolation::NotCalled { serial: 0 };
    let ended = ClientEvent::Closed(ClientEnded::Violation(not_called));
    assert_eq!(client.event(), Some(ended));
}
