//! A few bytes of text without a heap, and when two names are one to somebody; it knows no format.

use std::fmt;

/// Room for one value that has to be decoded, on the stack.
#[derive(Clone, Copy)]
pub struct Room<const N: usize> {
    bytes: [u8; N],
    used: usize,
    /// More was pushed than fits.
    spilt: bool,
}

impl<const N: usize> Default for Room<N> {
    fn default() -> Room<N> {
        Room { bytes: [0; N], used: 0, spilt: false }
    }
}

impl<const N: usize> fmt::Debug for Room<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Room").field(&self.bytes().map(String::from_utf8_lossy)).finish()
    }
}

impl<const N: usize> Room<N> {
    /// Adds bytes. If they do not fit they are lost, and [`Room::bytes`] says so.
    pub fn push(&mut self, bytes: &[u8]) {
        let end = self.used.saturating_add(bytes.len());
        match self.bytes.get_mut(self.used..end) {
            Some(slot) => {
                slot.copy_from_slice(bytes);
                self.used = end;
            }
            None => self.spilt = true,
        }
    }

    /// Adds a character as UTF-8.
    pub fn push_char(&mut self, character: char) {
        self.push(character.encode_utf8(&mut [0; 4]).as_bytes());
    }

    /// All that was pushed; `None` if it did not fit.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        if self.spilt { None } else { self.bytes.get(..self.used) }
    }
}

impl<const N: usize> fmt::Write for Room<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        if self.spilt { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Whether some reader takes two names for one though they differ: many compare names without their case.
///
/// Go's `encoding/json` and .NET's web defaults do, by Unicode's simple folding. Equal names are alike too.
#[must_use]
pub fn alike(one: impl Iterator<Item = char>, other: impl Iterator<Item = char>) -> bool {
    one.flat_map(folded).eq(other.flat_map(folded))
}

/// Down, up and down again, because some characters meet only in lower case: `ẞ` and `ß`, and others only in upper: `ſ` and `s`.
fn folded(character: char) -> impl Iterator<Item = char> {
    character.to_lowercase().flat_map(char::to_uppercase).flat_map(char::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::{Room, alike};

    /// Goal: what does not fit is told, and never cut short in silence.
    #[test]
    fn a_room_that_spills_says_so() {
        let mut room = Room::<4>::default();
        room.push_char('é');
        room.push(b"a");
        assert_eq!(room.bytes(), Some("éa".as_bytes()));
        room.push_char('é');
        assert_eq!(room.bytes(), None);
    }

    /// Goal: names that some reader folds into one are alike, others are not.
    #[test]
    fn names_are_alike_to_those_who_fold_case() {
        for (one, other, expected) in [
            ("account", "Account", true),
            ("account", "ACCOUNT", true),
            ("desk", "de\u{17f}k", true),
            ("desk", "des\u{212a}", true),
            ("é", "É", true),
            ("ß", "ẞ", true),
            ("account", "account ", false),
            ("account", "acount", false),
            ("", "a", false),
        ] {
            assert_eq!(alike(one.chars(), other.chars()), expected, "{one} {other}");
            assert_eq!(alike(other.chars(), one.chars()), expected, "{other} {one}");
        }
    }
}
