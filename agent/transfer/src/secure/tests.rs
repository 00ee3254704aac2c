use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::*;

type Ends = (
    Result<Secured<tokio::io::DuplexStream>, SecureError>,
    Result<Secured<tokio::io::DuplexStream>, SecureError>,
);

async fn shake(client: (&Identity, Trust), server: (&Identity, Trust)) -> Ends {
    let (a, b) = duplex(64 << 10);
    tokio::join!(connect(a, client.0, client.1), accept(b, server.0, server.1))
}

#[tokio::test]
async fn two_ends_that_know_each_other_talk() {
    let (source, destination) = (Identity::generate(), Identity::generate());
    let ends = shake(
        (&source, Trust::Only(destination.public())),
        (&destination, Trust::Only(source.public())),
    )
    .await;
    let (mut client, mut server) = (ends.0.unwrap(), ends.1.unwrap());
    assert_eq!(client.peer, destination.public());
    assert_eq!(server.peer, source.public());
    client.stream.write_all(b"block").await.unwrap();
    client.stream.flush().await.unwrap();
    let mut got = [0; 5];
    server.stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"block");
}

#[tokio::test]
async fn aes_is_for_two_ends_that_compute_it_in_hardware() {
    use Aes::{Hardware, Software};
    let (me, you) = (Identity::generate(), Identity::generate());
    for (client, server, expected) in [
        (Hardware, Hardware, "TLS13_AES_128_GCM_SHA256"),
        (Hardware, Software, "TLS13_CHACHA20_POLY1305_SHA256"),
        (Software, Hardware, "TLS13_CHACHA20_POLY1305_SHA256"),
        (Software, Software, "TLS13_CHACHA20_POLY1305_SHA256"),
    ] {
        let (a, b) = duplex(64 << 10);
        let connector = TlsConnector::from(super::client(client, &me, Trust::FirstSeen));
        let acceptor = TlsAcceptor::from(super::server(server, &you, Trust::FirstSeen));
        let nobody = ServerName::try_from("nobody").unwrap();
        let (connected, _) = tokio::join!(connector.connect(nobody, a), acceptor.accept(b));
        let connected = secured(TlsStream::Client(connected.unwrap())).unwrap();
        assert_eq!(connected.suite(), expected, "{client:?} to {server:?}");
    }
}

#[tokio::test]
async fn another_server_is_refused() {
    let (source, destination, other) =
        (Identity::generate(), Identity::generate(), Identity::generate());
    let (client, _) =
        shake((&source, Trust::Only(destination.public())), (&other, Trust::FirstSeen)).await;
    assert!(matches!(client, Err(SecureError::WrongKey)));
}

#[tokio::test]
async fn another_client_is_refused_and_learns_it_from_its_first_read() {
    let (source, destination, other) =
        (Identity::generate(), Identity::generate(), Identity::generate());
    let (client, server) =
        shake((&other, Trust::FirstSeen), (&destination, Trust::Only(source.public()))).await;
    assert!(matches!(server, Err(SecureError::WrongKey)));
    drop(server);
    assert!(client.unwrap().stream.read_u8().await.is_err());
}

/// Shows the key of another, whose private half it does not have.
#[tokio::test]
async fn a_key_without_its_private_half_is_refused() {
    let (source, destination, thief) =
        (Identity::generate(), Identity::generate(), Identity::generate());
    let stolen = CertifiedKey::new(source.key.cert.clone(), Arc::clone(&thief.key.key));
    let thief = Identity { key: Arc::new(stolen), public: source.public() };
    let (_, server) =
        shake((&thief, Trust::FirstSeen), (&destination, Trust::Only(source.public()))).await;
    assert!(matches!(server, Err(SecureError::Handshake { .. })));
}

#[tokio::test]
async fn with_any_key_trusted_the_caller_is_told_which_it_was() {
    let (source, destination) = (Identity::generate(), Identity::generate());
    let (client, server) =
        shake((&source, Trust::FirstSeen), (&destination, Trust::FirstSeen)).await;
    assert_eq!(client.unwrap().peer, destination.public());
    assert_eq!(server.unwrap().peer, source.public());
}

#[test]
fn a_key_survives_its_own_text() {
    let identity = Identity::generate();
    assert_eq!(identity.spki_hex().parse(), Ok(identity.public()));
    let rsa_like = format!("30{}", &identity.spki_hex()[4..]);
    for text in ["", "zz", &identity.spki_hex()[2..], &rsa_like] {
        assert!(text.parse::<PublicKey>().is_err(), "{text}");
    }
}
