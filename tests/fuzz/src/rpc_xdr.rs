//! Arguments, replies and errors of libvirt's protocol: [`rpc::procedures`], [`rpc::error`],
//! [`rpc::params`].

use rpc::error::RemoteError;
use rpc::params::{Name, PARAMS_MAX, Params};
use rpc::procedures::{Call, CallError, Procedure, Reply};

use crate::memory::bounded;

/// What small things take, whatever was sent: 64 parameters above all.
const CONSTANT: usize = 16 << 10;

pub fn check(bytes: &[u8]) {
    let memory = 4 * bytes.len() + CONSTANT;
    for procedure in Procedure::ALL {
        let number = procedure.number();
        if let Ok(call) = bounded(memory, || Call::decode(number, bytes)) {
            assert_eq!(call.encode(), bytes, "another way to write {call:?}");
            one_way(bytes, |bytes| Call::decode(number, bytes).is_ok());
            match call {
                Call::Prepare(prepare) => parameters(prepare.params),
                Call::Finish(finish) => parameters(finish.params),
                _ => {}
            }
        }
        if let Ok(reply) = bounded(memory, || Reply::decode(procedure, bytes)) {
            assert_eq!(reply.procedure(), procedure);
            assert_eq!(reply.encode(), bytes, "another way to write {reply:?}");
            one_way(bytes, |bytes| Reply::decode(procedure, bytes).is_ok());
        }
    }
    if let Ok(error) = bounded(memory, || RemoteError::decode(bytes)) {
        assert_eq!(error.encode(), bytes, "it is not passed on as it came");
        assert!(!error.to_string().is_empty());
        one_way(bytes, |bytes| RemoteError::decode(bytes).is_ok());
    }
    unknown(bytes);
}

/// What is whole is nothing else if something is cut off or put behind it.
fn one_way(bytes: &[u8], is_read: impl Fn(&[u8]) -> bool) {
    // Of long ones the two ends: each step costs as much as it is long.
    for cut in (0..bytes.len()).filter(|cut| *cut < 64 || bytes.len() - cut < 16) {
        assert!(!is_read(&bytes[..cut]), "{cut} of {} bytes are enough", bytes.len());
    }
    assert!(!is_read(&[bytes, &[0; 4]].concat()), "what follows is read over");
}

/// What an agent does with the parameters of one site before it hands them to the other.
fn parameters(mut params: Params) {
    let (checked, before) = (params.check(), params.len());
    assert!(before <= PARAMS_MAX, "{before} parameters");
    let disks = params.all::<&str>(&Name::MIGRATE_DISKS).count();
    for name in [Name::MIGRATE_URI, Name::DISKS_URI, Name::LISTEN_ADDRESS] {
        params.remove(&name);
        assert_eq!(params.get::<&str>(&name), None);
    }
    params.remove(&Name::DISKS_PORT);
    assert_eq!(params.all::<&str>(&Name::MIGRATE_DISKS).count(), disks);
    assert!(checked.is_err() || params.check().is_ok(), "fewer are worse");
    if params.replace(&Name::DESTINATION_XML, "<domain/>").is_ok() {
        let found: Vec<&str> = params.all(&Name::DESTINATION_XML).collect();
        assert_eq!(found, ["<domain/>"]);
    }
    params.rename(&Name::DESTINATION_XML, &Name::PERSISTENT_XML);
    assert_eq!(params.get::<&str>(&Name::DESTINATION_XML), None);
    assert!(params.len() <= before + 1);
}

/// The first bytes as the number of a procedure that is not served.
fn unknown(bytes: &[u8]) {
    let Some((number, args)) = bytes.split_first_chunk() else { return };
    let number = i32::from_be_bytes(*number);
    if Procedure::from_number(number).is_none() {
        assert_eq!(Call::decode(number, args), Err(CallError::Unknown { number }));
    }
}
