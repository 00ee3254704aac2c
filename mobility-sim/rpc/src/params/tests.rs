use super::*;

fn of_an_operator() -> Params {
    let mut params = Params::new();
    params.add(&Name::MIGRATE_URI, "tcp://site-b:50000").unwrap();
    params.add(&Name::DESTINATION_XML, "<domain/>").unwrap();
    params.add(&Name::MIGRATE_DISKS, "vda").unwrap();
    params.add(&Name::DISKS_URI, "tcp://site-b:50001").unwrap();
    params.add(&Name::MIGRATE_DISKS, "vdb").unwrap();
    params.add(&Name::BANDWIDTH, 8_u64).unwrap();
    params.add(&Name::DISKS_PORT, 50_001).unwrap();
    params
}

#[test]
fn values_are_read_in_the_type_of_their_name() {
    let params = of_an_operator();
    assert_eq!(params.get(&Name::DESTINATION_XML), Some("<domain/>"));
    assert_eq!(params.get(&Name::BANDWIDTH), Some(8_u64));
    assert_eq!(params.get(&Name::DISKS_PORT), Some(50_001));
    assert_eq!(params.get::<&str>(&Name::LISTEN_ADDRESS), None);
    let disks: Vec<&str> = params.all(&Name::MIGRATE_DISKS).collect();
    assert_eq!(disks, ["vda", "vdb"]);
    assert_eq!(params.check(), Ok(()));
}

#[test]
fn translating_strips_the_operators_addresses_and_puts_another_definition_in() {
    let mut params = of_an_operator();
    assert_eq!(params.remove(&Name::MIGRATE_URI).len(), 1);
    params.remove(&Name::DISKS_URI);
    params.remove(&Name::LISTEN_ADDRESS);
    assert_eq!(params.remove(&Name::DISKS_PORT), [Value::Int(50_001)]);
    params.replace(&Name::DESTINATION_XML, "<domain type='kvm'/>").unwrap();
    let fields: Vec<&str> = params.iter().map(|param| param.field.as_str()).collect();
    assert_eq!(fields, ["destination_xml", "migrate_disks", "migrate_disks", "bandwidth"]);
    assert_eq!(params.get(&Name::DESTINATION_XML), Some("<domain type='kvm'/>"));
    params.replace(&Name::MIGRATE_DISKS, "sda").unwrap();
    let disks: Vec<&str> = params.all(&Name::MIGRATE_DISKS).collect();
    assert_eq!(disks, ["sda"], "one in the place of all");
    params.rename(&Name::MIGRATE_DISKS, &Name::DESTINATION_NAME);
    assert_eq!(params.get(&Name::DESTINATION_NAME), Some("sda"));
    assert_eq!(params.all::<&str>(&Name::MIGRATE_DISKS).count(), 0);
}

#[test]
fn unknown_names_wrong_types_and_twins_are_refused() {
    let with = |field: &str, value: Value| {
        let mut params = of_an_operator();
        params.push(field, value).unwrap();
        params.check().map_err(|error| error.to_string())
    };
    let text = || Value::String("x".into());
    assert_eq!(with("rdma", text()), Err("parameter 'rdma' not supported".into()));
    assert_eq!(with("compression", text()), Ok(()));
    assert_eq!(
        with("parallel.connections", text()),
        Err("invalid type 'string' for parameter 'parallel.connections', expected 'int'".into())
    );
    assert_eq!(
        with("destination_xml", text()),
        Err("parameter 'destination_xml' occurs multiple times".into())
    );
}

#[test]
fn there_are_no_more_than_64() {
    let mut params = Params::new();
    for _ in 0..PARAMS_MAX {
        params.add(&Name::MIGRATE_DISKS, "vda").unwrap();
    }
    assert_eq!(params.add(&Name::MIGRATE_DISKS, "vda"), Err(NoRoom));
    assert_eq!(params.replace(&Name::BANDWIDTH, 1_u64), Err(NoRoom));
    let long = "x".repeat(TEXT_MAX + 1);
    assert_eq!(params.replace(&Name::MIGRATE_DISKS, long), Err(NoRoom));
}
