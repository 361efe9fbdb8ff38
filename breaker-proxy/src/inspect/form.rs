//! Finds a few fields in `application/x-www-form-urlencoded` text, a query or a body, in one pass; it copies only what it must
//! decode.
//!
//! Names and values are decoded before they are compared, so that every encoding of a name is that name: `%61` is `a`, `+` is a
//! blank. Where servers differ in what a field is called or where it ends, the text is refused if a wanted field is concerned:
//! a name that stands twice, in another case, with an index (`a[]`), cut off by a zero byte, with a dot or a blank for `_` (as
//! PHP reads it), or behind a semicolon (which separates fields for those who follow HTML 4.01, B.2.2).

use super::text::{Room, alike};
use super::{MAX_WANTED, Set};
use std::fmt;

/// The longest name that is looked for, in bytes.
pub const MAX_NAME: usize = 128;

/// Why nothing is found in a text at all. Numbers are places in the list of wanted names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormError {
    /// A name in it, or the value of this field, is no proper encoding of UTF-8.
    Encoding,
    /// The field stands there twice.
    Doubled(usize),
    /// The field stands there in a form that only some readers take for it.
    Otherwise(usize),
}

impl fmt::Display for FormError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FormError::Encoding => "is no proper encoding of UTF-8",
            FormError::Doubled(_) => "has a field twice",
            FormError::Otherwise(_) => "has a field that only some readers take for the wanted one",
        })
    }
}

impl std::error::Error for FormError {}

/// A value as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded<'a>(&'a [u8]);

impl<'a> Encoded<'a> {
    /// What it means, UTF-8 in every case. It stands in `room` if it has to be written anew; `None` if it does not fit there.
    ///
    /// # Errors
    /// A broken encoding, or one of what is no UTF-8.
    pub fn read<'r, const N: usize>(
        self,
        room: &'r mut Room<N>,
    ) -> Result<Option<&'r [u8]>, FormError>
    where
        'a: 'r,
    {
        if !self.0.iter().any(|byte| matches!(byte, b'%' | b'+')) {
            std::str::from_utf8(self.0).map_err(|_| FormError::Encoding)?;
            return Ok((self.0.len() <= N).then_some(self.0));
        }
        for byte in decoded(self.0) {
            room.push(&[byte.ok_or(FormError::Encoding)?]);
        }
        let Some(bytes) = room.bytes() else { return Ok(None) };
        std::str::from_utf8(bytes).map_err(|_| FormError::Encoding)?;
        Ok(Some(bytes))
    }
}

/// The value of each wanted field, of which at most [`MAX_WANTED`] are looked for; `None`: there is no such field. A field without `=`
/// has an empty value. Names longer than [`MAX_NAME`] are never found.
///
/// # Errors
/// A text in which a wanted field has no single meaning, and one with a name that is no proper encoding, for it may be a wanted one to
/// somebody. Broken encodings in values that nobody asked for are let be.
pub fn find<'a>(
    text: &'a [u8],
    names: &[Box<str>],
) -> Result<[Option<Encoded<'a>>; MAX_WANTED], FormError> {
    let mut found = [None; MAX_WANTED];
    if names.is_empty() {
        return Ok(found);
    }
    for field in text.split(|&byte| byte == b'&') {
        let mut pieces = field.split(|&byte| byte == b';');
        let is_whole = pieces.next().is_none_or(|piece| piece.len() == field.len());
        let (name, value) = halves(field);
        let like = wanted(name, names)?;
        if is_whole {
            like.none_otherwise()?;
            for bit in super::bits(like.exact) {
                let Some(slot) = found.get_mut(bit) else { continue };
                if slot.replace(Encoded(value)).is_some() {
                    return Err(FormError::Doubled(bit));
                }
            }
            continue;
        }
        // To some this is one field and to others several: none of either may be wanted.
        like.none_at_all()?;
        for piece in field.split(|&byte| byte == b';') {
            wanted(halves(piece).0, names)?.none_at_all()?;
        }
    }
    Ok(found)
}

/// Name and value, still encoded.
fn halves(field: &[u8]) -> (&[u8], &[u8]) {
    let at = field.iter().position(|&byte| byte == b'=').unwrap_or(field.len());
    let (name, rest) = field.split_at_checked(at).unwrap_or((field, b""));
    (name, rest.get(1..).unwrap_or_default())
}

/// Which of the wanted names a name is.
#[derive(Clone, Copy, Default)]
struct Like {
    exact: Set,
    /// To some readers only.
    otherwise: Set,
}

impl Like {
    fn none_otherwise(self) -> Result<(), FormError> {
        super::bits(self.otherwise).next().map_or(Ok(()), |bit| Err(FormError::Otherwise(bit)))
    }

    fn none_at_all(self) -> Result<(), FormError> {
        Like { otherwise: self.otherwise | self.exact, ..self }.none_otherwise()
    }
}

fn wanted(encoded: &[u8], names: &[Box<str>]) -> Result<Like, FormError> {
    let mut room = Room::<MAX_NAME>::default();
    let Some(name) = Encoded(encoded).read(&mut room)? else { return Ok(Like::default()) };
    // It was checked to be UTF-8.
    let name = std::str::from_utf8(name).unwrap_or_default();
    let mut like = Like::default();
    for (bit, own) in names.iter().take(MAX_WANTED).enumerate() {
        if **own == *name {
            like.exact |= 1 << bit;
        } else if is_taken_for(name, own) {
            like.otherwise |= 1 << bit;
        }
    }
    Ok(like)
}

/// Whether some server takes `name` for `own`.
fn is_taken_for(name: &str, own: &str) -> bool {
    let name = name.split('\0').next().unwrap_or_default().trim();
    let stem = name.split('[').next().unwrap_or_default();
    let underscored = |text: &str| -> bool {
        let plain = |character| if matches!(character, '.' | ' ' | '[') { '_' } else { character };
        alike(text.chars().map(plain), own.chars().map(plain))
    };
    underscored(name) || underscored(stem)
}

/// The bytes that are meant; `None` stands for a `%` without two hexadecimal digits.
fn decoded(text: &[u8]) -> impl Iterator<Item = Option<u8>> {
    let mut rest = text.iter().copied();
    std::iter::from_fn(move || {
        Some(match rest.next()? {
            b'+' => Some(b' '),
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                let value = digit().zip(digit()).map(|(high, low)| high << 4 | low);
                value.and_then(|value| u8::try_from(value).ok())
            }
            other => Some(other),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{FormError, MAX_NAME, find};
    use crate::inspect::text::{Room, alike};
    use proptest::prelude::{ProptestConfig, any, prop, proptest};

    fn names(names: &[&str]) -> Vec<Box<str>> {
        names.iter().map(|name| (*name).into()).collect()
    }

    /// The value of `acct`, decoded.
    fn acct(text: &str) -> Result<Option<String>, FormError> {
        let [Some(value), ..] = find(text.as_bytes(), &names(&["acct"]))? else { return Ok(None) };
        let mut room = Room::<32>::default();
        let bytes = value.read(&mut room)?;
        Ok(Some(
            bytes.map_or("too long".to_owned(), |bytes| String::from_utf8(bytes.to_vec()).unwrap()),
        ))
    }

    /// Goal: every encoding of a field is that field, with one value.
    #[test]
    fn fields_are_found_in_any_encoding() {
        for (text, value) in [
            ("acct=a", "a"),
            ("%61cct=%61", "a"),
            ("%61%63%63%74=%C3%a9", "é"),
            ("x=1&acct=a+b%2Bc&y=2", "a b+c"),
            ("acct=a=b", "a=b"),
            ("acct=", ""),
            ("acct", ""),
            ("&&acct=é&", "é"),
            ("acct=%26%3D%3b", "&=;"),
            ("acct=12345678901234567890123456789012", "12345678901234567890123456789012"),
            ("acct=123456789012345678901234567890123", "too long"),
            ("acct=%3123456789012345678901234567890123", "too long"),
            ("accts=1&acc=2&xacct=3&acct=4&a=acct", "4"),
            ("q=100%&acct=a&r=%zz&s=%ff", "a"),
            ("a;b=1;c=2&acct=a", "a"),
        ] {
            assert_eq!(acct(text), Ok(Some(value.to_owned())), "{text}");
        }
        for text in ["", "&", "=", "=a", "x=acct", "x=&y", "acc%2574=1"] {
            assert_eq!(acct(text), Ok(None), "{text}");
        }
    }

    /// Goal: a field that stands twice is refused, however either is spelled.
    #[test]
    fn a_doubled_field_is_refused() {
        for text in [
            "acct=a&acct=b",
            "acct=a&acct=a",
            "acct&acct",
            "acct=a&x=1&%61cct=b",
            "ac%63t=a&a%63ct=",
        ] {
            assert_eq!(acct(text), Err(FormError::Doubled(0)), "{text}");
        }
        let wanted = names(&["x", "acct"]);
        assert_eq!(find(b"acct=1&x=2&acct=3", &wanted), Err(FormError::Doubled(1)));
    }

    /// Goal: what only some servers take for the field is refused, be it beside the field or in its place.
    #[test]
    fn a_field_that_some_take_for_the_wanted_one_is_refused() {
        for text in [
            "ACCT=a",
            "acct=a&Acct=b",
            "acct[]=a",
            "acct=a&acct[]=b",
            "acct%5B0%5D=a",
            "acct[x=a",
            "+acct=a",
            "acct+=a",
            "%00acct",
            "acct%00x=a",
            "acct%00=a",
            "acct=a;acct=b",
            "x=1;acct=b",
            "acct=a;b",
            "x;acct",
            "x;%61cct=1",
            "acct;x",
            "x=1;ACCT=2",
            ";acct=a",
            "acct=a;",
        ] {
            let expected = if text == "%00acct" { Ok(None) } else { Err(FormError::Otherwise(0)) };
            assert_eq!(acct(text), expected, "{text}");
        }
        for text in
            ["account.id=1", "account+id=1", "Account_Id=1", "account[id=1", "account_id[]=1"]
        {
            let found = find(text.as_bytes(), &names(&["account_id"]));
            assert_eq!(found, Err(FormError::Otherwise(0)), "{text}");
        }
        let indexed = names(&["filter[account]"]);
        assert!(
            find(b"filter[account]=1&filter[x]=2", &indexed).is_ok_and(|found| found[0].is_some())
        );
    }

    /// Goal: a name that is no proper encoding may be the wanted one to somebody; so it is refused, and so is such a value.
    #[test]
    fn a_broken_encoding_is_refused_where_it_matters() {
        for text in [
            "acc%=a",
            "acc%7=a",
            "acc%7g=a",
            "%acct=a",
            "acc%u0074=a",
            "x%ff=1",
            "%c1%a1cct=a",
            "\u{0}%",
            "acct=%",
            "acct=%4",
            "acct=%zz",
            "acct=%ff",
            "acct=%c0%af",
            "acct=%ed%a0%80",
            "x=1;%=2",
        ] {
            assert_eq!(acct(text), Err(FormError::Encoding), "{text}");
        }
        assert_eq!(find(b"\xff=1", &names(&["acct"])), Err(FormError::Encoding));
        assert!(find(b"\xff=1", &[]).is_ok(), "nothing is wanted of it");
    }

    /// Goal: several names are found in one pass, also the same one twice; long names are never found and never in the way.
    #[test]
    fn many_names_are_found_at_once() {
        let wanted = names(&["b", "a", "b", "c"]);
        let found = find(b"a=1&b=2", &wanted).unwrap();
        let value = |at: usize| found[at].map(|value| value.0);
        assert_eq!(
            (value(0), value(1), value(2), value(3)),
            (Some(&b"2"[..]), Some(&b"1"[..]), Some(&b"2"[..]), None)
        );
        let long = "n".repeat(MAX_NAME + 1);
        assert_eq!(acct(&format!("{long}=1&{long}=2&acct=a")), Ok(Some("a".to_owned())));
    }

    /// The rules once more, slowly: everything is decoded whole first.
    fn slow(text: &str, own: &str) -> Result<Option<Vec<u8>>, ()> {
        fn decode(text: &str) -> Option<Vec<u8>> {
            let mut out = Vec::new();
            let mut rest = text;
            while let Some(first) = rest.chars().next() {
                let width = if first == '%' { 3 } else { first.len_utf8() };
                let piece = rest.get(..width)?;
                match first {
                    '%' => {
                        let digits = piece.get(1..)?;
                        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                            return None;
                        }
                        out.push(u8::from_str_radix(digits, 16).ok()?);
                    }
                    '+' => out.push(b' '),
                    _ => out.extend(piece.bytes()),
                }
                rest = rest.get(width..)?;
            }
            String::from_utf8(out).ok().map(String::into_bytes)
        }
        let mut values = Vec::new();
        for field in text.split('&') {
            for (index, piece) in std::iter::once(field).chain(field.split(';')).enumerate() {
                let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
                let name = String::from_utf8(decode(name).ok_or(())?).map_err(drop)?;
                let is_split = field.contains(';');
                if name == own {
                    if is_split {
                        return Err(());
                    }
                    if index == 0 {
                        values.push(value);
                    }
                } else {
                    let bare = name.split('\0').next().unwrap_or("").trim().to_owned();
                    let marked = bare.replace(['.', ' ', '['], "_");
                    let stem = bare.split('[').next().unwrap_or("").replace(['.', ' '], "_");
                    let own = own.replace(['.', ' ', '['], "_");
                    if [marked, stem].iter().any(|name| alike(name.chars(), own.chars())) {
                        return Err(());
                    }
                }
            }
        }
        match values.as_slice() {
            [] => Ok(None),
            [one] => decode(one).map(Some).ok_or(()),
            _ => Err(()),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        /// Goal: the one pass agrees with the slow rules. Method: texts strung together from the pieces that matter.
        #[test]
        fn one_pass_agrees_with_the_slow_rules(
            text in "(a|%61|A|_|\\.|b|=|=|&|&|;|\\+|%|%2|%00|%5[bB]|\\[|\\]|é|%c3%a9|%ff|x){0,14}",
            own in prop::sample::select(vec!["a", "a_b", "é", "x", "a[b"]),
        ) {
            let found = find(text.as_bytes(), &names(&[own]));
            let read = found.and_then(|found| match found[0] {
                Some(value) => value.read(&mut Room::<256>::default()).map(|bytes| bytes.map(<[u8]>::to_vec)),
                None => Ok(None),
            });
            assert_eq!(read.map_err(drop), slow(&text, own), "{own} in {text}");
        }

        /// Goal: no bytes make it panic.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(found) = find(&bytes, &names(&["a", "b"])) {
                let _ = found[0].map(|value| value.read(&mut Room::<8>::default()).is_ok());
            }
        }
    }
}
