//! Finds a few values in a JSON document (RFC 8259) in one pass; it builds no tree, copies nothing and mends nothing.
//!
//! The whole document is checked, also what nobody asked for, so that what is found is what a strict reader would find. Where
//! readers differ the document is refused: a member that leads to a wanted value and stands twice (most take the last one,
//! some the first), or that stands in another case (some readers take it for the same). RFC 8259 (section 4) leaves that open;
//! RFC 7493 (I-JSON, section 2.3) forbids it.

use super::text::{Room, alike};
use super::{MAX_WANTED, Set, bits, first};
use std::fmt;
use std::str::Chars;

/// How deep arrays and objects may nest.
pub const MAX_DEPTH: usize = 64;

/// A place in a document, written as RFC 6901 says: `/orders/0/account`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    text: Box<str>,
    tokens: Box<[Token]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    name: Box<str>,
    /// The same as a place in an array, if it is one.
    index: Option<u32>,
}

/// Why a text is no pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PointerError {
    /// It does not begin with `/`. The empty pointer, which means the whole document, is not taken either.
    NoSlash,
    /// A `~` that is neither `~0` nor `~1`.
    BadTilde,
    /// It leads deeper than [`MAX_DEPTH`].
    TooDeep,
}

impl fmt::Display for PointerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PointerError::NoSlash => f.write_str("does not begin with '/'"),
            PointerError::BadTilde => f.write_str("has a '~' that is neither ~0 nor ~1"),
            PointerError::TooDeep => write!(f, "leads deeper than {MAX_DEPTH} levels"),
        }
    }
}

impl std::error::Error for PointerError {}

impl Pointer {
    /// Reads a pointer.
    ///
    /// # Errors
    /// What no pointer looks like, and the empty one.
    pub fn parse(text: &str) -> Result<Pointer, PointerError> {
        let rest = text.strip_prefix('/').ok_or(PointerError::NoSlash)?;
        let tokens = rest.split('/').map(Token::parse).collect::<Result<Box<[Token]>, _>>()?;
        if tokens.len() > MAX_DEPTH {
            return Err(PointerError::TooDeep);
        }
        Ok(Pointer { text: text.into(), tokens })
    }

    /// The pointer to one member of the document itself, whatever its name holds.
    #[must_use]
    pub fn member(name: &str) -> Pointer {
        Pointer { text: name.into(), tokens: [Token::new(name.to_owned())].into() }
    }

    /// It as it was written: a pointer, or the name of a member.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Token {
    fn new(name: String) -> Token {
        let canonical = name == "0" || !name.starts_with(['0', '+']);
        let index = name.parse().ok().filter(|_| canonical);
        Token { name: name.into(), index }
    }

    fn parse(text: &str) -> Result<Token, PointerError> {
        let mut name = String::with_capacity(text.len());
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            name.push(match character {
                '~' => match characters.next() {
                    Some('0') => '~',
                    Some('1') => '/',
                    _ => return Err(PointerError::BadTilde),
                },
                other => other,
            });
        }
        Ok(Token::new(name))
    }
}

/// Why nothing is found in a document at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JsonError {
    /// It is not UTF-8, or begins with a byte order mark.
    NotText,
    /// Not JSON, from this byte on.
    Syntax(usize),
    /// Deeper than [`MAX_DEPTH`].
    TooDeep,
    /// A member on the way to this pointer stands there twice.
    Doubled(usize),
    /// A member on the way to this pointer stands there in another case.
    Otherwise(usize),
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JsonError::NotText => f.write_str("is not plain UTF-8"),
            JsonError::Syntax(at) => write!(f, "is not JSON from byte {at} on"),
            JsonError::TooDeep => write!(f, "is deeper than {MAX_DEPTH} levels"),
            JsonError::Doubled(_) => f.write_str("has a member twice"),
            JsonError::Otherwise(_) => f.write_str("has a member in another case"),
        }
    }
}

impl std::error::Error for JsonError {}

/// A value, as far as anyone asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A string.
    Text(Text<'a>),
    /// A number as it is written.
    Number(&'a str),
    /// `true` or `false`.
    Flag(bool),
    /// `null`.
    Null,
    /// An array or an object.
    Nested,
}

/// A string as it is written, between its quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    raw: &'a str,
    escaped: bool,
}

impl<'a> Text<'a> {
    /// The characters that it means.
    pub fn chars(self) -> impl Iterator<Item = char> + use<'a> {
        Unescaped { rest: self.raw.chars() }
    }

    /// The text that it means. It stands in `room` if it has to be written anew; `None` if it does not fit there.
    #[must_use]
    pub fn read<'r, const N: usize>(self, room: &'r mut Room<N>) -> Option<&'r [u8]>
    where
        'a: 'r,
    {
        if !self.escaped {
            return (self.raw.len() <= N).then_some(self.raw.as_bytes());
        }
        self.chars().for_each(|character| room.push_char(character));
        room.bytes()
    }

    fn is(self, name: &str) -> bool {
        if self.escaped { self.chars().eq(name.chars()) } else { self.raw == name }
    }
}

/// Reads a string that was checked: what could not be there is left out.
struct Unescaped<'a> {
    rest: Chars<'a>,
}

impl Unescaped<'_> {
    fn unit(&mut self) -> u32 {
        (0..4).fold(0, |unit, _| {
            let digit = self.rest.next().and_then(|digit| digit.to_digit(16)).unwrap_or(0);
            unit << 4 | digit
        })
    }
}

impl Iterator for Unescaped<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let character = self.rest.next()?;
        if character != '\\' {
            return Some(character);
        }
        Some(match self.rest.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let unit = self.unit();
                char::from_u32(unit).or_else(|| {
                    // The second half of a pair: a backslash, a `u` and four digits.
                    self.rest.by_ref().take(2).for_each(drop);
                    char::from_u32(paired(unit, self.unit()))
                })?
            }
            other => other,
        })
    }
}

/// The character that two surrogates stand for (RFC 8259, 7).
const fn paired(high: u32, low: u32) -> u32 {
    0x1_0000 + ((high & 0x3FF) << 10 | low & 0x3FF)
}

/// What stands at each of the pointers, of which at most [`MAX_WANTED`] are looked for; `None`: nothing.
///
/// # Errors
/// What is no JSON document (RFC 8259) of bounded depth, and one in which a pointer has no single meaning; of several errors the
/// first one in the document.
pub fn find<'a>(
    document: &'a [u8],
    pointers: &[Pointer],
) -> Result<[Option<Value<'a>>; MAX_WANTED], JsonError> {
    let text = std::str::from_utf8(document).map_err(|_| JsonError::NotText)?;
    if text.starts_with('\u{FEFF}') {
        return Err(JsonError::NotText);
    }
    let levels = [Level::default(); MAX_DEPTH];
    let search = Search { text, at: 0, pointers, found: [None; MAX_WANTED], levels, depth: 0 };
    search.run()
}

/// An array or an object that we are in.
#[derive(Clone, Copy, Default)]
struct Level {
    is_object: bool,
    /// The pointers that lead into it.
    leads: Set,
    /// Those of them of which the next member was met.
    met: Set,
    /// Of an array: the place of the element that we are at.
    index: u32,
}

struct Search<'a, 'p> {
    text: &'a str,
    at: usize,
    pointers: &'p [Pointer],
    found: [Option<Value<'a>>; MAX_WANTED],
    levels: [Level; MAX_DEPTH],
    depth: usize,
}

impl<'a> Search<'a, '_> {
    fn run(mut self) -> Result<[Option<Value<'a>>; MAX_WANTED], JsonError> {
        let mut leads = first(self.pointers.len());
        loop {
            self.skip_blanks();
            leads = match self.begun(leads)? {
                Some(leads) => leads,
                None => match self.after()? {
                    Some(leads) => leads,
                    None => return Ok(self.found),
                },
            };
        }
    }

    /// Begins the value that stands here. `Some`: it holds values, and these pointers lead to the first. `None`: it is done.
    fn begun(&mut self, leads: Set) -> Result<Option<Set>, JsonError> {
        let value = match self.peek() {
            Some(b'{') => return self.enter(true, leads),
            Some(b'[') => return self.enter(false, leads),
            Some(b'"') => Value::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => Value::Number(self.number()?),
            Some(b't') => self.word("true", Value::Flag(true))?,
            Some(b'f') => self.word("false", Value::Flag(false))?,
            Some(b'n') => self.word("null", Value::Null)?,
            _ => return self.wrong(),
        };
        self.note(leads, value);
        Ok(None)
    }

    fn enter(&mut self, is_object: bool, leads: Set) -> Result<Option<Set>, JsonError> {
        self.note(leads, Value::Nested);
        self.step();
        let level = self.levels.get_mut(self.depth).ok_or(JsonError::TooDeep)?;
        *level = Level { is_object, leads, met: 0, index: 0 };
        self.depth = self.depth.saturating_add(1);
        self.skip_blanks();
        if self.peek() == Some(if is_object { b'}' } else { b']' }) {
            self.step();
            self.depth = self.depth.saturating_sub(1);
            return Ok(None);
        }
        self.held().map(Some)
    }

    /// What follows a value. `Some`: another one, and these pointers lead to it. `None`: the end of the document.
    fn after(&mut self) -> Result<Option<Set>, JsonError> {
        loop {
            self.skip_blanks();
            let Some(level) = self.depth.checked_sub(1).and_then(|at| self.levels.get_mut(at))
            else {
                return if self.at == self.text.len() { Ok(None) } else { self.wrong() };
            };
            let end = if level.is_object { b'}' } else { b']' };
            level.index = level.index.saturating_add(1);
            match self.peek() {
                Some(b',') => {
                    self.step();
                    self.skip_blanks();
                    return self.held().map(Some);
                }
                Some(byte) if byte == end => {
                    self.step();
                    self.depth = self.depth.saturating_sub(1);
                }
                _ => return self.wrong(),
            }
        }
    }

    /// The pointers that lead to the next value of the array or object that we are in, up to where that value begins.
    fn held(&mut self) -> Result<Set, JsonError> {
        let place = self.depth.saturating_sub(1);
        let Some(&Level { is_object, leads, met, index }) = self.levels.get(place) else {
            return self.wrong();
        };
        let pointers = self.pointers;
        let token = |bit: usize| pointers.get(bit).and_then(|pointer| pointer.tokens.get(place));
        if !is_object {
            let stands = |bit: &usize| token(*bit).is_some_and(|token| token.index == Some(index));
            return Ok(bits(leads).filter(stands).fold(0, |set, bit| set | 1 << bit));
        }
        let name = self.string()?;
        let mut leading: Set = 0;
        for bit in bits(leads) {
            let Some(token) = token(bit) else { continue };
            if name.is(&token.name) {
                if met >> bit & 1 == 1 {
                    return Err(JsonError::Doubled(bit));
                }
                leading |= 1 << bit;
            } else if alike(name.chars(), token.name.chars()) {
                return Err(JsonError::Otherwise(bit));
            }
        }
        if let Some(level) = self.levels.get_mut(place) {
            level.met |= leading;
        }
        self.skip_blanks();
        if self.peek() != Some(b':') {
            return self.wrong();
        }
        self.step();
        Ok(leading)
    }

    /// Notes a value for those of the pointers that end at it.
    fn note(&mut self, leads: Set, value: Value<'a>) {
        for bit in bits(leads) {
            let ends = self.pointers.get(bit).map(|pointer| pointer.tokens.len());
            if let (true, Some(slot)) = (ends == Some(self.depth), self.found.get_mut(bit)) {
                *slot = Some(value);
            }
        }
    }

    /// A string from its first quote to behind its last.
    fn string(&mut self) -> Result<Text<'a>, JsonError> {
        if self.peek() != Some(b'"') {
            return self.wrong();
        }
        self.step();
        let from = self.at;
        let mut escaped = false;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.step();
                    self.escape()?;
                }
                Some(0..0x20) | None => return self.wrong(),
                Some(_) => self.step(),
            }
        }
        // Quotes and backslashes are no part of another character.
        let raw = self.text.get(from..self.at).unwrap_or_default();
        self.step();
        Ok(Text { raw, escaped })
    }

    /// An escape behind its backslash. Half a surrogate pair is no character, and readers differ in what they make of it.
    fn escape(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.step();
                Ok(())
            }
            Some(b'u') => {
                self.step();
                let unit = self.unit()?;
                match unit {
                    0xDC00..=0xDFFF => self.wrong(),
                    0xD800..=0xDBFF => {
                        for byte in [b'\\', b'u'] {
                            if self.peek() != Some(byte) {
                                return self.wrong();
                            }
                            self.step();
                        }
                        if matches!(self.unit()?, 0xDC00..=0xDFFF) { Ok(()) } else { self.wrong() }
                    }
                    _ => Ok(()),
                }
            }
            _ => self.wrong(),
        }
    }

    fn unit(&mut self) -> Result<u32, JsonError> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            let Some(digit) = digit else { return self.wrong() };
            unit = unit << 4 | digit;
            self.step();
        }
        Ok(unit)
    }

    fn number(&mut self) -> Result<&'a str, JsonError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let Some(length) = number_length(rest.as_bytes()) else { return self.wrong() };
        self.at = self.at.saturating_add(length);
        Ok(rest.get(..length).unwrap_or_default())
    }

    fn word(&mut self, word: &str, value: Value<'a>) -> Result<Value<'a>, JsonError> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        if !rest.starts_with(word.as_bytes()) {
            return self.wrong();
        }
        self.at = self.at.saturating_add(word.len());
        Ok(value)
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.step();
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn step(&mut self) {
        self.at = self.at.saturating_add(1);
    }

    fn wrong<T>(&self) -> Result<T, JsonError> {
        Err(JsonError::Syntax(self.at))
    }
}

/// How many bytes at the front of `text` are a number (RFC 8259, 6); `None` if none is.
#[must_use]
pub(super) fn number_length(text: &[u8]) -> Option<usize> {
    let digits = |from: usize| {
        let rest = text.get(from..).unwrap_or_default();
        rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
    };
    let byte = |at: usize| text.get(at).copied();
    let mut at = usize::from(byte(0) == Some(b'-'));
    // A leading zero stands alone.
    at = at.checked_add(if byte(at) == Some(b'0') { 1 } else { digits(at).max(1) })?;
    if !byte(at.checked_sub(1)?)?.is_ascii_digit() {
        return None;
    }
    if byte(at) == Some(b'.') {
        let fraction = digits(at.checked_add(1)?);
        at = at.checked_add(fraction)?.checked_add(1).filter(|_| fraction > 0)?;
    }
    if matches!(byte(at), Some(b'e' | b'E')) {
        let from = at.checked_add(1)?;
        let from = from.checked_add(usize::from(matches!(byte(from), Some(b'+' | b'-'))))?;
        let exponent = digits(from);
        at = from.checked_add(exponent).filter(|_| exponent > 0)?;
    }
    Some(at)
}

#[cfg(test)]
mod tests;
