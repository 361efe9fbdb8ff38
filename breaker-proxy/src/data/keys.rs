//! Finds the keys of a request: from a field or the peer's address; it decides nothing about them.

use crate::config::{KeyFrom, Missing};
use crate::snapshot::KeyPlan;
use breaker_core::{Breaker, Call};
use hyper::HeaderMap;
use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;

/// Why a request's keys could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// A declared key is not there, and the policy refuses such calls.
    Missing(String),
    /// The field stands there twice: two readers could take different ones.
    Doubled(String),
    /// The value is longer than [`LABEL_MAX`] bytes.
    TooLong(String),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Missing(name) => write!(f, "the request lacks its key `{name}`"),
            KeyError::Doubled(name) => write!(f, "the key `{name}` is given more than once"),
            KeyError::TooLong(name) => {
                write!(f, "the key `{name}` is longer than {LABEL_MAX} bytes")
            }
        }
    }
}

/// Bytes of a key's value, at most.
pub const LABEL_MAX: usize = 256;

/// The label under which calls without a declared key share one cell. A real value is never empty.
const MISSING: &[u8] = b"";

/// Adds the keys of a request to a call.
///
/// # Errors
/// A key that is missing, doubled or too long; the request must be refused.
pub fn read(
    breaker: &Breaker,
    plans: &[KeyPlan],
    headers: &HeaderMap,
    peer: IpAddr,
    mut call: Call,
) -> Result<Call, KeyError> {
    for (index, plan) in (0u8..).zip(plans) {
        let mut text = [0u8; 48];
        match label(plan, headers, peer, &mut text)? {
            Some(label) => call = call.with_key(index, breaker.hash(label)),
            None => match plan.source.missing {
                Missing::Refuse => return Err(KeyError::Missing(plan.name.clone())),
                Missing::Share => call = call.with_key(index, breaker.hash(MISSING)),
                Missing::Skip => {}
            },
        }
    }
    Ok(call)
}

/// The value of one key; an empty field counts as a missing one.
fn label<'a>(
    plan: &KeyPlan,
    headers: &'a HeaderMap,
    peer: IpAddr,
    text: &'a mut [u8; 48],
) -> Result<Option<&'a [u8]>, KeyError> {
    match &plan.source.from {
        KeyFrom::Header(name) => {
            let mut values = headers.get_all(name).iter();
            let Some(value) = values.next() else { return Ok(None) };
            if values.next().is_some() {
                return Err(KeyError::Doubled(plan.name.clone()));
            }
            let label = value.as_bytes().trim_ascii();
            if label.len() > LABEL_MAX {
                return Err(KeyError::TooLong(plan.name.clone()));
            }
            Ok((!label.is_empty()).then_some(label))
        }
        KeyFrom::Peer => Ok(Some(peer_label(peer, text))),
    }
}

/// A peer as a key: an IPv4 address whole, an IPv6 address by its /64, since one host owns all of that.
fn peer_label(peer: IpAddr, text: &mut [u8; 48]) -> &[u8] {
    let mut rest: &mut [u8] = text;
    let room = rest.len();
    // The longest text, `ffff:ffff:ffff:ffff::/64`, fits.
    let written = match peer.to_canonical() {
        IpAddr::V4(v4) => write!(rest, "{v4}"),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            write!(rest, "{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    };
    debug_assert!(written.is_ok());
    let used = room - rest.len();
    text.get(..used).unwrap_or(&[])
}

/// The labels of a request's keys, for the moment when one of them is refused and needs its name.
pub fn each_label(
    plans: &[KeyPlan],
    headers: &HeaderMap,
    peer: IpAddr,
    mut take: impl FnMut(u8, &[u8]),
) {
    for (index, plan) in (0u8..).zip(plans) {
        let mut text = [0u8; 48];
        if let Ok(Some(label)) = label(plan, headers, peer, &mut text) {
            take(index, label);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn text(peer: IpAddr) -> String {
        String::from_utf8(peer_label(peer, &mut [0; 48]).to_vec()).unwrap()
    }

    /// Goal: all addresses of one IPv6 /64 are one key, and an IPv4 address mapped into IPv6 is itself.
    #[test]
    fn a_peer_cannot_dodge_by_its_lower_64_bits() {
        let one = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 6);
        let two = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0xffff, 0xffff, 0xffff, 0xffff);
        assert_eq!(text(one.into()), text(two.into()));
        assert_eq!(text(one.into()), "2001:db8:1:2::/64");
        let mapped = Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped();
        assert_eq!(text(mapped.into()), "10.1.2.3");
    }
}
