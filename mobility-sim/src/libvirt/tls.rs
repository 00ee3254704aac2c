//! `qemu+tls`: hosts that show a certificate, as libvirt's own daemon wants them to.
//!
//! After the handshake libvirt's server says whether it takes the client's certificate: one byte, 1, inside
//! of the encryption. A client that is not taken sees the connection end instead.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
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
    #[error("no certificate or key in {} can be used", path.display())]
    Pem { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("{} holds no certificate", path.display())]
    Empty { path: PathBuf },
    #[error("the authority in {} is none", path.display())]
    Authority { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("certificate {} and key {} do not go together", cert.display(), key.display())]
    Pair { cert: PathBuf, key: PathBuf, source: rustls::Error },
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
        for root in certificates(ca)? {
            let authority =
                |source| TlsError::Authority { path: ca.clone(), source: Box::new(source) };
            roots.add(root).map_err(authority)?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let authority = |source| TlsError::Authority { path: ca.clone(), source: Box::new(source) };
        let verifier = verifier.build().map_err(authority)?;
        let chain = certificates(cert)?;
        let secret = PrivateKeyDer::from_pem_file(key)
            .map_err(|source| TlsError::Pem { path: key.clone(), source })?;
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

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { path: path.to_owned(), source };
    let all = CertificateDer::pem_file_iter(path).map_err(pem)?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(pem)?;
    if all.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(all)
}
