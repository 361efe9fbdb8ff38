//! Who is at the other end of a client connection: looked up and written down once, not with every request.

use crate::inspect::certificate::Identity;
use hyper::http::uri::Authority;
use std::cell::{Cell, RefCell};
use std::net::IpAddr;

/// The client of one connection.
#[derive(Debug)]
pub struct Peer {
    /// Its address; an IPv4 address mapped into IPv6 is itself.
    pub ip: IpAddr,
    /// The same as text.
    pub text: Box<str>,
    /// It connects by TLS.
    pub secure: bool,
    /// It is a proxy whose word is taken on whom it asks for.
    pub trusted: bool,
    /// What the certificate says that it showed, which was verified.
    pub certificate: Option<Box<Identity>>,
    /// The worker's second in which the kernel last took bytes for it.
    pub moved: Cell<u64>,
    /// Set once it stopped reading an answer: its connection is to end.
    pub stalled: Cell<bool>,
    /// Whom its last request was for: mostly the next one is for the same.
    host: RefCell<Option<Authority>>,
}

impl Peer {
    /// The peer with this address.
    #[must_use]
    pub fn new(ip: IpAddr, secure: bool, trusted: bool) -> Peer {
        let ip = ip.to_canonical();
        let text = ip.to_string().into();
        let (moved, stalled, host) = (Cell::new(0), Cell::new(false), RefCell::new(None));
        Peer { ip, text, secure, trusted, certificate: None, moved, stalled, host }
    }

    /// The host that these bytes name, if they name one.
    #[must_use]
    pub fn host(&self, named: &[u8]) -> Option<Authority> {
        let mut last = self.host.borrow_mut();
        if let Some(host) = last.as_ref().filter(|host| host.as_str().as_bytes() == named) {
            return Some(host.clone());
        }
        let host = Authority::try_from(named).ok()?;
        *last = Some(host.clone());
        Some(host)
    }
}
