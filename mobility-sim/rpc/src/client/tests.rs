use super::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn client() -> Client {
    Client::new(Limits::default(), s(0))
}

fn reply(serial: u32, reply: &Reply) -> Vec<u8> {
    let (program, kind, status) = (Program::Remote, Kind::Reply, Status::Ok);
    let procedure = reply.procedure().number();
    Header { program, procedure, kind, serial, status }.with_payload(&reply.encode())
}

#[test]
fn calls_are_numbered_and_their_replies_may_come_in_any_order() {
    let mut client = client();
    assert_eq!(client.call(&Call::GetHostname), Ok(0));
    assert_eq!(client.call(&Call::GetType), Ok(1));
    let (hostname, kind) = (Reply::Hostname("east".to_owned()), Reply::Type("QEMU".to_owned()));
    client.push(&[reply(1, &kind), reply(0, &hostname)].concat(), s(0));
    assert_eq!(client.event(), Some(Event::Reply { serial: 1, reply: kind }));
    assert_eq!(client.event(), Some(Event::Reply { serial: 0, reply: hostname }));
    assert_eq!(client.event(), None);
}

#[test]
fn no_more_calls_wait_than_a_libvirtd_reads() {
    let mut client = client();
    for serial in 0..4 {
        assert_eq!(client.call(&Call::GetType), Ok(serial));
    }
    assert_eq!(client.call(&Call::GetType), Err(CallRefused::TooMany));
    client.push(&reply(2, &Reply::Type("QEMU".to_owned())), s(0));
    assert_eq!(client.call(&Call::GetType), Ok(4));
}

#[test]
fn a_daemon_is_pinged_once_it_said_that_it_answers_and_is_dead_after_30_seconds() {
    let mut client = client();
    client.push(&keepalive::ping(), s(1));
    assert_eq!(client.output(), keepalive::pong());
    let call = Call::supports(Feature::ProgramKeepalive);
    client.call(&call).unwrap();
    client.output();
    assert_eq!(client.next_tick(), None);
    client.push(&reply(0, &Reply::Supported(1)), s(2));
    assert!(matches!(client.event(), Some(Event::Reply { .. })));
    client.call(&Call::GetHostname).unwrap();
    client.output();
    for second in [7, 12, 17, 22, 27] {
        assert_eq!(client.next_tick(), Some(s(second)));
        client.tick(s(second));
        assert_eq!(client.output(), keepalive::ping());
    }
    client.tick(s(32));
    assert_eq!(client.event(), Some(Event::Closed(Ended::Silent)));
    assert_eq!(client.call(&Call::GetHostname), Err(CallRefused::Over));
}

#[test]
fn a_daemon_that_does_not_know_pings_gets_none() {
    let mut client = client();
    client.call(&Call::supports(Feature::ProgramKeepalive)).unwrap();
    client.push(&reply(0, &Reply::Supported(0)), s(0));
    assert_eq!(client.next_tick(), None);
}

#[test]
fn replies_that_nobody_takes_stop_the_reading() {
    let mut client = client();
    let kind = Reply::Type("QEMU".to_owned());
    for serial in 0..u32::try_from(EVENTS_MAX).unwrap() {
        client.call(&Call::GetType).unwrap();
        client.push(&reply(serial, &kind), s(0));
        client.output();
    }
    assert!(!client.wants_input());
    assert!(client.event().is_some());
    assert!(client.wants_input());
}

#[test]
fn a_frame_beyond_the_limit_ends_the_connection() {
    let mut client = Client::new(Limits { frame: 1 << 10, ..Limits::default() }, s(0));
    client.push(&1025_u32.to_be_bytes(), s(0));
    let violation = FrameError::TooLong { len: 1025, max: 1 << 10 }.into();
    assert_eq!(client.event(), Some(Event::Closed(Ended::Violation(violation))));
    assert_eq!(client.next_tick(), None);
}
