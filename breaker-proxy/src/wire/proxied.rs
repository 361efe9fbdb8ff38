//! What a proxy in front says of a connection before its first byte: the PROXY protocol, versions 1 and 2, as its specification of
//! 2020/03/05 has it; it reads no socket and trusts nobody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str;

/// Bytes of a header, at most. Version 1 ends by 107; what version 2 may add is mostly a few dozen, and a certificate is the most.
pub const HEADER_MAX: usize = 4096;

/// Whom a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The client with this address.
    Client(IpAddr),
    /// The proxy itself, as when it checks our health, or someone of whom it does not tell.
    Nobody,
}

/// It is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHeader;

/// Reads the header at the beginning of these bytes: its length, and what it tells; `None` if it is not whole yet. Until then all of
/// the bytes are its own.
///
/// # Errors
/// They are none, or one that is longer than [`HEADER_MAX`], or of another kind than a stream of TCP.
pub fn read(bytes: &[u8]) -> Result<Option<(usize, Told)>, BadHeader> {
    if bytes.first() == Some(&b'P') { line(bytes) } else { block(bytes) }
}

/// Version 1: a line.
fn line(bytes: &[u8]) -> Result<Option<(usize, Told)>, BadHeader> {
    const BEGIN: &[u8] = b"PROXY ";
    const LINE_MAX: usize = 107;
    let common = bytes.len().min(BEGIN.len());
    if bytes.get(..common) != BEGIN.get(..common) {
        return Err(BadHeader);
    }
    let seen = bytes.get(..bytes.len().min(LINE_MAX)).unwrap_or(bytes);
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < LINE_MAX { Ok(None) } else { Err(BadHeader) };
    };
    let text = seen.get(BEGIN.len()..end).and_then(|text| text.strip_suffix(b"\r"));
    let text = text.and_then(|text| str::from_utf8(text).ok()).ok_or(BadHeader)?;
    let mut words = text.split(' ');
    let told = match words.next() {
        // What stands behind it is to be ignored.
        Some("UNKNOWN") => return Ok(Some((end.saturating_add(1), Told::Nobody))),
        Some("TCP4") => addresses::<Ipv4Addr>(&mut words).map(IpAddr::V4)?,
        Some("TCP6") => addresses::<Ipv6Addr>(&mut words).map(IpAddr::V6)?,
        _ => return Err(BadHeader),
    };
    if words.next().is_some() {
        return Err(BadHeader);
    }
    Ok(Some((end.saturating_add(1), Told::Client(told))))
}

/// The first of two addresses, behind which stand two ports.
fn addresses<'a, A: str::FromStr>(
    words: &mut impl Iterator<Item = &'a str>,
) -> Result<A, BadHeader> {
    let mut word = || words.next().ok_or(BadHeader);
    let (from, to) = (word()?.parse::<A>(), word()?.parse::<A>());
    for port in [word()?, word()?] {
        let plain = port == "0" || !port.starts_with(['0', '+']);
        if !plain || port.parse::<u16>().is_err() {
            return Err(BadHeader);
        }
    }
    match (from, to) {
        (Ok(from), Ok(_)) => Ok(from),
        _ => Err(BadHeader),
    }
}

/// Version 2: a block.
fn block(bytes: &[u8]) -> Result<Option<(usize, Told)>, BadHeader> {
    const BEGIN: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let common = bytes.len().min(BEGIN.len());
    if bytes.get(..common) != BEGIN.get(..common) {
        return Err(BadHeader);
    }
    let Some([command, family, high, low]) = piece(bytes, BEGIN.len()) else { return Ok(None) };
    let begin = BEGIN.len().saturating_add(4);
    let length = begin.saturating_add(usize::from(u16::from_be_bytes([high, low])));
    if length > HEADER_MAX {
        return Err(BadHeader);
    }
    let told = match (command, family) {
        // Whatever else it says of itself is to be ignored.
        (0x20, _) => None,
        (0x21, 0x00) => Some((0, Told::Nobody)),
        (0x21, 0x11) => Some((12, Told::Nobody)),
        (0x21, 0x21) => Some((36, Told::Nobody)),
        // Datagrams and sockets of another system's files do not come here.
        _ => return Err(BadHeader),
    };
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    let Some((size, _)) = told else { return Ok(Some((length, Told::Nobody))) };
    let told = match size {
        12 => piece::<4>(header, begin).map(|v4| Told::Client(IpAddr::from(v4))),
        36 => piece::<16>(header, begin).map(|v6| Told::Client(IpAddr::from(v6))),
        _ => Some(Told::Nobody),
    };
    let more = begin.saturating_add(size);
    if more > length {
        return Err(BadHeader);
    }
    check_more(header, more)?;
    told.map(|told| Some((length, told))).ok_or(BadHeader)
}

/// So many bytes from there on.
fn piece<const N: usize>(bytes: &[u8], from: usize) -> Option<[u8; N]> {
    bytes.get(from..from.checked_add(N)?)?.try_into().ok()
}

/// What follows the addresses: types, lengths and values, of which only the checksum means anything to us.
fn check_more(header: &[u8], mut at: usize) -> Result<(), BadHeader> {
    const CHECKSUM: u8 = 0x03;
    let mut checked = false;
    while at < header.len() {
        let [kind, high, low] = piece(header, at).ok_or(BadHeader)?;
        let value = at.saturating_add(3);
        at = value.saturating_add(usize::from(u16::from_be_bytes([high, low])));
        if at > header.len() {
            return Err(BadHeader);
        }
        if kind == CHECKSUM {
            let told = piece(header, value).filter(|_| at == value.saturating_add(4));
            let told = told.map(u32::from_be_bytes).ok_or(BadHeader)?;
            if std::mem::replace(&mut checked, true) || crc32c(header, value..at) != told {
                return Err(BadHeader);
            }
        }
    }
    Ok(())
}

/// The checksum of Castagnoli (RFC 9260, appendix A) over these bytes, those in `zeroed` taken as zeros.
fn crc32c(bytes: &[u8], zeroed: std::ops::Range<usize>) -> u32 {
    let mut sum = !0_u32;
    for (at, byte) in bytes.iter().enumerate() {
        sum ^= u32::from(if zeroed.contains(&at) { 0 } else { *byte });
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0x82F6_3B78 } else { sum >> 1 };
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    const BEGIN: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [BEGIN, &[command, family], &length, rest].concat()
    }

    fn tcp4(more: &[u8]) -> Vec<u8> {
        v2(0x21, 0x11, &[&[192, 0, 2, 7, 10, 0, 0, 1, 0x1F, 0x90, 0, 80][..], more].concat())
    }

    fn client(text: &str) -> Told {
        Told::Client(text.parse().unwrap())
    }

    /// Goal: what both versions may tell is read, whatever stands behind it, and at every cut before its end more is waited for.
    #[test]
    fn headers_are_read() {
        let mut v6 = "2001:db8::7".parse::<Ipv6Addr>().unwrap().octets().to_vec();
        v6.extend([0; 20]);
        for (header, told) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\r\n".to_vec(), client("192.0.2.7")),
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 0 65535\r\n".to_vec(), client("192.0.2.7")),
            (b"PROXY TCP6 2001:db8::7 ::1 8080 80\r\n".to_vec(), client("2001:db8::7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Told::Nobody),
            (b"PROXY UNKNOWN what ever 0 x\r\n".to_vec(), Told::Nobody),
            (tcp4(b""), client("192.0.2.7")),
            (tcp4(&[0x04, 0, 2, 0, 0, 0xE0, 0, 0]), client("192.0.2.7")),
            (v2(0x21, 0x21, &v6), client("2001:db8::7")),
            (v2(0x20, 0x00, b""), Told::Nobody),
            (v2(0x20, 0x11, b"anything at all"), Told::Nobody),
            (v2(0x21, 0x00, b""), Told::Nobody),
        ] {
            for cut in 0..header.len() {
                assert_eq!(read(&header[..cut]), Ok(None), "{header:?} at {cut}");
            }
            let behind = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(read(&behind), Ok(Some((header.len(), told))), "{header:?}");
        }
    }

    /// Goal: what is no header, has two meanings, or is of what TCP does not carry is refused, as soon as that is clear.
    #[test]
    fn what_is_no_header_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        assert_eq!(long.len(), 108);
        for text in [
            "GET / HTTP/1.1\r\n",
            "PRI * HTTP/2.0",
            "proxy TCP4",
            "\r\n\r\n\r\n",
            "PROXY\tTCP4 192.0.2.7 10.0.0.1 8080 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\n",
            "PROXY TCP4  192.0.2.7 10.0.0.1 8080 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 8080 80 \r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 8080\r\n",
            "PROXY TCP4 192.0.2.07 10.0.0.1 8080 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 08080 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 +8080 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 65536 80\r\n",
            "PROXY TCP4 2001:db8::7 ::1 8080 80\r\n",
            "PROXY TCP6 192.0.2.7 10.0.0.1 8080 80\r\n",
            "PROXY UDP4 192.0.2.7 10.0.0.1 8080 80\r\n",
            "PROXY \r\n",
            &long,
        ] {
            assert_eq!(read(text.as_bytes()), Err(BadHeader), "{text:?}");
        }
        for header in [
            v2(0x11, 0x11, &[0; 12]),
            v2(0x22, 0x11, &[0; 12]),
            v2(0x21, 0x12, &[0; 12]),
            v2(0x21, 0x31, &[0; 216]),
            v2(0x21, 0x41, &[0; 12]),
            v2(0x21, 0x11, &[0; 11]),
            v2(0x21, 0x21, &[0; 35]),
            v2(0x20, 0x00, &[0; HEADER_MAX]),
            tcp4(&[0x04]),
            tcp4(&[0x04, 0, 2, 0]),
            tcp4(&[0x03, 0, 4, 1, 2, 3, 4]),
            tcp4(&[0x03, 0, 3, 1, 2, 3]),
        ] {
            assert_eq!(read(&header), Err(BadHeader), "{header:?}");
        }
    }

    /// Goal: a checksum is that of the whole header, and no bit of one that has it can be turned.
    #[test]
    fn a_checksum_is_checked() {
        assert_eq!(crc32c(b"123456789", 0..0), 0xE306_9283, "RFC 9260's check value");
        let mut header = tcp4(&[0x04, 0, 1, 9, 0x03, 0, 4, 0, 0, 0, 0]);
        let at = header.len() - 4;
        let sum = crc32c(&header, at..header.len());
        header[at..].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(read(&header), Ok(Some((header.len(), client("192.0.2.7")))));
        // Without its type it is another extension, which means nothing to us.
        let kind = header.len() - 7;
        for bit in (0..header.len() * 8).filter(|bit| bit / 8 != kind) {
            let mut turned = header.clone();
            turned[bit / 8] ^= 1 << (bit % 8);
            // One that tells less of itself is one that may be ignored, or of which more is to come.
            let read = read(&turned);
            assert!(!matches!(read, Ok(Some((_, Told::Client(_))))), "bit {bit}: {read:?}");
        }
        let twice = [&header[16 + 12..], &header[16 + 12..]].concat();
        assert_eq!(read(&tcp4(&twice)), Err(BadHeader));
    }

    proptest! {
        /// Goal: no bytes make it panic or claim more than there is, and what it reads it reads from those bytes alone.
        #[test]
        fn any_bytes_are_read_or_refused(begin in 0..3_u8, rest: Vec<u8>, behind: u8) {
            let begin: &[u8] = match begin { 0 => b"", 1 => b"PROXY ", _ => BEGIN };
            let mut bytes = [begin, &rest].concat();
            let read_first = read(&bytes);
            if let Ok(Some((length, _))) = read_first {
                assert!(length <= bytes.len() && length <= HEADER_MAX);
                bytes.push(behind);
                assert_eq!(read(&bytes), read_first);
                assert_eq!(read(&bytes[..length]), read_first);
            }
        }

        /// Goal: any address and port, told in either version, is the one that is read.
        #[test]
        fn what_is_told_is_read(v6: bool, from: [u8; 16], ports: [u8; 4], more in any::<u8>()) {
            let mut v4 = [0; 4];
            v4.copy_from_slice(&from[..4]);
            let address = if v6 { IpAddr::from(from) } else { IpAddr::from(v4) };
            let (word, family) = if v6 { ("TCP6", 0x21) } else { ("TCP4", 0x11) };
            let port = u16::from_be_bytes([ports[0], ports[1]]);
            let line = format!("PROXY {word} {address} {address} {port} {port}\r\n").into_bytes();
            assert_eq!(read(&line), Ok(Some((line.len(), Told::Client(address)))));
            let bytes = if v6 { from.to_vec() } else { v4.to_vec() };
            let extra = [0xEE, 0, 1, more];
            let block = v2(0x21, family, &[&bytes[..], &bytes, &ports, &extra].concat());
            assert_eq!(read(&block), Ok(Some((block.len(), Told::Client(address)))));
        }
    }
}
