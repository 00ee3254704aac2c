use bytes::Bytes;

use super::*;
use crate::error::Code;
use crate::frame::{Decoder, Frame, Header, Status};
use crate::params::{Name, Params, Value};
use crate::procedures::{Auth, Call, Domain, Finish, Prepare, Procedure};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn host() -> Host {
    Host {
        hostname: "west".to_owned(),
        uri: "qemu:///system".to_owned(),
        hypervisor_version: 7_002_022,
        libvirt_version: 9_000_000,
        capabilities: "<capabilities/>".to_owned(),
        secure: true,
        refused_flags: Flags::POSTCOPY | Flags::OFFLINE,
    }
}

fn session() -> Session {
    Session::new(host(), Limits::default(), s(0))
}

fn frame(serial: u32, procedure: i32, payload: &[u8]) -> Vec<u8> {
    let (program, kind, status) = (Program::Remote, Kind::Call, Status::Ok);
    Header { program, procedure, kind, serial, status }.with_payload(payload)
}

fn framed(serial: u32, call: &Call) -> Vec<u8> {
    frame(serial, call.procedure().number(), &call.encode())
}

/// Everything that is to be sent, as frames.
fn sent(session: &mut Session) -> Vec<Frame> {
    let mut decoder = Decoder::new(FRAME_MAX);
    let mut frames = vec![];
    loop {
        let output = session.output();
        if output.is_empty() {
            return frames;
        }
        decoder.push(&output);
        while let Some(frame) = decoder.next_frame().unwrap() {
            frames.push(frame);
        }
    }
}

/// The one answer that was sent.
fn answered(session: &mut Session, serial: u32) -> Result<Bytes, RemoteError> {
    let frames = sent(session);
    let [Frame { header, payload }] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!((header.kind, header.serial), (Kind::Reply, serial));
    match header.status {
        Status::Ok => Ok(payload.clone()),
        _ => Err(RemoteError::decode(payload).unwrap()),
    }
}

fn ask(session: &mut Session, serial: u32, call: &Call) -> Result<Reply, RemoteError> {
    session.push(&framed(serial, call), s(0));
    let payload = answered(session, serial)?;
    Ok(Reply::decode(call.procedure(), &payload).unwrap())
}

fn code(answer: Result<Reply, RemoteError>) -> Code {
    answer.unwrap_err().code
}

fn open_call() -> Call {
    Call::Open { name: Some("qemu:///system".to_owned()), flags: 0 }
}

fn opened() -> Session {
    let mut session = session();
    assert_eq!(ask(&mut session, 0, &open_call()), Ok(Reply::Done(Procedure::Open)));
    session
}

fn prepare_call() -> Call {
    let mut params = Params::new();
    params.add(&Name::BANDWIDTH, 8_u64).unwrap();
    params.add(&Name::DESTINATION_XML, "<domain/>").unwrap();
    Call::Prepare(Prepare { params, cookie: b"<in/>\0".to_vec(), flags: Flags::LIVE })
}

fn finish_call(cancelled: bool) -> Call {
    let mut params = Params::new();
    params.add(&Name::DESTINATION_NAME, "web1").unwrap();
    Call::Finish(Finish { params, cookie: vec![], flags: Flags::LIVE, cancelled })
}

fn prepared() -> Prepared {
    Prepared { cookie: b"<out/>\0".to_vec(), uri: Some("tcp:192.0.2.1:49152".to_owned()) }
}

fn finished() -> Finished {
    Finished { domain: Domain { name: "web1".to_owned(), uuid: [7; 16], id: 3 }, cookie: vec![] }
}

const fn goodbye(how: Goodbye, after_handover: bool) -> Option<Event> {
    Some(Event::Closing { how, after_handover })
}

/// A session with a migration that is as far as Finish.
fn finishing(cancelled: bool) -> Session {
    let mut session = opened();
    session.push(&framed(1, &prepare_call()), s(0));
    session.answer_prepare(1, Ok(prepared())).unwrap();
    session.push(&framed(2, &finish_call(cancelled)), s(0));
    sent(&mut session);
    while session.event().is_some() {}
    session
}

#[test]
fn what_needs_nobody_is_answered_at_once() {
    let mut session = session();
    let mut ask = |call: Call| ask(&mut session, 0, &call);
    assert_eq!(ask(Call::AuthList), Ok(Reply::AuthList(vec![Auth::None])));
    assert_eq!(ask(Call::SupportsFeature(10)), Ok(Reply::Supported(1)));
    assert_eq!(ask(open_call()), Ok(Reply::Done(Procedure::Open)));
    for (feature, supported) in
        [(4, 1), (6, 1), (9, 1), (10, 1), (13, 1), (14, 1), (15, 1), (8, 0), (12, 0), (99, 0)]
    {
        assert_eq!(ask(Call::SupportsFeature(feature)), Ok(Reply::Supported(supported)));
    }
    assert_eq!(ask(Call::GetHostname), Ok(Reply::Hostname("west".to_owned())));
    assert_eq!(ask(Call::GetUri), Ok(Reply::Uri("qemu:///system".to_owned())));
    assert_eq!(ask(Call::GetType), Ok(Reply::Type("QEMU".to_owned())));
    assert_eq!(ask(Call::GetVersion), Ok(Reply::Version(7_002_022)));
    assert_eq!(ask(Call::GetLibVersion), Ok(Reply::LibVersion(9_000_000)));
    assert_eq!(ask(Call::IsSecure), Ok(Reply::Secure(true)));
    assert_eq!(code(ask(Call::LookupByName("web1".to_owned()))), Code::NO_DOMAIN);
    assert_eq!(code(ask(Call::LookupByUuid([7; 16]))), Code::NO_DOMAIN);
}

#[test]
fn a_migration_goes_from_prepare_over_finish_to_the_goodbye() {
    let mut session = opened();
    ask(&mut session, 1, &Call::RegisterCloseCallback).unwrap();
    session.push(&framed(2, &prepare_call()), s(0));
    let mut params = Params::new();
    params.add(&Name::BANDWIDTH, 8_u64).unwrap();
    let (cookie, flags) = (b"<in/>\0".to_vec(), Flags::LIVE);
    let event = Event::Prepare { serial: 2, xml: "<domain/>".to_owned(), params, cookie, flags };
    assert_eq!(session.event(), Some(event));
    // Whatever else is said meanwhile is answered.
    assert_eq!(ask(&mut session, 3, &Call::GetType), Ok(Reply::Type("QEMU".to_owned())));
    session.answer_prepare(2, Ok(prepared())).unwrap();
    let reply = Reply::Prepared(prepared());
    assert_eq!(answered(&mut session, 2).unwrap(), reply.encode());

    session.push(&framed(4, &finish_call(false)), s(0));
    let Some(Event::Finish { serial: 4, name, params, cancelled: false, .. }) = session.event()
    else {
        panic!("no Finish");
    };
    assert_eq!((name.as_str(), params.is_empty()), ("web1", true));
    session.answer_finish(4, Ok(finished())).unwrap();
    assert_eq!(answered(&mut session, 4).unwrap(), Reply::Finished(finished()).encode());
    ask(&mut session, 5, &Call::UnregisterCloseCallback).unwrap();
    assert_eq!(session.event(), goodbye(Goodbye::Unregistered, true));
    ask(&mut session, 6, &Call::Close).unwrap();
    assert_eq!(session.event(), goodbye(Goodbye::Closed, true));
    assert_eq!(session.event(), Some(Event::Closed(Ended::Closed)));
    assert_eq!(session.event(), None);
}

#[test]
fn a_refused_prepare_leaves_nothing_behind() {
    let mut session = opened();
    session.push(&framed(1, &prepare_call()), s(0));
    let full = RemoteError::operation_failed("no room");
    session.answer_prepare(1, Err(full.clone())).unwrap();
    assert_eq!(answered(&mut session, 1), Err(full));
    assert_eq!(code(ask(&mut session, 2, &finish_call(false))), Code::OPERATION_INVALID);
    session.push(&framed(3, &prepare_call()), s(0));
    assert!(sent(&mut session).is_empty(), "it is handed on");
}

#[test]
fn calls_in_the_wrong_phase_are_refused_and_the_connection_is_kept() {
    let mut session = session();
    for call in [Call::GetHostname, Call::SupportsFeature(4), prepare_call(), finish_call(true)] {
        let error = ask(&mut session, 1, &call).unwrap_err();
        assert_eq!(error.message, "hypervisor connection not open");
    }
    ask(&mut session, 2, &open_call()).unwrap();
    assert_eq!(code(ask(&mut session, 3, &open_call())), Code::INTERNAL_ERROR);
    assert_eq!(code(ask(&mut session, 4, &finish_call(false))), Code::OPERATION_INVALID);
    assert_eq!(code(ask(&mut session, 5, &Call::UnregisterCloseCallback)), Code::OPERATION_INVALID);
    assert_eq!(session.event(), None, "nobody was told anything");

    session.push(&framed(6, &prepare_call()), s(0));
    for call in [prepare_call(), finish_call(false)] {
        assert_eq!(code(ask(&mut session, 7, &call)), Code::OPERATION_INVALID);
    }
    session.answer_prepare(6, Ok(prepared())).unwrap();
    sent(&mut session);
    assert_eq!(code(ask(&mut session, 8, &prepare_call())), Code::OPERATION_INVALID);
    session.push(&framed(9, &finish_call(false)), s(0));
    for call in [prepare_call(), finish_call(false)] {
        assert_eq!(code(ask(&mut session, 10, &call)), Code::OPERATION_INVALID);
    }
    assert!(!session.is_over());
}

#[test]
fn a_cancelled_finish_is_never_answered_with_a_vm() {
    let mut session = finishing(true);
    let refused = session.answer_finish(2, Ok(finished()));
    assert_eq!(refused, Err(AnswerError::Cancelled { serial: 2 }));
    assert!(sent(&mut session).is_empty());
    session.answer_finish(2, Err(RemoteError::migrate_finish_ok())).unwrap();
    let error = answered(&mut session, 2).unwrap_err();
    assert_eq!(error.code, Code::MIGRATE_FINISH_OK);
}

/// A source that goes away before it was told anything has not ended its VM.
#[test]
fn only_a_goodbye_after_a_vm_was_answered_says_that_the_sources_is_over() {
    let close = |session: &mut Session| {
        session.push(&framed(9, &Call::Close), s(0));
        session.event()
    };
    let mut session = opened();
    assert_eq!(close(&mut session), goodbye(Goodbye::Closed, false), "no Prepare");
    let mut session = finishing(false);
    assert_eq!(close(&mut session), goodbye(Goodbye::Closed, false), "no answer");
    let mut session = finishing(false);
    session.answer_finish(2, Err(RemoteError::internal("no"))).unwrap();
    assert_eq!(close(&mut session), goodbye(Goodbye::Closed, false), "an error");
    let mut session = finishing(false);
    session.answer_finish(2, Ok(finished())).unwrap();
    session.push(&framed(3, &prepare_call()), s(0));
    session.event();
    assert_eq!(close(&mut session), goodbye(Goodbye::Closed, false), "the next one's Prepare");
    let mut session = finishing(false);
    session.answer_finish(2, Ok(finished())).unwrap();
    assert_eq!(close(&mut session), goodbye(Goodbye::Closed, true));
}

#[test]
fn an_answer_is_given_once_and_only_to_what_was_asked() {
    let mut session = finishing(false);
    let not_pending = |serial| Err(AnswerError::NotPending { serial });
    assert_eq!(session.answer_prepare(2, Ok(prepared())), not_pending(2));
    assert_eq!(session.answer_finish(1, Ok(finished())), not_pending(1));
    let long = Finished { cookie: vec![0; COOKIE_MAX + 1], ..finished() };
    let too_long = AnswerError::TooLong { cookie: COOKIE_MAX + 1, text: 4 };
    assert_eq!(session.answer_finish(2, Ok(long)), Err(too_long));
    assert_eq!(session.answer_finish(2, Ok(finished())), Ok(()));
    assert_eq!(session.answer_finish(2, Ok(finished())), not_pending(2));
}

#[test]
fn a_connection_that_was_lost_takes_no_answers() {
    let mut session = finishing(false);
    session.hang_up();
    assert_eq!(session.event(), Some(Event::Closed(Ended::HungUp)));
    assert!(session.answer_finish(2, Ok(finished())).is_err());
    assert!(session.output().is_empty());
}

#[test]
fn flags_and_parameters_that_nobody_wants_are_refused_by_name() {
    let mut session = opened();
    let mut with = |flags: Flags, field: &str, value: Value| {
        let mut params = Params::new();
        params.push(field, value).unwrap();
        let prepare = Prepare { params, cookie: vec![], flags };
        ask(&mut session, 1, &Call::Prepare(prepare)).unwrap_err().message
    };
    let text = |text: &str| Value::String(text.to_owned());
    let said =
        with(Flags::LIVE | Flags::POSTCOPY | Flags(1 << 30), "destination_xml", text("<d/>"));
    assert_eq!(said, "this host takes no migrations with --postcopy 0x40000000: leave that out");
    let said = with(Flags::LIVE, "rdma", text("on"));
    assert_eq!(said, "parameter 'rdma' not supported");
    let said = with(Flags::LIVE, "destination_xml", Value::Int(1));
    assert_eq!(said, "invalid type 'int' for parameter 'destination_xml', expected 'string'");
    let said = with(Flags::LIVE, "destination_name", text("web1"));
    assert_eq!(said, "parameter 'destination_xml' is missing");
    assert_eq!(session.event(), None);
}

#[test]
fn a_tunnelled_migration_is_refused() {
    let mut session = opened();
    let Call::Prepare(prepare) = prepare_call() else { unreachable!("it is one") };
    let error = ask(&mut session, 1, &Call::PrepareTunnel(prepare)).unwrap_err();
    assert_eq!(error.code, Code::OPERATION_UNSUPPORTED);
}

#[test]
fn who_only_reads_prepares_nothing() {
    let mut session = session();
    ask(&mut session, 0, &Call::Open { name: None, flags: 1 }).unwrap();
    assert_eq!(code(ask(&mut session, 1, &prepare_call())), Code::OPERATION_DENIED);
}

#[test]
fn another_driver_is_not_opened() {
    let mut session = session();
    let other = Call::Open { name: Some("test:///default".to_owned()), flags: 0 };
    assert_eq!(code(ask(&mut session, 0, &other)), Code::NO_CONNECT);
    let flags = Call::Open { name: None, flags: 6 };
    assert_eq!(code(ask(&mut session, 0, &flags)), Code::INVALID_ARG);
    ask(&mut session, 0, &open_call()).unwrap();
}

#[test]
fn other_programs_and_procedures_are_refused_as_libvirt_does() {
    let mut session = opened();
    session.push(&frame(1, 273, &[]), s(0));
    let error = answered(&mut session, 1).unwrap_err();
    assert_eq!(error.code, Code::RPC);
    assert!(error.message.starts_with("unknown procedure: 273"), "{error}");
    let mut bytes = frame(2, 1, &[]);
    bytes[4..8].copy_from_slice(&0x2000_8087_u32.to_be_bytes());
    session.push(&bytes, s(0));
    let error = answered(&mut session, 2).unwrap_err();
    assert_eq!(error.message, "Cannot find program 536903815 version 1");
    assert!(!session.is_over());
}

#[test]
fn pings_are_answered_and_asked_until_the_client_is_silent_for_30_seconds() {
    let mut session = opened();
    session.push(&keepalive::ping(), s(1));
    assert_eq!(session.output(), keepalive::pong());
    assert_eq!(session.next_tick(), None, "no pings before the client has asked for the feature");
    session.push(&framed(1, &Call::SupportsFeature(10)), s(2));
    sent(&mut session);
    let mut pings = 0;
    for second in 3..32 {
        session.tick(s(second));
        pings += sent(&mut session).len();
    }
    assert_eq!(pings, 5);
    assert!(!session.is_over());
    assert_eq!(session.next_tick(), Some(s(32)));
    session.tick(s(32));
    assert_eq!(session.event(), Some(Event::Closed(Ended::Silent)));
}

#[test]
fn who_does_not_open_in_time_is_sent_away() {
    let mut session = session();
    session.push(&framed(1, &Call::AuthList), s(29));
    assert_eq!(session.next_tick(), Some(s(30)));
    session.tick(s(29));
    assert!(!session.is_over());
    session.tick(s(30));
    assert_eq!(session.event(), Some(Event::Closed(Ended::NeverOpened)));
}

/// The violation that ends a session that hears this.
fn violation(mut session: Session, bytes: &[u8]) -> Violation {
    session.push(bytes, s(0));
    loop {
        match session.event() {
            Some(Event::Closed(Ended::Violation(violation))) => {
                let rest = framed(9, &Call::GetHostname);
                sent(&mut session);
                session.push(&rest, s(0));
                assert!(session.output().is_empty(), "it hears nothing more");
                return violation;
            }
            Some(_) => {}
            None => panic!("it goes on"),
        }
    }
}

#[test]
fn what_no_client_does_ends_the_session() {
    let header = |program, kind, status| Header { program, procedure: 1, kind, serial: 1, status };
    for kind in [Kind::Reply, Kind::Message, Kind::Stream, Kind::StreamHole] {
        let bytes = header(Program::Remote, kind, Status::Ok).with_payload(&[]);
        let program = Program::Remote;
        assert_eq!(violation(opened(), &bytes), Violation::Kind { program, kind });
    }
    let status = Status::Error;
    let bytes = header(Program::Remote, Kind::Call, status).with_payload(&[]);
    assert_eq!(violation(opened(), &bytes), Violation::Status { status });
    let bytes = header(Program::Keepalive, Kind::Message, Status::Ok).with_payload(&[0; 4]);
    assert_eq!(violation(opened(), &bytes), Violation::Keepalive { len: 4 });
    let (program, kind) = (Program::Keepalive, Kind::Call);
    let bytes = header(program, kind, Status::Ok).with_payload(&[]);
    assert_eq!(violation(opened(), &bytes), Violation::Kind { program, kind });
    let twice = [framed(1, &prepare_call()), framed(1, &Call::GetType)].concat();
    assert_eq!(violation(opened(), &twice), Violation::SerialTwice { serial: 1 });
    let short = violation(opened(), &frame(1, 303, &[0; 2]));
    assert!(matches!(short, Violation::Call { serial: 1, .. }), "{short}");
}

#[test]
fn arguments_that_are_none_are_answered_before_the_connection_ends() {
    let mut session = opened();
    session.push(&frame(1, 303, &[0xff; 4]), s(0));
    assert!(session.is_over());
    assert_eq!(answered(&mut session, 1).unwrap_err().code, Code::RPC);
}

#[test]
fn what_is_pushed_while_nothing_is_wanted_ends_the_session() {
    let mut session = opened();
    let calls: Vec<u8> = (0..20_000).flat_map(|at| framed(at, &Call::GetCapabilities)).collect();
    session.push(&calls, s(0));
    assert!(!session.wants_input());
    assert!(session.line.output_len() < OUTPUT_MAX + 1024);
    assert_eq!(sent(&mut session).len(), 20_000, "nothing is lost");
    assert!(session.wants_input());
    let mut small = Session::new(host(), Limits { frame: 1 << 10, ..Limits::default() }, s(0));
    ask(&mut small, 0, &open_call()).unwrap();
    for _ in 0..4 {
        small.push(&calls, s(0));
    }
    let ended = small.event();
    assert!(matches!(ended, Some(Event::Closed(Ended::Violation(Violation::Overrun { .. })))));
}
