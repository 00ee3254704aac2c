//! Any bytes, and values there and back.

use proptest::collection::vec;
use proptest::prelude::*;
use rpc::client::{Client, Limits};
use rpc::error::{Code, Origin, RemoteError};
use rpc::flags::Flags;
use rpc::params::{Params, Value};
use rpc::procedures::{Call, Finish, Finished, Prepare, Prepared, Procedure, Reply};

use crate::samples::*;

fn text() -> impl Strategy<Value = String> {
    "[^\0]{0,40}"
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i32>().prop_map(Value::Int),
        any::<u32>().prop_map(Value::Uint),
        any::<i64>().prop_map(Value::Llong),
        any::<u64>().prop_map(Value::Ullong),
        (-1e300..1e300).prop_map(Value::Double),
        any::<bool>().prop_map(Value::Boolean),
        text().prop_map(Value::String),
    ]
}

fn params() -> impl Strategy<Value = Params> {
    vec(("[a-z_.]{1,79}", value()), 0..64).prop_map(|list| {
        let mut params = Params::new();
        for (field, value) in list {
            params.push(&field, value).expect("there is room");
        }
        params
    })
}

proptest! {
    #[test]
    fn arguments_and_replies_come_back_as_they_went(
        params in params(),
        cookie in vec(any::<u8>(), 0..100),
        (flags, cancelled) in any::<(u32, bool)>(),
        (name, uri) in (text(), proptest::option::of(text())),
        (uuid, id) in any::<([u8; 16], i32)>(),
    ) {
        let flags = Flags(flags);
        let prepare = Prepare { params: params.clone(), cookie: cookie.clone(), flags };
        let finish = Finish { params, cookie: cookie.clone(), flags, cancelled };
        for call in [
            Call::Prepare(prepare.clone()),
            Call::PrepareTunnel(prepare),
            Call::Finish(finish),
            Call::LookupByName(name.clone()),
            Call::Open { name: uri.clone(), flags: flags.0 },
        ] {
            prop_assert_eq!(Call::decode(call.procedure().number(), &call.encode()), Ok(call));
        }
        let domain = rpc::procedures::Domain { name, uuid, id };
        for reply in [
            Reply::Prepared(Prepared { cookie: cookie.clone(), uri }),
            Reply::Finished(Finished { domain: domain.clone(), cookie }),
            Reply::Found(Procedure::LookupByUuid, domain),
        ] {
            prop_assert_eq!(Reply::decode(reply.procedure(), &reply.encode()), Ok(reply));
        }
    }

    #[test]
    fn errors_come_back_as_they_went(code in any::<i32>(), domain in any::<i32>(), said in ".*") {
        let error = RemoteError::new(Code(code), Origin(domain), &said);
        prop_assert_eq!(RemoteError::decode(error.encode()), Ok(error));
    }

    /// There is one way to write a value.
    #[test]
    fn whatever_is_read_is_written_as_the_same_bytes(
        at in 0_usize..20,
        flips in vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        words in vec(0_u32..16, 0..12),
    ) {
        let calls = calls();
        let call = &calls[at];
        let mut mutated = call.encode();
        for (place, byte) in flips {
            if !mutated.is_empty() {
                let place = place.index(mutated.len());
                mutated[place] = byte;
            }
        }
        let small: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        for payload in [mutated, small] {
            for procedure in Procedure::ALL {
                if let Ok(call) = Call::decode(procedure.number(), &payload) {
                    prop_assert_eq!(call.encode(), &payload[..]);
                }
                if let Ok(reply) = Reply::decode(procedure, &payload) {
                    prop_assert_eq!(reply.encode(), &payload[..]);
                }
            }
            if let Ok(error) = RemoteError::decode(&payload) {
                prop_assert_eq!(error.encode(), &payload[..]);
            }
        }
    }

    #[test]
    fn no_bytes_make_either_end_panic(pieces in vec(vec(any::<u8>(), 0..60), 0..8)) {
        let (mut fresh, mut open) = (session(), opened());
        let mut client = Client::new(Limits::default(), START);
        client.call(&Call::GetHostname).expect("there is room");
        for piece in &pieces {
            fresh.push(piece, START);
            open.push(piece, START);
            client.push(piece, START);
            answer_all(&mut fresh);
            answer_all(&mut open);
            while client.event().is_some() {}
        }
    }

    /// Frames that are well made, of any numbers, in any order.
    #[test]
    fn no_calls_make_a_session_panic_and_each_is_answered_once(
        asked in vec((0_usize..24, any::<u8>(), 0_u8..8), 0..30),
    ) {
        let (mut session, calls) = (session(), calls());
        for (serial, (at, noise, cut)) in (0_u32..).zip(asked) {
            let bytes = match calls.get(at) {
                Some(call) => framed(serial, call),
                None => {
                    let number = i32::from(noise) * 2;
                    header(number, serial).with_payload(&vec![noise; usize::from(cut)])
                }
            };
            let over = session.is_over();
            session.push(&bytes, START);
            answer_all(&mut session);
            let answers: Vec<u32> =
                frames(&session.output()).iter().map(|frame| frame.header.serial).collect();
            prop_assert_eq!(answers, if over { vec![] } else { vec![serial] });
        }
    }
}
