//! What a client's certificate says of whom it is for (RFC 5280), read once for each connection; it verifies nothing.

use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::str;

/// A part of a certificate that tells clients apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The whole name of its subject, as RFC 4514 writes it.
    Subject,
    /// The common name of its subject.
    CommonName,
    /// A DNS name of its subject, in lower case.
    Dns,
    /// A URI of its subject, as SPIFFE has it.
    Uri,
    /// An e-mail address of its subject.
    Email,
    /// SHA-256 over the certificate, as 64 hexadecimal digits in lower case.
    Fingerprint,
}

impl Part {
    /// All of them, by the words of the configuration.
    pub const ALL: [(&'static str, Part); 6] = [
        ("subject", Part::Subject),
        ("common_name", Part::CommonName),
        ("dns", Part::Dns),
        ("uri", Part::Uri),
        ("email", Part::Email),
        ("fingerprint", Part::Fingerprint),
    ];
}

/// What stands in one part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stands {
    /// Nothing.
    #[default]
    Nothing,
    /// This.
    One(Box<str>),
    /// More than one thing: it tells nobody apart.
    Many,
    /// What cannot be read.
    Unreadable,
}

impl Stands {
    fn add(&mut self, more: Option<String>) {
        *self = match (std::mem::take(self), more) {
            (Stands::Nothing, Some(text)) => Stands::One(text.into()),
            (Stands::One(_) | Stands::Many, Some(_)) => Stands::Many,
            (Stands::Unreadable, _) | (_, None) => Stands::Unreadable,
        };
    }
}

/// Whom a certificate is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    subject: Stands,
    common_name: Stands,
    dns: Stands,
    uri: Stands,
    email: Stands,
    fingerprint: Stands,
}

impl Identity {
    /// Reads a certificate in DER, which someone else has verified. What cannot be read of it says so where it is asked for.
    #[must_use]
    pub fn read(certificate: &[u8]) -> Identity {
        let mut identity = Identity::default();
        if identity.take(certificate).is_none() {
            let lost = || Stands::Unreadable;
            identity = Identity {
                subject: lost(),
                common_name: lost(),
                dns: lost(),
                uri: lost(),
                email: lost(),
                fingerprint: lost(),
            };
        }
        identity.fingerprint = Stands::One(hex(&Sha256::digest(certificate)).into());
        identity
    }

    /// What stands in this part.
    #[must_use]
    pub fn part(&self, part: Part) -> &Stands {
        match part {
            Part::Subject => &self.subject,
            Part::CommonName => &self.common_name,
            Part::Dns => &self.dns,
            Part::Uri => &self.uri,
            Part::Email => &self.email,
            Part::Fingerprint => &self.fingerprint,
        }
    }

    fn take(&mut self, certificate: &[u8]) -> Option<()> {
        let (mut outer, rest) = within(certificate, SEQUENCE)?;
        let mut body = inner(&mut outer, SEQUENCE).filter(|_| rest.is_empty())?;
        if tag(body) == Some(VERSION) {
            inner(&mut body, VERSION)?;
        }
        inner(&mut body, INTEGER)?;
        for _ in ["the algorithm", "the issuer", "when it is valid"] {
            inner(&mut body, SEQUENCE)?;
        }
        let subject = inner(&mut body, SEQUENCE)?;
        self.take_subject(subject)?;
        inner(&mut body, SEQUENCE)?;
        // What follows may be missing: identifiers that nobody uses, then extensions.
        while let Some(kind) = tag(body) {
            let mut content = inner(&mut body, kind)?;
            if kind == EXTENSIONS {
                let mut list = inner(&mut content, SEQUENCE)?;
                while !list.is_empty() {
                    self.take_extension(inner(&mut list, SEQUENCE)?)?;
                }
            }
        }
        Some(())
    }

    fn take_subject(&mut self, mut name: &[u8]) -> Option<()> {
        let mut written: Vec<String> = Vec::new();
        let mut readable = true;
        while !name.is_empty() {
            let mut set = inner(&mut name, SET)?;
            let mut pieces: Vec<String> = Vec::new();
            while !set.is_empty() {
                let mut pair = inner(&mut set, SEQUENCE)?;
                let kind = inner(&mut pair, OBJECT)?;
                let how = tag(pair)?;
                let value = text(how, inner(&mut pair, how)?);
                if kind == COMMON_NAME {
                    self.common_name.add(value.clone());
                }
                match value.and_then(|value| attribute(kind, &value)) {
                    Some(piece) => pieces.push(piece),
                    None => readable = false,
                }
            }
            written.push(pieces.join("+"));
        }
        if !written.is_empty() {
            // RFC 4514, 2.1: the last stands first.
            written.reverse();
            self.subject.add(readable.then(|| written.join(",")));
        }
        Some(())
    }

    fn take_extension(&mut self, mut extension: &[u8]) -> Option<()> {
        if inner(&mut extension, OBJECT)? != OTHER_NAMES {
            return Some(());
        }
        if tag(extension) == Some(BOOLEAN) {
            inner(&mut extension, BOOLEAN)?;
        }
        let mut octets = inner(&mut extension, OCTETS)?;
        let mut names = inner(&mut octets, SEQUENCE)?;
        while let Some(kind) = tag(names) {
            let value = inner(&mut names, kind)?;
            let value = || str::from_utf8(value).ok().filter(|text| text.is_ascii());
            match kind {
                EMAIL => self.email.add(value().map(str::to_owned)),
                DNS => self.dns.add(value().map(str::to_ascii_lowercase)),
                URI => self.uri.add(value().map(str::to_owned)),
                _ => {}
            }
        }
        Some(())
    }
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OBJECT: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xA0;
const EXTENSIONS: u8 = 0xA3;
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;

/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 2.5.29.17
const OTHER_NAMES: &[u8] = &[0x55, 0x1D, 0x11];

/// The kind of the first value.
fn tag(from: &[u8]) -> Option<u8> {
    from.first().copied()
}

/// The content of the first value, which must be of this kind, and what stands behind it.
fn within(from: &[u8], kind: u8) -> Option<(&[u8], &[u8])> {
    let [own, first, rest @ ..] = from else { return None };
    // Kinds of more than one byte stand nowhere in a certificate.
    if *own != kind || kind & 0x1F == 0x1F {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7F => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x0F))?;
            let length = bytes.iter().try_fold(0_usize, |length, byte| {
                length.checked_mul(256)?.checked_add(usize::from(*byte))
            })?;
            // DER writes a length in one way: the shortest.
            let shortest = bytes.first() != Some(&0) && length >= 0x80;
            (shortest.then_some(length)?, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// Takes the first value.
fn inner<'a>(from: &mut &'a [u8], kind: u8) -> Option<&'a [u8]> {
    let (content, rest) = within(from, kind)?;
    *from = rest;
    Some(content)
}

/// A text of one of the kinds that are still in use.
fn text(kind: u8, value: &[u8]) -> Option<String> {
    const UTF8: u8 = 0x0C;
    const NUMERIC: u8 = 0x12;
    const PRINTABLE: u8 = 0x13;
    const IA5: u8 = 0x16;
    let text = str::from_utf8(value).ok()?;
    match kind {
        UTF8 => Some(text.to_owned()),
        NUMERIC | PRINTABLE | IA5 => text.is_ascii().then(|| text.to_owned()),
        _ => None,
    }
}

/// One attribute of a name, as RFC 4514, 2.3 and 2.4 write it. Kinds without a short name are written by their number.
fn attribute(kind: &[u8], value: &str) -> Option<String> {
    let short = match kind {
        COMMON_NAME => Some("CN"),
        [0x55, 0x04, 0x05] => Some("SERIALNUMBER"),
        [0x55, 0x04, 0x06] => Some("C"),
        [0x55, 0x04, 0x07] => Some("L"),
        [0x55, 0x04, 0x08] => Some("ST"),
        [0x55, 0x04, 0x09] => Some("STREET"),
        [0x55, 0x04, 0x0A] => Some("O"),
        [0x55, 0x04, 0x0B] => Some("OU"),
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xF2, 0x2C, 0x64, 0x01, 0x01] => Some("UID"),
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xF2, 0x2C, 0x64, 0x01, 0x19] => Some("DC"),
        _ => None,
    };
    let mut out = match short {
        Some(short) => short.to_owned(),
        None => dotted(kind)?,
    };
    out.push('=');
    let last = value.chars().count().saturating_sub(1);
    for (at, character) in value.chars().enumerate() {
        let escaped = match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => true,
            '#' => at == 0,
            ' ' => at == 0 || at == last,
            _ => false,
        };
        if escaped {
            out.push('\\');
        }
        out.push(character);
    }
    Some(out)
}

/// The number of a kind of attribute.
fn dotted(kind: &[u8]) -> Option<String> {
    let mut out = String::new();
    let mut arc = 0_u64;
    for byte in kind {
        arc = arc.checked_mul(128)?.checked_add(u64::from(byte & 0x7F))?;
        if byte & 0x80 == 0 {
            let written = if out.is_empty() {
                let first = (arc / 40).min(2);
                write!(out, "{first}.{}", arc.saturating_sub(first * 40))
            } else {
                write!(out, ".{arc}")
            };
            written.ok()?;
            arc = 0;
        }
    }
    let whole = kind.last().is_some_and(|byte| byte & 0x80 == 0);
    whole.then_some(out)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut out, byte| {
        // Writing to a text does not fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};
    use proptest::sample::Index;
    use rcgen::{CertificateParams, CustomExtension, DnType, DnValue, KeyPair, SanType};

    fn one(text: &str) -> Stands {
        Stands::One(text.into())
    }

    fn certificate(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn san(text: &str) -> rcgen::string::Ia5String {
        text.try_into().unwrap()
    }

    /// Goal: each part is read, in its one form; the fingerprint is that of the whole.
    #[test]
    fn the_parts_are_read() {
        let der = certificate(|params| {
            let name = &mut params.distinguished_name;
            name.push(DnType::CountryName, "CH");
            name.push(DnType::OrganizationName, "Brook, Stone + Co");
            name.push(DnType::CommonName, "désk 7");
            name.push(DnType::CustomDnType(vec![1, 2, 840, 113549, 1, 9, 2]), "#x ");
            params.subject_alt_names = vec![
                SanType::DnsName(san("Desk7.Example.COM")),
                SanType::URI(san("spiffe://example.com/desk/7")),
                SanType::Rfc822Name(san("Desk@Example.com")),
                SanType::IpAddress([192, 0, 2, 7].into()),
            ];
        });
        let identity = Identity::read(&der);
        let subject = "1.2.840.113549.1.9.2=\\#x\\ ,CN=désk 7,O=Brook\\, Stone \\+ Co,C=CH";
        assert_eq!(*identity.part(Part::Subject), one(subject));
        assert_eq!(*identity.part(Part::CommonName), one("désk 7"));
        assert_eq!(*identity.part(Part::Dns), one("desk7.example.com"));
        assert_eq!(*identity.part(Part::Uri), one("spiffe://example.com/desk/7"));
        assert_eq!(*identity.part(Part::Email), one("Desk@Example.com"));
        let Stands::One(print) = identity.part(Part::Fingerprint) else { panic!("no fingerprint") };
        assert_eq!(print.len(), 64);
    }

    /// Goal: what stands twice names nobody, what is not there is missing, and what is of a kind we do not read says so.
    #[test]
    fn what_names_nobody_says_so() {
        let none = Identity::read(&certificate(|_| {}));
        for part in [Part::Subject, Part::CommonName, Part::Dns, Part::Uri, Part::Email] {
            assert_eq!(*none.part(part), Stands::Nothing, "{part:?}");
        }
        let two = Identity::read(&certificate(|params| {
            params.subject_alt_names = vec![
                SanType::DnsName(san("a")),
                SanType::DnsName(san("a")),
                SanType::URI(san("u")),
            ];
        }));
        assert_eq!((two.part(Part::Dns), two.part(Part::Uri)), (&Stands::Many, &one("u")));
        let odd = Identity::read(&certificate(|params| {
            let wide = DnValue::BmpString("wide".try_into().unwrap());
            params.distinguished_name.push(DnType::CommonName, wide);
            params.subject_alt_names = vec![SanType::DnsName(san("desk"))];
        }));
        assert_eq!(
            (odd.part(Part::Subject), odd.part(Part::Dns)),
            (&Stands::Unreadable, &one("desk"))
        );
        assert_eq!(*odd.part(Part::CommonName), Stands::Unreadable);
        let broken = Identity::read(&certificate(|params| {
            let extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0x05]);
            params.custom_extensions.push(extension);
        }));
        assert_eq!(*broken.part(Part::Dns), Stands::Unreadable);
        assert_ne!(*broken.part(Part::Fingerprint), Stands::Unreadable);
    }

    proptest! {
        /// Goal: no bytes make it panic.
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>, at in any::<Index>(), byte: u8) {
            let _ = Identity::read(&bytes);
            let mut der = certificate(|params| {
                params.distinguished_name.push(DnType::CommonName, "desk");
                params.subject_alt_names = vec![SanType::DnsName(san("desk"))];
            });
            let at = at.index(der.len());
            if let Some(slot) = der.get_mut(at) {
                *slot = byte;
            }
            let _ = Identity::read(&der);
            let _ = Identity::read(&der[..at]);
        }
    }
}
