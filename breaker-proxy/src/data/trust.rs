//! Whom upstreams over TLS are believed to be: roots and settings of the handshake; it shakes no hand.

use crate::config::upstream::{Endpoint, Upstream};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;

/// Problem and hint.
pub type Flaw = (String, String);

/// Where roots come from; the system's are read once, when they are first needed.
#[derive(Default)]
pub struct Roots {
    system: Option<Arc<RootCertStore>>,
}

/// How hands are shaken with the endpoints of one upstream.
#[derive(Clone)]
pub struct Trust {
    config: Arc<ClientConfig>,
    /// The file of roots as it was read.
    authority: Option<Vec<u8>>,
}

impl Trust {
    /// The settings of the handshake.
    #[must_use]
    pub fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }

    /// Would it believe the same ends? The system's roots are taken to be as they were.
    #[must_use]
    pub fn is_like(&self, other: &Trust) -> bool {
        self.authority == other.authority
    }
}

impl Roots {
    /// What an upstream needs to shake hands; `None` if none of its endpoints speaks TLS.
    ///
    /// # Errors
    /// There are no roots, or they cannot be read.
    pub fn trust(&mut self, upstream: &Upstream) -> Result<Option<Trust>, Flaw> {
        if !upstream.endpoints.iter().any(Endpoint::is_tls) {
            return Ok(None);
        }
        let (roots, authority) = match &upstream.ca {
            None => (self.system()?, None),
            Some(path) => {
                let shown = path.display();
                let text = std::fs::read(path).map_err(|error| {
                    (
                        format!("{shown} cannot be read: {error}"),
                        "name a file that exists".to_owned(),
                    )
                })?;
                (
                    Arc::new(
                        from_pem(&text)
                            .map_err(|problem| (format!("{shown} {problem}"), PEM.to_owned()))?,
                    ),
                    Some(text),
                )
            }
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let versions = versions.map_err(|error| (error.to_string(), String::new()))?;
        let mut config = versions.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![upstream.protocol.name().as_bytes().to_vec()];
        Ok(Some(Trust { config: Arc::new(config), authority }))
    }

    fn system(&mut self) -> Result<Arc<RootCertStore>, Flaw> {
        if let Some(roots) = &self.system {
            return Ok(Arc::clone(roots));
        }
        let mut roots = RootCertStore::empty();
        // A store may hold certificates that are of no use here: the others count.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err((
                "the system has no root certificates".to_owned(),
                "install them (ca-certificates), or name a file: ca = \"…\"".to_owned(),
            ));
        }
        Ok(Arc::clone(self.system.insert(Arc::new(roots))))
    }
}

const PEM: &str = "it must hold certificates in PEM: -----BEGIN CERTIFICATE-----";

fn from_pem(text: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text) {
        let certificate = certificate.map_err(|error| format!("is no PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("holds what is no root: {error}"))?;
    }
    if roots.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(roots) }
}

/// The name that an endpoint's certificate must carry; `None` for one that speaks no TLS.
///
/// # Errors
/// No certificate can carry it.
pub fn server_name(endpoint: &Endpoint) -> Result<Option<ServerName<'static>>, Flaw> {
    let Some((host, _)) = endpoint.server().filter(|_| endpoint.is_tls()) else {
        return Ok(None);
    };
    match ServerName::try_from(host.to_owned()) {
        Ok(name) => Ok(Some(name)),
        Err(_) => Err((
            format!("{host:?} is no name that a certificate carries"),
            "use letters, digits, - and .".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what holds no certificate is no authority, so that a wrong file is found at the start and not with the first call.
    #[test]
    fn a_file_without_certificates_is_refused() {
        for text in [
            "",
            "words",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
        ] {
            assert!(from_pem(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    /// Goal: names and addresses can be in a certificate; TLS alone needs one.
    #[test]
    fn names_and_addresses_are_verified() {
        let at = |host: &str| Endpoint::Https { host: host.to_owned(), port: 443 };
        for host in ["example.com", "10.0.0.1", "::1"] {
            assert!(server_name(&at(host)).unwrap().is_some(), "{host}");
        }
        let plain = Endpoint::Http { host: "h".to_owned(), port: 80 };
        assert!(server_name(&plain).unwrap().is_none());
    }
}
