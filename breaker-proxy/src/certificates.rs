//! The certificate that clients are shown, read strictly and swapped while it runs; it accepts no connection.
//!
//! A renewed certificate is taken in when its files change. One that cannot be used changes nothing: the last good one stays, and
//! the failure is told and counted until it is mended.

use crate::config::{ClientCertificates, Tls};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Bytes of a file of certificates, at most.
const FILE_MAX: u64 = 1024 * 1024;

/// Why certificates cannot be used: which file, what is wrong, and the mend.
#[derive(Debug)]
pub struct CertificateError {
    path: PathBuf,
    problem: String,
    hint: &'static str,
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path.display(), self.problem, self.hint)
    }
}

impl std::error::Error for CertificateError {}

/// The certificate that clients are shown.
#[derive(Debug)]
pub struct Certificates {
    tls: Tls,
    shown: ArcSwap<CertifiedKey>,
    /// What the files held when they were read last.
    read: Mutex<(Vec<u8>, Vec<u8>)>,
    renewed: AtomicU64,
    failures: AtomicU64,
    failing: AtomicBool,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.load_full())
    }
}

impl Certificates {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// A file cannot be read, holds no certificate or key, or they do not belong together.
    pub fn load(tls: &Tls) -> Result<Arc<Certificates>, CertificateError> {
        let read = read_both(tls)?;
        let shown = ArcSwap::from_pointee(certified(tls, &read)?);
        Ok(Arc::new(Certificates {
            tls: tls.clone(),
            shown,
            read: Mutex::new(read),
            renewed: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            failing: AtomicBool::new(false),
        }))
    }

    /// Looks at the files once more; true: other certificates are shown from now on.
    ///
    /// # Errors
    /// What changed cannot be used; what was shown stays.
    pub fn look_again(&self) -> Result<bool, CertificateError> {
        let renewed = self.renew();
        // ordering: relaxed, numbers and a flag for people.
        match &renewed {
            Ok(true) => {
                self.renewed.fetch_add(1, Ordering::Relaxed);
            }
            Ok(false) => {}
            Err(_) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.failing.store(renewed.is_err(), Ordering::Relaxed);
        renewed
    }

    fn renew(&self) -> Result<bool, CertificateError> {
        let read = read_both(&self.tls)?;
        let mut last = self.read.lock();
        if *last == read {
            return Ok(false);
        }
        self.shown.store(Arc::new(certified(&self.tls, &read)?));
        *last = read;
        Ok(true)
    }

    /// How often other certificates were taken in, and how often what was there could not be.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        // ordering: relaxed, numbers on their own.
        (self.renewed.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed))
    }

    /// Can the files not be used as they are now?
    #[must_use]
    pub fn is_failing(&self) -> bool {
        // ordering: relaxed, a flag on its own.
        self.failing.load(Ordering::Relaxed)
    }

    /// How connections are secured with them: TLS 1.3 and 1.2, no early data (it can be replayed), HTTP/2 before HTTP/1.1.
    ///
    /// # Errors
    /// The authorities of client certificates cannot be used.
    pub fn server(self: &Arc<Self>) -> Result<ServerConfig, CertificateError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let at = |path: &Path, problem: String, hint| CertificateError {
            path: path.to_owned(),
            problem,
            hint,
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| at(&self.tls.certificate, error.to_string(), "tell the makers"))?;
        let builder = match &self.tls.clients {
            None => builder.with_no_client_auth(),
            Some(ClientCertificates { authorities, required }) => {
                let roots = Arc::new(roots(authorities)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = match required {
                    true => verifier,
                    false => verifier.allow_unauthenticated(),
                };
                let verifier = verifier.build().map_err(|error| {
                    at(authorities, error.to_string(), "give the certificates of authorities")
                })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config =
            builder.with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        // A client of HTTP/1.0 that names it must not be turned away: it is served in clear, too.
        config.alpn_protocols = [&b"h2"[..], b"http/1.1", b"http/1.0"].map(<[u8]>::to_vec).into();
        config.max_early_data_size = 0;
        if let Ok(ticketer) = aws_lc_rs::Ticketer::new() {
            config.ticketer = ticketer;
        }
        Ok(config)
    }
}

/// A thread that looks at the files every few seconds, until it is dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to look.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(certificates: Arc<Certificates>) -> std::io::Result<Watch> {
        let (stop, stopped) = channel();
        let look = move || {
            let mut told = String::new();
            while matches!(stopped.recv_timeout(LOOK_EVERY), Err(RecvTimeoutError::Timeout)) {
                match certificates.look_again() {
                    Ok(true) => crate::voice::say("listen.tls: renewed certificates are shown"),
                    Ok(false) => {}
                    Err(error) => {
                        let error = error.to_string();
                        if error != told {
                            crate::voice::say(&format!(
                                "listen.tls: {error}; the last good ones stay"
                            ));
                        }
                        told = error;
                        continue;
                    }
                }
                told.clear();
            }
        };
        let thread = std::thread::Builder::new().name("breaker-certificates".into()).spawn(look)?;
        Ok(Watch { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read_both(tls: &Tls) -> Result<(Vec<u8>, Vec<u8>), CertificateError> {
    Ok((read(&tls.certificate)?, read(&tls.key)?))
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let wrong = |problem: String, hint| CertificateError { path: path.to_owned(), problem, hint };
    let file = fs::File::open(path)
        .map_err(|error| wrong(error.to_string(), "give a file that this user may read"))?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| wrong(error.to_string(), "give a file that this user may read"))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_MAX) {
        return Err(wrong("is larger than 1 MiB".to_owned(), "give the chain of one server"));
    }
    Ok(bytes)
}

fn certified(
    tls: &Tls,
    (certificate, key): &(Vec<u8>, Vec<u8>),
) -> Result<CertifiedKey, CertificateError> {
    let wrong = |path: &Path, problem: String, hint| CertificateError {
        path: path.to_owned(),
        problem,
        hint,
    };
    let chain = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(&tls.certificate, error.to_string(), "give a file of PEM"))?;
    if chain.is_empty() {
        let problem = "holds no certificate".to_owned();
        return Err(wrong(&tls.certificate, problem, "put the server's own first, then its chain"));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
        wrong(&tls.key, format!("holds no private key: {error}"), "give a file of PEM")
    })?;
    let provider: CryptoProvider = aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(|error| {
        wrong(&tls.key, error.to_string(), "give the key that belongs to the first certificate")
    })
}

fn roots(path: &Path) -> Result<RootCertStore, CertificateError> {
    let wrong = |problem: String| CertificateError {
        path: path.to_owned(),
        problem,
        hint: "give a file of PEM with the authorities that sign clients",
    };
    let bytes = read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertifiedKey as Made, generate_simple_self_signed};

    fn made(dir: &Path) -> (Tls, String, String) {
        let Made { cert, signing_key } =
            generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        let (cert, signing_key) = (cert.pem(), signing_key.serialize_pem());
        fs::write(&certificate, &cert).unwrap();
        fs::write(&key, &signing_key).unwrap();
        (Tls { certificate, key, clients: None }, cert, signing_key)
    }

    /// Goal: renewed files are taken in; half a renewal, or files that cannot be used, change nothing, are told, and are
    /// counted until they are mended.
    #[test]
    fn a_bad_renewal_keeps_the_last_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let (tls, cert, _) = made(dir.path());
        let certificates = Certificates::load(&tls).unwrap();
        let first = certificates.shown.load_full();
        assert!(!certificates.look_again().unwrap(), "nothing changed");
        let other = tempfile::tempdir().unwrap();
        let (_, new_cert, new_key) = made(other.path());
        // The certificate is there before its key.
        fs::write(&tls.certificate, &new_cert).unwrap();
        let error = certificates.look_again().unwrap_err().to_string();
        assert!(error.contains("key.pem") && error.contains("belongs to"), "{error}");
        assert!(certificates.is_failing());
        assert!(Arc::ptr_eq(&first, &certificates.shown.load_full()));
        fs::write(&tls.key, &new_key).unwrap();
        assert!(certificates.look_again().unwrap());
        assert!(!certificates.is_failing());
        assert!(!Arc::ptr_eq(&first, &certificates.shown.load_full()));
        for bad in ["", "nonsense", &cert[..cert.len() / 2]] {
            fs::write(&tls.certificate, bad).unwrap();
            assert!(certificates.look_again().is_err(), "{bad}");
        }
        fs::remove_file(&tls.certificate).unwrap();
        assert!(certificates.look_again().is_err());
        assert_eq!(certificates.counts(), (1, 5));
    }

    /// Goal: what cannot be used is refused at the start, by the file that is wrong.
    #[test]
    fn a_start_names_the_file_that_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let (tls, cert, key) = made(dir.path());
        assert!(Certificates::load(&tls).unwrap().server().is_ok());
        let swapped =
            Tls { certificate: tls.key.clone(), key: tls.certificate.clone(), clients: None };
        let error = Certificates::load(&swapped).unwrap_err().to_string();
        assert!(error.contains("key.pem: holds no certificate"), "{error}");
        fs::write(&tls.key, &cert).unwrap();
        let error = Certificates::load(&tls).unwrap_err().to_string();
        assert!(error.contains("key.pem: holds no private key"), "{error}");
        fs::write(&tls.key, &key).unwrap();
        let clients = ClientCertificates { authorities: tls.key.clone(), required: true };
        let mutual = Tls { clients: Some(clients), ..tls };
        let error = Certificates::load(&mutual).unwrap().server().unwrap_err().to_string();
        assert!(error.contains("key.pem: holds no certificate"), "{error}");
    }
}
