//! What is answered to which call.

use bytes::Bytes;

use super::migration::Migration;
use super::{Ended, Event, Goodbye, Session, Stage, Violation};
use crate::error::{Code, Origin, RemoteError};
use crate::feature::Feature;
use crate::flags::Flags;
use crate::frame::{Header, Program, Status};
use crate::params::{Name, Params, ParamsError};
use crate::procedures::{Auth, Begin, Call, CallError, Confirm, Finish, Prepare, Reply};

/// `VIR_CONNECT_RO`.
const READ_ONLY: u32 = 1;

/// What becomes of a call that was understood.
enum Answer {
    Reply(Reply),
    /// It is answered later.
    Later,
    /// The reply, and then nothing more.
    Goodbye(Reply),
}

impl Session {
    pub(super) fn hear_call(&mut self, header: Header, args: &Bytes) -> Result<(), Violation> {
        if header.status != Status::Ok {
            return Err(Violation::Status { status: header.status });
        }
        let serial = header.serial;
        self.migration.check_serial(serial)?;
        if header.program != Program::Remote {
            self.refuse(header, &RemoteError::rpc(&format!("Cannot find {}", header.program)));
            return Ok(());
        }
        let call = match Call::decode(header.procedure, args) {
            Ok(call) => call,
            Err(cause @ CallError::Unknown { .. }) => {
                let message = format!("{cause}: this host only takes migrations");
                self.refuse(header, &RemoteError::rpc(&message));
                return Ok(());
            }
            Err(cause) => {
                self.refuse(header, &RemoteError::rpc("Unable to decode message payload"));
                return Err(Violation::Call { serial, cause });
            }
        };
        match self.carry_out(header, call) {
            Ok(Answer::Reply(reply)) => self.answer(header, Ok(reply)),
            Ok(Answer::Later) => {}
            Ok(Answer::Goodbye(reply)) => {
                self.answer(header, Ok(reply));
                self.end(Ended::Closed);
            }
            Err(error) => self.refuse(header, &error),
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, header: Header, answer: Result<Reply, RemoteError>) {
        match answer {
            Ok(reply) => {
                let frame = header.reply(Status::Ok).with_payload(&reply.encode());
                self.line.send(&frame);
            }
            Err(error) => self.refuse(header, &error),
        }
    }

    fn refuse(&mut self, header: Header, error: &RemoteError) {
        self.line.send(&header.reply(Status::Error).with_payload(error.encode()));
    }

    fn carry_out(&mut self, header: Header, call: Call) -> Result<Answer, RemoteError> {
        // These need no open connection.
        match call {
            Call::AuthList => return Ok(Answer::Reply(Reply::AuthList(vec![Auth::None]))),
            Call::Open { name, flags } => return self.open(name.as_deref(), flags),
            Call::SupportsFeature(number) if number == Feature::ProgramKeepalive.number() => {
                self.line.begin_keepalive();
                return Ok(Answer::Reply(Reply::Supported(1)));
            }
            Call::Close => {
                self.say_goodbye(Goodbye::Closed);
                return Ok(Answer::Goodbye(Reply::Done(call.procedure())));
            }
            _ => {}
        }
        let Stage::Open { read_only } = self.stage else {
            return Err(RemoteError::internal("hypervisor connection not open"));
        };
        let host = &self.host;
        Ok(Answer::Reply(match call {
            Call::GetType => Reply::Type("QEMU".to_owned()),
            Call::GetVersion => Reply::Version(host.hypervisor_version),
            Call::GetLibVersion => Reply::LibVersion(host.libvirt_version),
            Call::GetHostname => Reply::Hostname(host.hostname.clone()),
            Call::GetUri => Reply::Uri(host.uri.clone()),
            Call::GetCapabilities => Reply::Capabilities(host.capabilities.clone()),
            Call::IsSecure => Reply::Secure(host.secure),
            Call::SupportsFeature(number) => {
                let served = Feature::from_number(number).is_some_and(Feature::is_served);
                Reply::Supported(served.into())
            }
            Call::RegisterCloseCallback | Call::UnregisterCloseCallback => {
                return self.callback(&call);
            }
            Call::LookupByName(name) => return Err(no_domain("name", &name)),
            Call::LookupByUuid(uuid) => {
                let uuid: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
                return Err(no_domain("uuid", &uuid));
            }
            Call::GetState { domain, .. }
            | Call::Undefine { domain, .. }
            | Call::Begin(Begin { domain, .. })
            | Call::Confirm(Confirm { domain, .. }) => {
                return Err(no_domain("name", &domain.name));
            }
            Call::PrepareTunnel(_) => {
                let message = "this host takes no tunnelled migrations: leave --tunnelled out";
                return Err(RemoteError::unsupported(message));
            }
            Call::Prepare(prepare) => return self.prepare(header, prepare, read_only),
            Call::Finish(finish) => return self.finish(header, finish),
            Call::AuthList | Call::Open { .. } | Call::Close => {
                unreachable!("answered above, whatever the stage")
            }
        }))
    }

    fn open(&mut self, name: Option<&str>, flags: u32) -> Result<Answer, RemoteError> {
        let name = name.unwrap_or_default();
        if self.stage != Stage::New {
            return Err(RemoteError::internal("connection already open"));
        }
        if !name.is_empty() && name != self.host.uri {
            let message = format!("no connection driver available for {name}");
            return Err(RemoteError::new(Code::NO_CONNECT, Origin::NONE, &message));
        }
        if flags & !READ_ONLY != 0 {
            let message = format!("unsupported flags ({:#x}) for a connection", flags & !READ_ONLY);
            return Err(RemoteError::new(Code::INVALID_ARG, Origin::REMOTE, &message));
        }
        self.stage = Stage::Open { read_only: flags & READ_ONLY != 0 };
        self.line.set_frame_max(self.limits.frame);
        Ok(Answer::Reply(Reply::Done(crate::procedures::Procedure::Open)))
    }

    fn say_goodbye(&mut self, how: Goodbye) {
        self.line.tell(Event::Closing { how, after_handover: self.handed_over });
    }

    fn callback(&mut self, call: &Call) -> Result<Answer, RemoteError> {
        let registers = *call == Call::RegisterCloseCallback;
        if registers == self.callback_registered {
            let message = if registers {
                "A close callback is already registered"
            } else {
                "A different callback was requested"
            };
            return Err(RemoteError::new(Code::OPERATION_INVALID, Origin::REMOTE, message));
        }
        self.callback_registered = registers;
        if !registers {
            self.say_goodbye(Goodbye::Unregistered);
        }
        Ok(Answer::Reply(Reply::Done(call.procedure())))
    }

    fn prepare(
        &mut self,
        header: Header,
        prepare: Prepare,
        read_only: bool,
    ) -> Result<Answer, RemoteError> {
        if read_only {
            let message = "operation forbidden for read only access";
            return Err(RemoteError::new(Code::OPERATION_DENIED, Origin::REMOTE, message));
        }
        self.migration.may_prepare()?;
        let Prepare { mut params, cookie, flags } = prepare;
        let refused = flags.and(self.host.refused_flags | Flags::UNKNOWN);
        if !refused.is_empty() {
            let message = format!("this host takes no migrations with {refused}: leave that out");
            return Err(RemoteError::unsupported(&message));
        }
        params.check().map_err(|error| bad_params(&error))?;
        let xml = take_text(&mut params, &Name::DESTINATION_XML)?;
        self.migration = Migration::Preparing(header);
        self.handed_over = false;
        let serial = header.serial;
        self.line.tell(Event::Prepare { serial, xml, params, cookie, flags });
        Ok(Answer::Later)
    }

    fn finish(&mut self, header: Header, finish: Finish) -> Result<Answer, RemoteError> {
        self.migration.may_finish()?;
        let Finish { mut params, cookie, flags, cancelled } = finish;
        params.check().map_err(|error| bad_params(&error))?;
        let name = take_text(&mut params, &Name::DESTINATION_NAME)?;
        self.migration = Migration::Finishing { header, cancelled };
        let serial = header.serial;
        self.line.tell(Event::Finish { serial, name, params, cookie, flags, cancelled });
        Ok(Answer::Later)
    }
}

fn take_text(params: &mut Params, name: &Name<crate::params::Text>) -> Result<String, RemoteError> {
    match params.remove(name).pop() {
        Some(crate::params::Value::String(text)) => Ok(text),
        _ => {
            let message = format!("parameter '{}' is missing", name.field);
            Err(RemoteError::new(Code::INVALID_ARG, Origin::QEMU, &message))
        }
    }
}

fn bad_params(error: &ParamsError) -> RemoteError {
    let code = match error {
        ParamsError::Unknown { .. } => Code::ARGUMENT_UNSUPPORTED,
        ParamsError::Kind { .. } | ParamsError::Repeated { .. } => Code::INVALID_ARG,
    };
    RemoteError::new(code, Origin::NONE, &error.to_string())
}

fn no_domain(what: &str, of: &str) -> RemoteError {
    let message = format!("Domain not found: no domain with matching {what} '{of}'");
    RemoteError::new(Code::NO_DOMAIN, Origin::QEMU, &message)
}
