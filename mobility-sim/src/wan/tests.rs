use std::net::{Ipv4Addr, SocketAddr};

use handover::SigningKey;
use model::VmId;
use tokio::io::duplex;
use tokio::net::TcpListener;
use units::{Bytes, Epoch};

use super::message::{Decided, Decision, Door, Token};
use super::*;
use crate::custody::Carried;
use crate::net::Machine;
use crate::relay::Room;

fn hello() -> Hello {
    let token = Token::new([7; 16]);
    let purpose = Purpose::Stream { token, leads_to: Door::Disks, index: 1 };
    Hello { version: message::VERSION, purpose }
}

#[tokio::test]
async fn what_is_too_long_is_refused_before_it_is_read() {
    let (mut near, mut far) = duplex(64 << 10);
    let announced = u32::try_from(HELLO_MAX + 1).unwrap().to_le_bytes();
    near.write_all(&announced).await.unwrap();
    let refused = read::<_, Hello>(&mut far, HELLO_MAX).await.unwrap_err();
    assert!(matches!(refused, WanError::TooLong { len, .. } if len == HELLO_MAX + 1), "{refused}");
    let long = "x".repeat(HELLO_MAX);
    let refused = write(&mut near, &long, HELLO_MAX).await.unwrap_err();
    assert!(matches!(refused, WanError::TooLong { .. }), "{refused}");
}

#[tokio::test]
async fn what_ends_early_or_is_nothing_is_an_error() {
    for bytes in [&[][..], &[5, 0], &[5, 0, 0, 0, b'"'], &[2, 0, 0, 0, b'{', b'x']] {
        let (mut near, mut far) = duplex(64);
        near.write_all(bytes).await.unwrap();
        drop(near);
        read::<_, Hello>(&mut far, HELLO_MAX).await.unwrap_err();
    }
    let (mut near, mut far) = duplex(1 << 10);
    write(&mut near, &hello(), HELLO_MAX).await.unwrap();
    assert_eq!(read::<_, Hello>(&mut far, HELLO_MAX).await.unwrap(), hello());
    assert!(!format!("{:?}", hello()).contains("0707"), "a token is shown");
}

#[tokio::test]
async fn two_agents_that_know_each_other_talk_and_a_stranger_does_not() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let [me, you, stranger] = [(), (), ()].map(|()| Identity::generate());
    let (my_key, your_key) = (me.public(), you.public());
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        assert!(answer(Box::new(stream), my_key, &you).await.is_err(), "a stranger is heard");
        let (stream, _) = listener.accept().await.unwrap();
        let (stream, said) = answer(Box::new(stream), my_key, &you).await.unwrap();
        assert_eq!(said, hello());
        let mut control = Control::new(stream);
        assert_eq!(control.hear().await.unwrap(), Message::Decide(Decision::Revoke));
        control.say(Message::Decided(Decided::Unknown)).await.unwrap();
        control.over.cancelled().await;
    });
    // Its handshake ends before it is judged.
    let _ = dial(&Machine, (address, your_key), &stranger, hello().purpose).await;
    let stream = dial(&Machine, (address, your_key), &me, hello().purpose).await.unwrap();
    let mut control = Control::new(stream);
    let asked = Message::Decide(Decision::Revoke);
    let answered = control.ask(asked, Duration::from_secs(10)).await.unwrap();
    assert_eq!(answered, Message::Decided(Decided::Unknown));
    drop(control);
    serving.await.unwrap();
}

/// As version 1 writes them. Never edited: another form is another version.
#[test]
fn messages_are_written_as_released() {
    let id: units::MigrationId = "native-0011aabb".parse().unwrap();
    let token = Token::new([7; 16]);
    let (shown, shown_again) = (token.clone(), token.clone());
    for (purpose, json) in [
        (
            Purpose::Migration { id: id.clone(), token },
            r#"{"migration":{"id":"native-0011aabb","token":"07070707070707070707070707070707"}}"#,
        ),
        (
            Purpose::Stream { token: shown, leads_to: Door::Memory, index: 2 },
            r#"{"stream":{"token":"07070707070707070707070707070707","leads_to":"memory","index":2}}"#,
        ),
        (
            Purpose::Templates { token: shown_again },
            r#"{"templates":{"token":"07070707070707070707070707070707"}}"#,
        ),
        (Purpose::Decision { id }, r#"{"decision":{"id":"native-0011aabb"}}"#),
    ] {
        let hello = Hello { version: 1, purpose };
        let json = format!(r#"{{"version":1,"purpose":{json}}}"#);
        assert_eq!(serde_json::to_string(&hello).unwrap(), json);
        assert_eq!(serde_json::from_str::<Hello>(&json).unwrap(), hello);
    }
    let param = |field: &str, value| message::Param { field: field.to_owned(), value };
    let params = vec![
        param("bandwidth", message::ParamValue::Ullong(8)),
        param("parallel.connections", message::ParamValue::Int(2)),
        param("migrate_disks", message::ParamValue::Text("vda".to_owned())),
    ];
    let written = concat!(
        r#"[{"field":"bandwidth","value":{"ullong":8}},"#,
        r#"{"field":"parallel.connections","value":{"int":2}},"#,
        r#"{"field":"migrate_disks","value":{"text":"vda"}}]"#
    );
    let (xml, cookie) = ("<domain/>".to_owned(), "<qemu-migration/>".to_owned());
    let carried = Carried { memory: Bytes(1), disks: Bytes(2) };
    let finished = message::Finished {
        name: "web1".to_owned(),
        uuid: uuid::Uuid::nil(),
        id: 3,
        cookie: String::new(),
        carried,
    };
    let key = || message::SiteKey::from(SigningKey::from_bytes(&[1; 32]).verifying_key());
    let (vm, epoch) = (VmId(uuid::Uuid::nil()), Epoch(4));
    let leaving =
        message::Leaving { vm, name: "web1".to_owned(), began_ms: 5, key: key(), last: Epoch(3) };
    let hex = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";
    let failed = message::Failed { code: 9, origin: 10, text: "no".to_owned() };
    for (message, json) in [
        (Message::Alive, r#""alive""#.to_owned()),
        (
            Message::Prepare(message::Prepare {
                leaving,
                xml,
                cookie: cookie.clone(),
                flags: 67,
                params: params.clone(),
            }),
            format!(
                r#"{{"prepare":{{"leaving":{{"vm":"00000000-0000-0000-0000-000000000000","name":"web1","began_ms":5,"key":"{hex}","last":3}},"xml":"<domain/>","cookie":"<qemu-migration/>","flags":67,"params":{written}}}}}"#
            ),
        ),
        (
            Message::Prepared(message::Prepared {
                cookie: cookie.clone(),
                key: key(),
                epoch,
                room: Room::NONE,
                templates: 0,
            }),
            format!(
                r#"{{"prepared":{{"cookie":"<qemu-migration/>","key":"{hex}","epoch":4,"room":{{"memory":0,"disks":0}},"templates":0}}}}"#
            ),
        ),
        (
            Message::Finish(message::Finish { carried, cookie, flags: 67, params }),
            format!(
                r#"{{"finish":{{"carried":{{"memory":1,"disks":2}},"cookie":"<qemu-migration/>","flags":67,"params":{written}}}}}"#
            ),
        ),
        (
            Message::Finished(finished),
            r#"{"finished":{"name":"web1","uuid":"00000000-0000-0000-0000-000000000000","id":3,"cookie":"","carried":{"memory":1,"disks":2}}}"#
                .to_owned(),
        ),
        (
            Message::Failed(failed),
            r#"{"failed":{"code":9,"origin":10,"text":"no"}}"#.to_owned(),
        ),
        (
            Message::Decide(Decision::Grant { fence: "00".to_owned() }),
            r#"{"decide":{"grant":{"fence":"00"}}}"#.to_owned(),
        ),
        (Message::Decide(Decision::Revoke), r#"{"decide":"revoke"}"#.to_owned()),
        (
            Message::Decided(Decided::Granted { receipt: "01".to_owned() }),
            r#"{"decided":{"granted":{"receipt":"01"}}}"#.to_owned(),
        ),
        (
            Message::Decided(Decided::Revoked { receipt: None }),
            r#"{"decided":{"revoked":{"receipt":null}}}"#.to_owned(),
        ),
        (Message::Decided(Decided::Unknown), r#"{"decided":"unknown"}"#.to_owned()),
    ] {
        assert_eq!(serde_json::to_string(&message).unwrap(), json);
        assert_eq!(serde_json::from_str::<Message>(&json).unwrap(), message);
    }
}
