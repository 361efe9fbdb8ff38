//! Upstreams over TLS: an authority of the test's own, and the other end of a connection, record for record.

use super::LIMIT;
use super::upstream::Upstream;
use super::wire::Head;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

/// Signs certificates that nobody else would believe.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Authority { issuer, dir: super::room() }
    }

    /// Its certificate, as a file.
    pub(crate) fn file(&self) -> PathBuf {
        let path = self.dir.path().join("ca.pem");
        std::fs::write(&path, self.issuer.pem()).unwrap();
        path
    }

    /// What a server of this name needs. `last_year`: its certificate has expired then.
    pub(crate) fn server(&self, name: &str, last_year: Option<i32>) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if let Some(year) = last_year {
            params.not_before = rcgen::date_time_ymd(year - 1, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions = ServerConfig::builder_with_provider(provider);
        let mut config = versions
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

/// The upstream's end of a connection.
pub(crate) struct Vault {
    tls: StreamOwned<ServerConnection, TcpStream>,
    buffer: Vec<u8>,
}

impl Vault {
    /// Shakes hands with the next who connects.
    pub(crate) fn accept(upstream: &Upstream, config: &Arc<ServerConfig>) -> Vault {
        Vault::try_new(upstream.accept_stream(), config).expect("a handshake")
    }

    pub(crate) fn try_new(stream: TcpStream, config: &Arc<ServerConfig>) -> io::Result<Vault> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let server = ServerConnection::new(Arc::clone(config)).unwrap();
        let mut tls = StreamOwned::new(server, stream);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(Vault { tls, buffer: Vec::new() })
    }

    /// The name that was asked for, the protocol that was agreed on, and whether the hands knew each other.
    pub(crate) fn facts(&self) -> (Option<String>, Vec<u8>, HandshakeKind) {
        let conn = &self.tls.conn;
        let alpn = conn.alpn_protocol().unwrap_or_default().to_vec();
        (conn.server_name().map(str::to_owned), alpn, conn.handshake_kind().unwrap())
    }

    /// Reads more; false at an end, said or not.
    fn more(&mut self) -> bool {
        let mut part = [0u8; 64 * 1024];
        match self.tls.read(&mut part) {
            Ok(0) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&part[..count]);
                true
            }
            Err(error) => {
                let stuck = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                assert!(!stuck, "nothing moved for {LIMIT:?}");
                false
            }
        }
    }

    /// The next head.
    pub(crate) fn try_head(&mut self) -> Option<Head> {
        loop {
            let end = self.buffer.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(at) = end {
                let rest = self.buffer.split_off(at + 4);
                let head = std::mem::replace(&mut self.buffer, rest);
                return Some(Head::parse(&head));
            }
            if !self.more() {
                return None;
            }
        }
    }

    pub(crate) fn head(&mut self) -> Head {
        self.try_head().expect("the connection ended before a head")
    }

    /// So many bytes, or what came before the end.
    pub(crate) fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count && self.more() {}
        let rest = self.buffer.split_off(count.min(self.buffer.len()));
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Writes; the other side may be gone.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.tls.write_all(bytes.as_ref());
        let _ = self.tls.flush();
    }

    /// A small answer.
    pub(crate) fn reply(&mut self, words: &str) {
        let length = words.len();
        self.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{words}"));
    }

    /// Ends as one should.
    pub(crate) fn say_end(mut self) {
        self.tls.conn.send_close_notify();
        let _ = self.tls.conn.complete_io(&mut self.tls.sock);
    }

    /// How it ends: `Some(true)` where the other side said so, `Some(false)` where it just ended, `None` for a reset.
    pub(crate) fn end(&mut self) -> Option<bool> {
        loop {
            match self.tls.read(&mut [0u8; 4096]) {
                Ok(0) => return Some(true),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Some(false),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }
}
