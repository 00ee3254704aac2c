//! `qemu+tls`: hosts that show a certificate, as libvirt's own daemon wants them to.
//!
//! After the handshake libvirt's server says whether it takes the client's certificate: one byte, 1, inside
//! of the encryption. A client that is not taken sees the connection end instead.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use site::ByteStream;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::config::Tls;

#[derive(Debug, Error)]
pub enum TlsError {
    #[error("cannot read listen.tls.{file}")]
    Read { file: Named, source: io::Error },
    #[error("no certificate or key in listen.tls.{file} can be used")]
    Pem { file: Named, source: pem::Error },
    #[error("listen.tls.{file} holds no certificate")]
    Empty { file: Named },
    #[error("the authority in listen.tls.ca {} is none", path.display())]
    Authority { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error(
        "listen.tls.cert {} and listen.tls.key {} do not go together", cert.display(), key.display()
    )]
    Pair { cert: PathBuf, key: PathBuf, source: rustls::Error },
}

/// A file, as the configuration has it.
#[derive(Clone, Debug)]
pub struct Named {
    /// `cert`, `key` or `ca`.
    by: &'static str,
    path: PathBuf,
}

impl Named {
    fn new(by: &'static str, path: &Path) -> Self {
        Self { by, path: path.to_owned() }
    }

    fn wrong(self, source: pem::Error) -> TlsError {
        match source {
            pem::Error::Io(source) => TlsError::Read { file: self, source },
            source => TlsError::Pem { file: self, source },
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.by, self.path.display())
    }
}

/// Takes in those who show a certificate of the authority.
#[derive(Clone)]
pub struct Doorman(TlsAcceptor);

/// A host answers at once.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const TAKEN: u8 = 1;

impl Doorman {
    pub fn new(tls: &Tls) -> Result<Self, TlsError> {
        let Tls { cert, key, ca, .. } = tls;
        let mut roots = RootCertStore::empty();
        for root in certificates(&Named::new("ca", ca))? {
            let authority =
                |source| TlsError::Authority { path: ca.clone(), source: Box::new(source) };
            roots.add(root).map_err(authority)?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let authority = |source| TlsError::Authority { path: ca.clone(), source: Box::new(source) };
        let verifier = verifier.build().map_err(authority)?;
        let chain = certificates(&Named::new("cert", cert))?;
        let secret = secret(&Named::new("key", key))?;
        let pair = |source| TlsError::Pair { cert: cert.clone(), key: key.clone(), source };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(pair)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, secret)
            .map_err(pair)?;
        // libvirt 9.0's client takes what comes first for the server's word, and a ticket for none.
        config.send_tls13_tickets = 0;
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// All that is wrong with its files.
    pub fn mistakes(tls: &Tls) -> Vec<TlsError> {
        let unread = [
            certificates(&Named::new("ca", &tls.ca)).err(),
            certificates(&Named::new("cert", &tls.cert)).err(),
            secret(&Named::new("key", &tls.key)).err(),
        ];
        let unread: Vec<_> = unread.into_iter().flatten().collect();
        if unread.is_empty() { Self::new(tls).err().into_iter().collect() } else { unread }
    }

    pub async fn take_in<S>(&self, stream: S) -> io::Result<ByteStream>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let taken = timeout(HANDSHAKE_MAX, async {
            let mut stream = self.0.accept(stream).await?;
            stream.write_all(&[TAKEN]).await?;
            stream.flush().await?;
            Ok::<_, io::Error>(stream)
        });
        let stream = taken.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Box::new(stream))
    }
}

fn certificates(file: &Named) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| file.clone().wrong(source);
    let all = CertificateDer::pem_file_iter(&file.path).map_err(wrong)?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(wrong)?;
    if all.is_empty() {
        return Err(TlsError::Empty { file: file.clone() });
    }
    Ok(all)
}

fn secret(file: &Named) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(&file.path).map_err(|source| file.clone().wrong(source))
}
