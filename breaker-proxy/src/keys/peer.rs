//! The address of a client as a key: that of the peer, or the one that trusted peers tell of; it believes nobody else.

use super::Why;
use crate::inspect::text::Room;
use crate::wire::asked::Fields;
use hyper::header::HeaderName;
use ipnet::IpNet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

/// The most hops that may stand between a client and us.
pub const MAX_HOPS: usize = 8;

/// Where proxies write for whom they ask, each at the end.
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A client as a key: an IPv4 address whole, an IPv6 address by its /64, since one host owns all of that.
pub(super) fn peer_label<const N: usize>(peer: IpAddr, room: &mut Room<N>) -> &[u8] {
    // The longest text, `ffff:ffff:ffff:ffff::/64`, fits any room for a key.
    let written = match peer.to_canonical() {
        IpAddr::V4(v4) => write!(room, "{v4}"),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            write!(room, "{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    };
    debug_assert!(written.is_ok());
    room.bytes().unwrap_or_default()
}

/// The one spelling of a client's label: of its address or its network, in any spelling; `None` if it is neither.
pub(super) fn spelled_peer(label: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(label).ok()?;
    let address = text.strip_suffix("/64").unwrap_or(text);
    let peer: IpAddr = address.parse().ok()?;
    // A network has no spelling among the addresses of IPv4.
    if address.len() != text.len() && peer.to_canonical().is_ipv4() {
        return None;
    }
    Some(peer_label(peer, &mut Room::<48>::default()).to_vec())
}

/// The address of the client behind at most `hops` trusted proxies, the peer being the first of them.
///
/// Each proxy writes at the end of `X-Forwarded-For` who asked it. So an entry is to be believed exactly as far as the one who wrote
/// it, and the walk from the end goes on only from an address that is trusted: what a stranger wrote is never reached. Where nobody
/// says who asked, the last one known is the client.
///
/// # Errors
/// A trusted proxy wrote what is no address.
pub(super) fn client(
    fields: Fields<'_>,
    peer: IpAddr,
    hops: usize,
    trusted: &[IpNet],
) -> Result<IpAddr, Why> {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    let mut at = peer.to_canonical();
    if !is_trusted(at) {
        return Ok(at);
    }
    // Several fields are one list (RFC 9110, 5.3), of which only the end is of interest.
    let mut last: [&[u8]; MAX_HOPS] = [b""; MAX_HOPS];
    let mut count = 0_usize;
    let entries = fields.all(&FORWARDED_FOR).flat_map(|value| value.split(|&byte| byte == b','));
    for entry in entries.map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty()) {
        if let Some(slot) = last.get_mut(count % MAX_HOPS) {
            *slot = entry;
        }
        count = count.saturating_add(1);
    }
    for hop in 0..hops.min(count).min(MAX_HOPS) {
        if !is_trusted(at) {
            break;
        }
        let place = count.saturating_sub(hop).saturating_sub(1) % MAX_HOPS;
        let entry = last.get(place).copied().unwrap_or_default();
        at = address(entry).ok_or(Why::Unfit("is not a list of addresses"))?;
    }
    Ok(at)
}

/// An address, with or without a port, as proxies write it.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match bare {
        Some(bare) => bare.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::from),
        None => text.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip())),
    };
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::{IpAddr, IpNet, Room, client, peer_label, spelled_peer};
    use crate::keys::Why;
    use crate::wire::asked::Fields;
    use hyper::HeaderMap;
    use proptest::prelude::{prop, proptest};
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn text(peer: IpAddr) -> String {
        String::from_utf8(peer_label(peer, &mut Room::<48>::default()).to_vec()).unwrap()
    }

    /// Goal: a person names a peer by its address or its network in any spelling, and means the key its calls have.
    #[test]
    fn a_peer_spelled_otherwise_is_the_same_key() {
        for text in ["2001:DB8::1", "2001:db8:0:0:5::", "2001:db8:0:0::/64", "2001:db8::/64"] {
            let label = spelled_peer(text.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(label).unwrap(), "2001:db8:0:0::/64", "{text}");
        }
        let mapped = spelled_peer(b"::ffff:10.1.2.3").unwrap();
        assert_eq!(mapped, b"10.1.2.3");
        for text in ["10.0.0.0/64", "somebody", "", "2001:db8::/48"] {
            assert_eq!(spelled_peer(text.as_bytes()), None, "{text}");
        }
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

    /// Who asks, over `hops` hops of 10.0.0.0/8 and fd00::/8.
    fn asks(peer: &str, hops: usize, fields: &[&str]) -> Result<String, Why> {
        let mut map = HeaderMap::new();
        for field in fields {
            map.append("x-forwarded-for", field.parse().unwrap());
        }
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let found = client(Fields::Map(&map), peer.parse().unwrap(), hops, &trusted);
        found.map(|address| address.to_string())
    }

    /// Goal: an entry counts exactly as far as its writer is trusted, and no further than so many hops.
    #[test]
    fn entries_are_believed_as_far_as_their_writers() {
        for (peer, hops, fields, expected) in [
            // A stranger's word is never taken.
            ("192.0.2.9", 1, &["192.0.2.1"][..], "192.0.2.9"),
            ("192.0.2.9", 8, &["10.0.0.1, 10.0.0.2"], "192.0.2.9"),
            ("::ffff:192.0.2.9", 1, &["192.0.2.1"], "192.0.2.9"),
            // One hop: the last entry, whatever a client wrote before it.
            ("10.0.0.1", 1, &["192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", 1, &["198.51.100.7, 192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", 1, &["198.51.100.7", "192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", 1, &["garbage, \"<x>\", 192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", 1, &[" 192.0.2.1 , ", ", ,"], "192.0.2.1"),
            ("::ffff:10.0.0.1", 1, &["::ffff:192.0.2.1"], "192.0.2.1"),
            // Two hops: the walk goes on from a trusted one only.
            ("10.0.0.1", 2, &["192.0.2.1, 10.0.0.2"], "192.0.2.1"),
            ("10.0.0.1", 2, &["198.51.100.7, 192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", 2, &["198.51.100.7, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
            ("10.0.0.1", 2, &["192.0.2.1, 10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", 3, &["10.9.9.9, 10.0.0.2"], "10.9.9.9"),
            ("fd00::1", 2, &["2001:db8::5, fd00::2"], "2001:db8::5"),
            // Nobody says who asked.
            ("10.0.0.1", 1, &[], "10.0.0.1"),
            ("10.0.0.1", 3, &["", ","], "10.0.0.1"),
            // With ports and brackets.
            ("10.0.0.1", 1, &["192.0.2.1:4711"], "192.0.2.1"),
            ("10.0.0.1", 1, &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("10.0.0.1", 1, &["[2001:db8::1]"], "2001:db8::1"),
        ] {
            assert_eq!(
                asks(peer, hops, fields).as_deref(),
                Ok(expected),
                "{peer} {hops} {fields:?}"
            );
        }
        let long = ["198.51.100.7, ".repeat(50), "192.0.2.1, ".to_owned(), "10.0.0.2, ".repeat(7)]
            .concat();
        assert_eq!(asks("10.0.0.1", 8, &[&long]).as_deref(), Ok("192.0.2.1"), "the most hops");
    }

    /// Goal: where a trusted proxy wrote no address the call is refused: its client is unknown, not the proxy.
    #[test]
    fn what_a_trusted_proxy_wrote_must_be_an_address() {
        for entry in [
            "unknown",
            "_hidden",
            "192.0.2",
            "192.0.2.1:x",
            "192.0.2.1, 1",
            "[192.0.2.1]",
            "fe80::1%eth0",
            "\"192.0.2.1\"",
        ] {
            assert!(matches!(asks("10.0.0.1", 1, &[entry]), Err(Why::Unfit(_))), "{entry}");
            assert!(asks("192.0.2.9", 1, &[entry]).is_ok(), "a stranger's word is not even read");
        }
    }

    proptest! {
        /// Goal: whatever a client writes in front of what a trusted proxy adds, it stays itself.
        #[test]
        fn no_spelling_moves_a_client(
            spoofed in prop::collection::vec("([0-9a-f.:, ]|10\\.0\\.0\\.1|192\\.0\\.2\\.7|,){0,20}", 0..4),
            hops in 1_usize..9,
        ) {
            let mut fields: Vec<&str> = spoofed.iter().map(String::as_str).collect();
            fields.push("192.0.2.1");
            assert_eq!(asks("10.0.0.1", hops, &fields).as_deref(), Ok("192.0.2.1"));
            assert_eq!(asks("192.0.2.9", hops, &fields).as_deref(), Ok("192.0.2.9"));
        }
    }
}
