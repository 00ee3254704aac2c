//! What clients may say to a session of libvirt's protocol: [`rpc::server`]. Honest calls, calls in
//! any order, lies in a frame, noise; and what the caller answers, and how time goes by.

use std::time::Duration;

use rpc::error::RemoteError;
use rpc::flags::Flags;
use rpc::frame::{Decoder, FRAME_MAX, Frame, Header, Kind, Program, Status};
use rpc::params::{Name, Params, Value};
use rpc::procedures::{Call, Domain, Finish, Finished, Prepare, Prepared};
use rpc::server::{AnswerError, Event, Host, Limits, Session};

use crate::memory::bounded;
use crate::script::Script;

/// Acts of one client; more of them say nothing new.
const ACTS_MAX: usize = 300;

const REFUSED: Flags = Flags::POSTCOPY;

/// Of what is answered to the shortest call, which is one that is refused.
const MEMORY: usize = 64 << 10;

pub fn check(bytes: &[u8]) {
    let mut script = Script(bytes);
    let mut ends = Ends::new();
    for serial in 0..ACTS_MAX {
        let Some(act) = script.next() else { break };
        let serial = u32::try_from(serial).expect("few acts");
        match act % 8 {
            0..=2 => {
                let call = call(&mut script);
                ends.hear(&framed(serial, &call));
            }
            3 => {
                let (frame, torn) = lying(serial, &mut script);
                ends.torn |= torn;
                ends.hear(&frame);
            }
            4 => ends.answer(script.byte()),
            5 => ends.tick(Duration::from_secs(script.byte().into())),
            6 => ends.answer_wrongly(serial + 1),
            _ => {
                ends.torn = true;
                ends.hear(script.bytes());
            }
        }
    }
    ends.take_in_an_honest_one();
}

/// A call, sometimes of the wrong time, with parameters and flags that may be refused.
fn call(script: &mut Script<'_>) -> Call {
    match script.below(12) {
        0 | 1 => Call::Open { name: Some("qemu:///system".to_owned()), flags: 0 },
        2 | 3 => Call::Prepare(prepare(script)),
        4 | 5 => {
            let flags = Flags(script.short().into());
            let params = params(script);
            Call::Finish(Finish {
                params,
                cookie: script.bytes().to_vec(),
                flags,
                cancelled: script.byte() & 1 == 1,
            })
        }
        6 => Call::SupportsFeature(script.byte().into()),
        7 => Call::RegisterCloseCallback,
        8 => Call::UnregisterCloseCallback,
        9 => match script.byte() {
            0 => Call::Close,
            byte => Call::Open { name: None, flags: u32::from(byte & 2) },
        },
        10 => Call::GetCapabilities,
        _ => Call::PrepareTunnel(prepare(script)),
    }
}

fn prepare(script: &mut Script<'_>) -> Prepare {
    let flags = Flags(script.short().into());
    Prepare { params: params(script), cookie: script.bytes().to_vec(), flags }
}

fn params(script: &mut Script<'_>) -> Params {
    let mut params = Params::new();
    for _ in 0..script.below(5) {
        let field = ["destination_xml", "destination_name", "migrate_disks", "bandwidth", "x"];
        let field = field[script.below(field.len())];
        let value = match script.below(4) {
            0 => Value::Ullong(script.long()),
            1 => Value::Int(script.byte().into()),
            _ => Value::String("web1".to_owned()),
        };
        params.push(field, value).expect("there is room");
    }
    params
}

fn framed(serial: u32, call: &Call) -> Vec<u8> {
    let (program, kind, status) = (Program::Remote, Kind::Call, Status::Ok);
    let procedure = call.procedure().number();
    Header { program, procedure, kind, serial, status }.with_payload(&call.encode())
}

/// A frame of which one word of the header, or the length, is another; and if it is the length.
fn lying(serial: u32, script: &mut Script<'_>) -> (Vec<u8>, bool) {
    let call = call(script);
    let mut frame = framed(serial, &call);
    let at = 4 * script.below(9);
    if let Some(word) = frame.get_mut(at..at + 4) {
        word.copy_from_slice(&[script.byte(), script.byte(), script.byte(), script.byte()]);
    }
    (frame, at == 0)
}

fn finished() -> Finished {
    let domain = Domain { name: "web1".to_owned(), uuid: [7; 16], id: 1 };
    Finished { domain, cookie: Vec::new() }
}

/// How far the migration is, by what was told and answered.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    None,
    Preparing(u32),
    Prepared,
    Finishing { serial: u32, cancelled: bool },
}

/// A session that hears everything at once and one that hears it byte by byte, and who watches
/// both.
struct Ends {
    at_once: Session,
    by_bytes: Session,
    now: Duration,
    sent: Decoder,
    opened: bool,
    phase: Phase,
    over: bool,
    handed_over: bool,
    /// A part of a frame may have been left behind, or one that says that it is longer.
    torn: bool,
    /// Answers of ours that must be on the wire: their number, and whether a VM ends the source's.
    owed: Vec<(u32, Status)>,
}

impl Ends {
    fn new() -> Self {
        let host = Host {
            hostname: "west".to_owned(),
            uri: "qemu:///system".to_owned(),
            hypervisor_version: 7_002_022,
            libvirt_version: 9_000_000,
            capabilities: "<capabilities/>".to_owned(),
            secure: true,
            refused_flags: REFUSED,
        };
        let session = || Session::new(host.clone(), Limits::default(), Duration::ZERO);
        Self {
            at_once: session(),
            by_bytes: session(),
            now: Duration::ZERO,
            sent: Decoder::new(FRAME_MAX),
            opened: false,
            phase: Phase::None,
            over: false,
            handed_over: false,
            torn: false,
            owed: Vec::new(),
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        let now = self.now;
        bounded(16 * bytes.len() + MEMORY, || self.at_once.push(bytes, now));
        for byte in bytes {
            self.by_bytes.push(&[*byte], now);
        }
        self.watch();
    }

    fn tick(&mut self, by: Duration) {
        self.now += by;
        self.at_once.tick(self.now);
        self.by_bytes.tick(self.now);
        self.watch();
        let next = self.at_once.next_tick();
        assert!(next.is_none_or(|next| next > self.now), "due, and nothing was done");
    }

    /// Of what waits for an answer.
    fn answer(&mut self, how: u8) {
        let well = how & 1 == 0;
        let failed = || RemoteError::operation_failed("no");
        match self.phase {
            Phase::None | Phase::Prepared => return,
            Phase::Preparing(serial) => {
                let prepared = Prepared { cookie: vec![how], uri: None };
                for session in [&mut self.at_once, &mut self.by_bytes] {
                    let answer = if well { Ok(prepared.clone()) } else { Err(failed()) };
                    session.answer_prepare(serial, answer).expect("it waits");
                }
                self.phase = if well { Phase::Prepared } else { Phase::None };
                self.owed.push((serial, if well { Status::Ok } else { Status::Error }));
            }
            Phase::Finishing { serial, cancelled } => {
                for session in [&mut self.at_once, &mut self.by_bytes] {
                    if well && cancelled {
                        let refused = session.answer_finish(serial, Ok(finished()));
                        assert_eq!(refused, Err(AnswerError::Cancelled { serial }));
                    }
                    let answer = if well && !cancelled { Ok(finished()) } else { Err(failed()) };
                    session.answer_finish(serial, answer).expect("it waits");
                }
                self.phase = Phase::None;
                let ok = well && !cancelled;
                self.handed_over = ok;
                self.owed.push((serial, if ok { Status::Ok } else { Status::Error }));
            }
        }
        self.watch();
    }

    /// What nobody asked is not answered.
    fn answer_wrongly(&mut self, serial: u32) {
        for session in [&mut self.at_once, &mut self.by_bytes] {
            let failed = || RemoteError::operation_failed("no");
            assert!(session.answer_prepare(serial, Err(failed())).is_err());
            assert!(session.answer_finish(serial, Err(failed())).is_err());
        }
        self.watch();
    }

    /// Both say the same, and it is what may be said now.
    fn watch(&mut self) {
        let (output, events) = all_of(&mut self.at_once);
        assert_eq!((output.clone(), events.clone()), all_of(&mut self.by_bytes));
        assert!(
            !self.over || (output.is_empty() && events.is_empty()),
            "after the end: {events:?}"
        );
        self.sent.push(&output);
        while let Some(frame) = self.sent.next_frame().expect("it sends frames") {
            self.see_frame(&frame);
        }
        assert_eq!(self.sent.held(), 0, "a part of a frame");
        assert!(self.over || self.owed.is_empty(), "not sent: {:?}", self.owed);
        for event in events {
            self.see_event(event);
        }
        assert!(self.over || self.at_once.wants_input(), "it is stuck");
    }

    fn see_frame(&mut self, frame: &Frame) {
        let Header { program, procedure, kind, serial, status } = frame.header;
        match (program, kind) {
            (Program::Keepalive, Kind::Message) => assert!(frame.payload.is_empty()),
            (_, Kind::Reply) => {
                self.opened |= procedure == 1 && status == Status::Ok;
                if let Some(at) = self.owed.iter().position(|(owed, _)| *owed == serial) {
                    assert_eq!(self.owed.remove(at).1, status);
                } else {
                    let by_itself = !matches!(procedure, 303..=306) || status == Status::Error;
                    assert!(by_itself, "nobody answered {serial}");
                }
                if status == Status::Error {
                    RemoteError::decode(&frame.payload).expect("an error");
                }
            }
            other => panic!("a server says {other:?}"),
        }
    }

    fn see_event(&mut self, event: Event) {
        match event {
            Event::Prepare { serial, params, flags, .. } => {
                assert!(self.opened, "Prepare before the connection was open");
                assert_eq!(self.phase, Phase::None);
                assert!(flags.and(REFUSED | Flags::UNKNOWN).is_empty(), "{flags}");
                assert_eq!(params.check(), Ok(()));
                assert_eq!(params.get::<&str>(&Name::DESTINATION_XML), None);
                self.phase = Phase::Preparing(serial);
                self.handed_over = false;
            }
            Event::Finish { serial, params, cancelled, .. } => {
                assert_eq!(self.phase, Phase::Prepared);
                assert_eq!(params.check(), Ok(()));
                self.phase = Phase::Finishing { serial, cancelled };
            }
            Event::Closing { after_handover, .. } => {
                assert_eq!(after_handover, self.handed_over);
            }
            Event::Closed(why) => {
                assert!(!why.to_string().is_empty());
                self.over = true;
                self.phase = Phase::None;
            }
        }
    }

    /// Whatever was refused before: an honest migration goes through.
    fn take_in_an_honest_one(&mut self) {
        if self.torn {
            return;
        }
        let cancelled = finish("web1", true);
        self.hear(&framed(u32::MAX, &Call::Open { name: None, flags: 0 }));
        self.answer(1);
        if self.phase == Phase::Prepared {
            self.hear(&framed(u32::MAX - 1, &cancelled));
            self.answer(1);
        }
        if self.over {
            return;
        }
        let mut params = Params::new();
        params.add(&Name::DESTINATION_XML, "<domain/>").expect("there is room");
        let prepare = Prepare { params, cookie: Vec::new(), flags: Flags::LIVE };
        self.hear(&framed(u32::MAX - 2, &Call::Prepare(prepare)));
        assert_eq!(self.phase, Phase::Preparing(u32::MAX - 2));
        self.answer(0);
        self.hear(&framed(u32::MAX - 3, &finish("web1", false)));
        let serial = u32::MAX - 3;
        assert_eq!(self.phase, Phase::Finishing { serial, cancelled: false });
        self.answer(0);
    }
}

fn finish(name: &str, cancelled: bool) -> Call {
    let mut params = Params::new();
    params.add(&Name::DESTINATION_NAME, name).expect("there is room");
    Call::Finish(Finish { params, cookie: Vec::new(), flags: Flags::LIVE, cancelled })
}

fn all_of(session: &mut Session) -> (Vec<u8>, Vec<Event>) {
    let (mut output, mut events) = (Vec::new(), Vec::new());
    loop {
        let (sent, event) = (session.output(), session.event());
        if sent.is_empty() && event.is_none() {
            return (output, events);
        }
        output.extend(sent);
        events.extend(event);
    }
}
