//! Connections whose reads tell when the kernel received what they return, in clear or beneath TLS; it understands no HTTP.

use crate::error::LoadError;
use crate::stamp::{self, Room, Wall};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// When the kernel received what was read last; read by whoever stands above TLS.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stamp(Arc<[AtomicU64; 2]>);

impl Stamp {
    fn set(&self, begins: bool, at: Option<Wall>) {
        let [first, last] = &*self.0;
        // ordering: relaxed; one task reads and writes it.
        last.store(at.unwrap_or(0), Ordering::Relaxed);
        if begins {
            // ordering: relaxed; as above.
            first.store(at.unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// The time of the first byte, where the kernel said it: beneath TLS that of the record, of which the rest may have had to wait for room.
    pub(crate) fn first(&self) -> Option<Wall> {
        let [first, _] = &*self.0;
        // ordering: relaxed; as in `set`.
        Some(first.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// The time of the last byte, where the kernel said it.
    pub(crate) fn last(&self) -> Option<Wall> {
        let [_, last] = &*self.0;
        // ordering: relaxed; as in `set`.
        Some(last.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }
}

/// A connection of which each read is stamped. Beneath TLS no read goes beyond a record, nor over its head, so that the stamps of what comes
/// out of TLS are those of the record in which it came.
#[derive(Debug)]
pub(crate) struct Intake {
    stream: TcpStream,
    room: Room,
    at: Stamp,
    records: Option<Records>,
}

/// Where a record ends: five bytes of head, of which the last two are its length.
#[derive(Clone, Copy, Debug, Default)]
struct Records {
    head: usize,
    left: usize,
}

/// Bytes of a record's head.
const RECORD_HEAD: usize = 5;

impl Records {
    fn wants(self) -> usize {
        if self.head == RECORD_HEAD { self.left } else { RECORD_HEAD.saturating_sub(self.head) }
    }

    fn pass(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.head == RECORD_HEAD {
                self.left = self.left.saturating_sub(1);
            } else {
                self.head += 1;
                if self.head > 3 {
                    self.left = self.left << 8 | usize::from(byte);
                }
                if self.head < RECORD_HEAD {
                    continue;
                }
            }
            if self.left == 0 {
                *self = Records::default();
            }
        }
    }
}

impl Intake {
    /// Stamps the reads of a connection, which carries TLS or not.
    ///
    /// # Errors
    /// When the system refuses the stamps.
    pub(crate) fn new(stream: TcpStream, tls: bool) -> Result<(Intake, Stamp), LoadError> {
        stream.set_nodelay(true).map_err(LoadError::io("set an origin connection up"))?;
        stamp::enable(&stream).map_err(LoadError::io("set an origin connection up"))?;
        let at = Stamp::default();
        let records = tls.then(Records::default);
        Ok((Intake { stream, room: Room::new(), at: at.clone(), records }, at))
    }
}

impl AsyncRead for Intake {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Intake { stream, room, at, records } = self.get_mut();
        let wants = records.map_or(usize::MAX, Records::wants);
        let most = wants.min(buffer.remaining());
        let into = buffer.initialize_unfilled_to(most);
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_io(Interest::READABLE, || stamp::read(stream, into, room)) {
                Ok(taken) => {
                    at.set(records.is_none_or(|records| records.head == 0), taken.at);
                    if let Some(records) = records {
                        records.pass(into.get(..taken.bytes).unwrap_or_default());
                    }
                    buffer.advance(taken.bytes);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Intake {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// What an origin needs for TLS: a certificate for 127.0.0.1, and the file of the authority that signed it.
pub(crate) struct Vault {
    acceptor: TlsAcceptor,
    authority: PathBuf,
    _dir: TempDir,
}

impl Vault {
    /// A new authority, and a certificate by it. `http2`: it speaks that and nothing else.
    ///
    /// # Errors
    /// When a file cannot be written, or the certificate not be made.
    pub(crate) fn new(http2: bool) -> Result<Vault, LoadError> {
        let dir = TempDir::new().map_err(LoadError::io("make a directory for a certificate"))?;
        let authority = dir.path().join("ca.pem");
        let (issuer, config) = certificate(http2)
            .map_err(|error| LoadError::Unreadable(format!("a certificate of our own: {error}")))?;
        std::fs::write(&authority, issuer).map_err(LoadError::io("write an authority's file"))?;
        Ok(Vault { acceptor: TlsAcceptor::from(Arc::new(config)), authority, _dir: dir })
    }

    /// The file of the authority.
    pub(crate) fn authority(&self) -> &Path {
        &self.authority
    }

    /// Shakes hands with who connects.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }
}

/// The authority as PEM, and a server's configuration.
fn certificate(http2: bool) -> Result<(String, ServerConfig), Box<dyn std::error::Error>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let own = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![own.der().clone()], key)?;
    config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok((issuer.pem(), config))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: no read goes beyond the record that it is in, however the bytes come.
    #[test]
    fn records_end_where_they_say() {
        let mut stream = vec![22, 3, 3, 0, 2, 1, 1];
        stream.extend([23, 3, 3, 1, 4]);
        stream.extend([9; 260]);
        stream.extend([23, 3, 3, 0, 0, 23, 3, 3, 0, 1, 7]);
        for size in [1, 2, 3, 100, 1000] {
            let (mut records, mut at, mut ends) = (Records::default(), 0, Vec::new());
            while at < stream.len() {
                let here = records.wants().min(size);
                records.pass(&stream[at..at + here]);
                at += here;
                if records.head == 0 {
                    ends.push(at);
                }
            }
            assert_eq!(ends, [7, 272, 277, 283], "by {size}");
        }
    }
}
