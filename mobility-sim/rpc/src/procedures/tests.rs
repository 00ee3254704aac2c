use super::*;

#[test]
fn numbers_are_those_of_libvirt_and_nobody_has_two() {
    for procedure in Procedure::ALL {
        assert_eq!(Procedure::from_number(procedure.number()), Some(procedure));
    }
    assert_eq!(Procedure::UndefineFlags.number(), 231);
    assert_eq!(Procedure::Prepare3Params.number(), 303);
    assert_eq!(Procedure::UnregisterCloseCallback.number(), 361);
}

#[test]
fn arguments_with_bytes_left_over_are_refused() {
    let procedure = Procedure::SupportsFeature;
    let cause = XdrError::TooLong { left: 4 };
    let decoded = Call::decode(60, &[0, 0, 0, 10, 0, 0, 0, 0]);
    assert_eq!(decoded, Err(CallError::Arguments { procedure, cause }));
}

#[test]
fn an_unknown_procedure_is_told_in_the_words_that_clients_look_for() {
    let error = Call::decode(273, &[]).unwrap_err();
    assert_eq!(error, CallError::Unknown { number: 273 });
    assert_eq!(error.to_string(), "unknown procedure: 273");
}
