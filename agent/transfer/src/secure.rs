//! Who is at the other end: TLS 1.3 with raw public keys.
//!
//! Each agent makes a key when it starts and shows the public half to the coordinator; the
//! coordinator tells each end the key of the other. There is no authority and there are no names,
//! dates or certificates (RFC 7250): a key is the one that was named, or the handshake fails. The
//! relay in between, the operator's machine and the clouds' networks see ciphertext.
//!
//! The source's agent is the TLS client of the destination's, and the coordinator that of both.

mod suites;
mod verify;

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use self::suites::Aes;
use self::verify::Pinned;

/// An Ed25519 public key, as the 44 bytes of its SubjectPublicKeyInfo. Written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 44]);

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("not an Ed25519 public key (88 hexadecimal digits of SPKI): {text:?}")]
pub struct PublicKeyError {
    pub text: String,
}

/// Bytes that are no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not an Ed25519 private key in PKCS #8")]
pub struct KeptKeyError;

/// One program's key. An agent's lives in memory only and is new with every start; the coordinator
/// keeps one per migration, so that agents know it again after a crash.
#[derive(Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    public: PublicKey,
}

/// Whose key the other end has to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// This one.
    Only(PublicKey),
    /// Any; the caller judges [`Secured::peer`] before it believes a byte.
    FirstSeen,
}

/// A stream whose other end has proven that it holds `peer`.
///
/// The client's handshake ends before the server has judged the client's key: a client whose key
/// is refused learns it from its first read.
pub struct Secured<S> {
    pub stream: TlsStream<S>,
    pub peer: PublicKey,
}

impl<S> Secured<S> {
    /// The cipher suite by its name in RFC 8446, after the prefix `TLS13_`.
    pub fn suite(&self) -> String {
        let suite = self.stream.get_ref().1.negotiated_cipher_suite();
        suite.map_or_else(String::new, |suite| format!("{:?}", suite.suite()))
    }
}

#[derive(Debug, Error)]
pub enum SecureError {
    #[error("the other end has another key than it should have")]
    WrongKey,

    #[error("the other end did not finish the handshake within {} s", HANDSHAKE_MAX.as_secs())]
    TimedOut,

    #[error("the handshake failed")]
    Handshake {
        #[source]
        cause: io::Error,
    },
}

/// Long enough for a slow relay, short enough that a peer that says nothing does not hold a slot.
const HANDSHAKE_MAX: Duration = Duration::from_secs(30);

impl Identity {
    /// A new key.
    ///
    /// # Panics
    ///
    /// When the kernel gives no random numbers.
    pub fn generate() -> Self {
        Self::from_pkcs8(&Self::generate_pkcs8()).expect("a key that was just generated is valid")
    }

    /// A new key as PKCS #8, for a program that must be the same one after a restart.
    ///
    /// # Panics
    ///
    /// When the kernel gives no random numbers.
    pub fn generate_pkcs8() -> Vec<u8> {
        let random = ring::rand::SystemRandom::new();
        ring::signature::Ed25519KeyPair::generate_pkcs8(&random)
            .expect("the kernel gives random numbers")
            .as_ref()
            .to_vec()
    }

    /// A key that was kept.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, KeptKeyError> {
        let signing = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(bytes))
            .map_err(|_| KeptKeyError)?;
        let spki = signing.public_key().ok_or(KeptKeyError)?;
        let public = PublicKey::try_from(spki.as_ref()).map_err(|_| KeptKeyError)?;
        let chain = vec![CertificateDer::from(spki.to_vec())];
        Ok(Self { key: Arc::new(CertifiedKey::new(chain, signing)), public })
    }

    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// [`Self::public`] as the control protocol carries it.
    pub fn spki_hex(&self) -> String {
        self.public.to_string()
    }
}

/// Never the key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.public)
    }
}

/// The end that speaks first: the source towards the destination, the coordinator towards agents.
pub async fn connect<S>(stream: S, me: &Identity, trust: Trust) -> Result<Secured<S>, SecureError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = client(Aes::here(), me, trust);
    let nobody = ServerName::try_from("causeway").expect("a valid name; nothing looks at it");
    let handshake = TlsConnector::from(config).connect_with(nobody, stream, |session| {
        session.set_buffer_limit(Some(WRITE_BUFFER));
    });
    let stream = within(handshake).await?;
    secured(TlsStream::Client(stream))
}

/// The end that waits.
pub async fn accept<S>(stream: S, me: &Identity, trust: Trust) -> Result<Secured<S>, SecureError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = server(Aes::here(), me, trust);
    let handshake = TlsAcceptor::from(config).accept_with(stream, |session| {
        session.set_buffer_limit(Some(WRITE_BUFFER));
    });
    let stream = within(handshake).await?;
    secured(TlsStream::Server(stream))
}

fn client(aes: Aes, me: &Identity, trust: Trust) -> Arc<ClientConfig> {
    let provider = suites::provider(aes);
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the suites are those of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { trust, provider }))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(
            &me.key,
        ))));
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Arc::new(config)
}

fn server(aes: Aes, me: &Identity, trust: Trust) -> Arc<ServerConfig> {
    let provider = suites::provider(aes);
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the suites are those of TLS 1.3")
        .with_client_cert_verifier(Arc::new(Pinned { trust, provider }))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(&me.key))));
    config.send_tls13_tickets = 0;
    // The first of the client's, unless this end would be slow with it.
    config.ignore_client_order = aes == Aes::Software;
    Arc::new(config)
}

/// How much ciphertext may wait for the socket: two blocks of the smallest size, so that
/// encrypting goes on while the socket is busy.
const WRITE_BUFFER: usize = 512 << 10;

async fn within<T>(handshake: impl Future<Output = io::Result<T>>) -> Result<T, SecureError> {
    match tokio::time::timeout(HANDSHAKE_MAX, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(cause)) if verify::is_wrong_key(&cause) => Err(SecureError::WrongKey),
        Ok(Err(cause)) => Err(SecureError::Handshake { cause }),
        Err(_) => Err(SecureError::TimedOut),
    }
}

fn secured<S>(stream: TlsStream<S>) -> Result<Secured<S>, SecureError> {
    let shown = stream.get_ref().1.peer_certificates().and_then(|shown| shown.first());
    let peer = shown.and_then(|key| PublicKey::try_from(key.as_ref()).ok());
    let peer = peer.ok_or(SecureError::WrongKey)?;
    Ok(Secured { stream, peer })
}

/// What every Ed25519 SubjectPublicKeyInfo begins with (RFC 8410); 32 bytes of key follow.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 3, 0x21, 0];

impl TryFrom<&[u8]> for PublicKey {
    type Error = PublicKeyError;

    fn try_from(spki: &[u8]) -> Result<Self, PublicKeyError> {
        let key = <[u8; 44]>::try_from(spki).ok().filter(|key| key.starts_with(&SPKI_PREFIX));
        key.map(Self).ok_or_else(|| PublicKeyError { text: hex::encode(spki) })
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        let error = || PublicKeyError { text: text.to_owned() };
        Self::try_from(hex::decode(text).map_err(|_| error())?.as_slice()).map_err(|_| error())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
