//! Finds the keys of a request: from a field or the peer's address; it decides nothing about them.

use crate::config::{KeyFrom, KeySource, Missing};
use crate::wire::asked::Fields;
use breaker_core::{Breaker, Call};
use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;

/// One key dimension of a route.
pub struct KeyPlan {
    /// The dimension's name.
    pub name: String,
    /// Where its value comes from.
    pub source: KeySource,
}

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
            KeyError::Missing(name) => write!(f, "the request lacks {name}"),
            KeyError::Doubled(name) => write!(f, "the request gives {name} more than once"),
            KeyError::TooLong(name) => {
                write!(f, "{name} is longer than {LABEL_MAX} bytes")
            }
        }
    }
}

/// Bytes of a key's value, at most.
pub const LABEL_MAX: usize = 256;

/// Adds the keys of a request to a call.
///
/// # Errors
/// A key that is missing, doubled or too long; the request must be refused.
pub fn read(
    breaker: &Breaker,
    plans: &[KeyPlan],
    fields: Fields<'_>,
    peer: IpAddr,
    mut call: Call,
) -> Result<Call, KeyError> {
    for (index, plan) in (0u8..).zip(plans) {
        let mut text = [0u8; 48];
        match label(plan, fields, peer, &mut text)? {
            Some(label) => call = call.with_key(index, breaker.hash(label)),
            None => match plan.source.missing {
                Missing::Refuse => return Err(KeyError::Missing(told(plan))),
                // The rules say the same of a call without the key.
                Missing::Share | Missing::Skip => {}
            },
        }
    }
    Ok(call)
}

/// A key as the client knows it.
fn told(plan: &KeyPlan) -> String {
    match &plan.source.from {
        KeyFrom::Header(field) => format!("the field `{field}` (its key `{}`)", plan.name),
        KeyFrom::Peer => format!("its key `{}`", plan.name),
    }
}

/// The value of one key; an empty field counts as a missing one.
fn label<'a>(
    plan: &KeyPlan,
    fields: Fields<'a>,
    peer: IpAddr,
    text: &'a mut [u8; 48],
) -> Result<Option<&'a [u8]>, KeyError> {
    match &plan.source.from {
        KeyFrom::Header(name) => {
            let mut values = fields.all(name);
            let Some(value) = values.next() else { return Ok(None) };
            if values.next().is_some() {
                return Err(KeyError::Doubled(told(plan)));
            }
            let label = value.trim_ascii();
            if label.len() > LABEL_MAX {
                return Err(KeyError::TooLong(told(plan)));
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

/// The one spelling of a label in which requests carry it; `None` if no request ever does. Whoever kills a key by another
/// spelling would be told "done" while its calls go on.
#[must_use]
pub fn spelled(from: &KeyFrom, label: &[u8]) -> Option<Vec<u8>> {
    match from {
        KeyFrom::Header(_) => {
            (label.trim_ascii() == label && !label.is_empty()).then(|| label.to_vec())
        }
        KeyFrom::Peer => {
            let text = std::str::from_utf8(label).ok()?;
            let address = text.strip_suffix("/64").unwrap_or(text);
            let peer: IpAddr = address.parse().ok()?;
            // A network has no spelling among the addresses of IPv4.
            if address.len() != text.len() && peer.to_canonical().is_ipv4() {
                return None;
            }
            Some(peer_label(peer, &mut [0; 48]).to_vec())
        }
    }
}

/// The labels of a request's keys, for the moment when one of them is refused and needs its name.
pub fn each_label(
    plans: &[KeyPlan],
    fields: Fields<'_>,
    peer: IpAddr,
    mut take: impl FnMut(u8, &[u8]),
) {
    for (index, plan) in (0u8..).zip(plans) {
        let mut text = [0u8; 48];
        if let Ok(Some(label)) = label(plan, fields, peer, &mut text) {
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

    /// Goal: a person names a peer by its address or its network in any spelling, and means the key its calls have.
    #[test]
    fn a_peer_spelled_otherwise_is_the_same_key() {
        for text in ["2001:DB8::1", "2001:db8:0:0:5::", "2001:db8:0:0::/64", "2001:db8::/64"] {
            let label = spelled(&KeyFrom::Peer, text.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(label).unwrap(), "2001:db8:0:0::/64", "{text}");
        }
        let mapped = spelled(&KeyFrom::Peer, b"::ffff:10.1.2.3").unwrap();
        assert_eq!(mapped, b"10.1.2.3");
        for text in ["10.0.0.0/64", "somebody", "", "2001:db8::/48"] {
            assert_eq!(spelled(&KeyFrom::Peer, text.as_bytes()), None, "{text}");
        }
        let header = KeyFrom::Header(hyper::header::FROM);
        assert_eq!(spelled(&header, b"a b"), Some(b"a b".to_vec()));
        assert_eq!(spelled(&header, b" a"), None, "blanks around a value are no part of it");
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
