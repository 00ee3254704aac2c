//! What of a migration's wishes this agent takes part in, and what it passes on.

use rpc::flags::Flags;
use rpc::params::{Name, NoRoom, Params, Value};

use crate::wan::message::{Param, ParamValue};

/// Refused by the session itself, in libvirt's words for them.
pub const REFUSED: Flags = Flags(
    Flags::POSTCOPY.0
        | Flags::POSTCOPY_RESUME.0
        | Flags::TUNNELLED.0
        | Flags::TLS.0
        | Flags::RDMA_PIN_ALL.0
        | Flags::OFFLINE.0
        | Flags::NON_SHARED_INC.0,
);

/// What the destination's libvirtd is to know of an operator's wishes. Where data goes and who
/// listens is the two agents' own business, and a definition travels by itself.
fn is_passed_on(field: &str) -> bool {
    [Name::DESTINATION_NAME.field, Name::MIGRATE_DISKS.field, Name::COMPRESSION.field]
        .into_iter()
        .chain([Name::BANDWIDTH.field, Name::COMPRESSION_XBZRLE_CACHE.field])
        .chain([
            Name::PARALLEL_CONNECTIONS.field,
            Name::COMPRESSION_MT_LEVEL.field,
            Name::COMPRESSION_MT_THREADS.field,
            Name::COMPRESSION_MT_DTHREADS.field,
            Name::AUTO_CONVERGE_INITIAL.field,
            Name::AUTO_CONVERGE_INCREMENT.field,
        ])
        .any(|known| known == field)
}

/// For the other agent.
pub fn passed_on(params: &Params) -> Vec<Param> {
    let param = |param: &rpc::params::Param| {
        let value = match &param.value {
            Value::Int(value) => ParamValue::Int(*value),
            Value::Ullong(value) => ParamValue::Ullong(*value),
            Value::String(value) => ParamValue::Text(value.clone()),
            _ => return None,
        };
        Some(Param { field: param.field.clone(), value })
    };
    params.iter().filter(|param| is_passed_on(&param.field)).filter_map(param).collect()
}

/// From the other agent, which is not believed more than any client.
pub fn taken(params: &[Param]) -> Result<Params, NoRoom> {
    let mut taken = Params::new();
    for Param { field, value } in params.iter().filter(|param| is_passed_on(&param.field)) {
        let value = match value {
            ParamValue::Int(value) => Value::Int(*value),
            ParamValue::Ullong(value) => Value::Ullong(*value),
            ParamValue::Text(value) => Value::String(value.clone()),
        };
        taken.push(field, value)?;
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_data_goes_is_not_passed_on_and_what_the_operator_wants_is() {
        let mut params = Params::new();
        params.add(&Name::MIGRATE_URI, "tcp://agent:1").unwrap();
        params.add(&Name::DISKS_URI, "tcp://agent:2").unwrap();
        params.add(&Name::LISTEN_ADDRESS, "0.0.0.0").unwrap();
        params.add(&Name::PERSISTENT_XML, "<domain/>").unwrap();
        params.add(&Name::DISKS_PORT, 7).unwrap();
        params.add(&Name::PARALLEL_CONNECTIONS, 2).unwrap();
        params.add(&Name::BANDWIDTH, 8_u64).unwrap();
        params.add(&Name::MIGRATE_DISKS, "vda").unwrap();
        let passed = passed_on(&params);
        let names: Vec<_> = passed.iter().map(|param| &*param.field).collect();
        assert_eq!(names, ["parallel.connections", "bandwidth", "migrate_disks"]);
        let mut more = passed.clone();
        more.push(Param { field: "migrate_uri".to_owned(), value: ParamValue::Int(1) });
        let taken = taken(&more).unwrap();
        assert_eq!(passed_on(&taken), passed);
        taken.check().unwrap();
    }
}
