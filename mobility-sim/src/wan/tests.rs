use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::duplex;
use tokio::net::TcpListener;

use super::message::{Decided, Decision, Door, Token};
use super::*;

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
        assert!(answer(stream, my_key, &you).await.is_err(), "a stranger is heard");
        let (stream, _) = listener.accept().await.unwrap();
        let (stream, said) = answer(stream, my_key, &you).await.unwrap();
        assert_eq!(said, hello());
        let mut control = Control::new(stream);
        assert_eq!(control.hear().await.unwrap(), Message::Decide(Decision::Revoke));
        control.say(Message::Decided(Decided::Unknown)).await.unwrap();
        control.over.cancelled().await;
    });
    // Its handshake ends before it is judged.
    let _ = dial(address, your_key, &stranger, hello().purpose).await;
    let stream = dial(address, your_key, &me, hello().purpose).await.unwrap();
    let mut control = Control::new(stream);
    let asked = Message::Decide(Decision::Revoke);
    let answered = control.ask(asked, Duration::from_secs(10)).await.unwrap();
    assert_eq!(answered, Message::Decided(Decided::Unknown));
    drop(control);
    serving.await.unwrap();
}
