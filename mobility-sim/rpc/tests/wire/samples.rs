//! One of every call, reply and error, and a session to try them on.

use std::time::Duration;

use rpc::error::{Code, Origin, RemoteError};
use rpc::flags::Flags;
use rpc::frame::{Decoder, FRAME_MAX, Frame, Header, Kind, Program, Status};
use rpc::params::{Name, Params, Value};
use rpc::procedures::{
    Auth, Begin, Begun, Call, Confirm, Domain, Finish, Finished, Prepare, Prepared, Procedure,
    Reply,
};
use rpc::server::{Event, Host, Limits, Session};

pub const START: Duration = Duration::ZERO;

pub fn host() -> Host {
    Host {
        hostname: "west".to_owned(),
        uri: "qemu:///system".to_owned(),
        hypervisor_version: 7_002_022,
        libvirt_version: 9_000_000,
        capabilities: "<capabilities/>".to_owned(),
        secure: true,
        refused_flags: Flags::POSTCOPY,
    }
}

pub fn session() -> Session {
    Session::new(host(), Limits::default(), START)
}

/// A session whose connection is open.
pub fn opened() -> Session {
    let mut session = session();
    session.push(&framed(0, &Call::Open { name: None, flags: 0 }), START);
    assert!(!session.output().is_empty());
    session
}

pub fn header(procedure: i32, serial: u32) -> Header {
    let (program, kind, status) = (Program::Remote, Kind::Call, Status::Ok);
    Header { program, procedure, kind, serial, status }
}

pub fn framed(serial: u32, call: &Call) -> Vec<u8> {
    header(call.procedure().number(), serial).with_payload(&call.encode())
}

pub fn frames(stream: &[u8]) -> Vec<Frame> {
    let mut decoder = Decoder::new(FRAME_MAX);
    decoder.push(stream);
    let frames = std::iter::from_fn(|| decoder.next_frame().expect("frames")).collect();
    assert_eq!(decoder.held(), 0);
    frames
}

pub fn domain() -> Domain {
    Domain { name: "web1".to_owned(), uuid: *b"0123456789abcdef", id: -1 }
}

/// One parameter of every type.
pub fn params() -> Params {
    let mut params = Params::new();
    params.add(&Name::DESTINATION_XML, "<domain/>").expect("there is room");
    params.add(&Name::DESTINATION_NAME, "web1").expect("there is room");
    params.add(&Name::BANDWIDTH, 1_u64 << 40).expect("there is room");
    params.add(&Name::PARALLEL_CONNECTIONS, -2).expect("there is room");
    for (field, value) in [
        ("uint", Value::Uint(3)),
        ("llong", Value::Llong(-4)),
        ("double", Value::Double(0.5)),
        ("boolean", Value::Boolean(true)),
    ] {
        params.push(field, value).expect("there is room");
    }
    params
}

pub fn prepare() -> Prepare {
    Prepare { params: params(), cookie: b"<in/>\0".to_vec(), flags: Flags(67) }
}

pub fn calls() -> Vec<Call> {
    let (params, cookie, flags) = (params(), b"<in/>\0".to_vec(), Flags(67));
    vec![
        Call::AuthList,
        Call::Open { name: Some("qemu:///system".to_owned()), flags: 1 },
        Call::Open { name: None, flags: 0 },
        Call::Close,
        Call::SupportsFeature(10),
        Call::GetType,
        Call::GetVersion,
        Call::GetLibVersion,
        Call::GetHostname,
        Call::GetUri,
        Call::GetCapabilities,
        Call::IsSecure,
        Call::RegisterCloseCallback,
        Call::UnregisterCloseCallback,
        Call::LookupByName("web1".to_owned()),
        Call::LookupByUuid(*b"0123456789abcdef"),
        Call::GetState { domain: domain(), flags: 0 },
        Call::Undefine { domain: domain(), flags: 5 },
        Call::Prepare(prepare()),
        Call::PrepareTunnel(prepare()),
        Call::Finish(Finish {
            params: params.clone(),
            cookie: cookie.clone(),
            flags,
            cancelled: true,
        }),
        Call::Begin(Begin { domain: domain(), params: params.clone(), flags }),
        Call::Confirm(Confirm { domain: domain(), params, cookie, flags, cancelled: true }),
    ]
}

pub fn replies() -> Vec<Reply> {
    let cookie = b"<out/>\0".to_vec();
    let uri = Some("tcp:192.0.2.1:49152".to_owned());
    vec![
        Reply::Done(Procedure::Open),
        Reply::AuthList(vec![Auth::None, Auth::Sasl, Auth::Polkit]),
        Reply::Supported(1),
        Reply::Type("QEMU".to_owned()),
        Reply::Version(7_002_022),
        Reply::LibVersion(9_000_000),
        Reply::Hostname("west".to_owned()),
        Reply::Uri("qemu:///system".to_owned()),
        Reply::Capabilities("<capabilities/>".to_owned()),
        Reply::Secure(true),
        Reply::Found(Procedure::LookupByName, domain()),
        Reply::Found(Procedure::LookupByUuid, domain()),
        Reply::State { state: 1, reason: 2 },
        Reply::Prepared(Prepared { cookie: cookie.clone(), uri }),
        Reply::Prepared(Prepared { cookie: vec![], uri: None }),
        Reply::TunnelPrepared(cookie.clone()),
        Reply::Begun(Begun { cookie: cookie.clone(), xml: "<domain/>".to_owned() }),
        Reply::Finished(Finished { domain: domain(), cookie }),
    ]
}

pub fn errors() -> Vec<RemoteError> {
    vec![
        RemoteError::operation_failed("no room"),
        RemoteError::migrate_finish_ok(),
        RemoteError::new(Code::OPERATION_INVALID, Origin::QEMU, "not now"),
    ]
}

/// Plays both ends to the end: every event is answered well.
pub fn answer_all(session: &mut Session) {
    while let Some(event) = session.event() {
        match event {
            Event::Prepare { serial, cookie, .. } => {
                let prepared = Prepared { cookie, uri: None };
                session.answer_prepare(serial, Ok(prepared)).expect("it waits");
            }
            Event::Finish { serial, cookie, cancelled, .. } => {
                let finished = Finished { domain: domain(), cookie };
                let answer =
                    if cancelled { Err(RemoteError::migrate_finish_ok()) } else { Ok(finished) };
                session.answer_finish(serial, answer).expect("it waits");
            }
            Event::Closing { .. } | Event::Closed(_) => {}
        }
    }
}
