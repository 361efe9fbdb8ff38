//! The tree of scopes and the paths that name its places; it holds no state and knows no policy.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

/// A checked path: `/`, `/pay`, `/pay/orders`, `/pay/orders/account=42`, `/pay/account=42`,
/// `/symbol=EXC`, `/pay/account=!`.
///
/// A segment with `=` is a key, and stands last. Names are 1 to 64 bytes of `[A-Za-z0-9_.-]`, but
/// neither `.` nor `..`. A key's label is 1 to 256 bytes of anything; in the path it is
/// percent-encoded where it holds other than ASCII letters, digits and `-._~:@,+*[]()`. `!` in place of a label
/// names the calls that lack the key: see [`Missing::Share`](crate::Missing::Share). Each
/// scope has exactly one spelling: parsing brings others into it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
pub struct Scope(Box<str>);

/// How wide a scope is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// `/`: everything.
    Global,
    /// `/pay`: some routes.
    Group,
    /// `/pay/orders`: one route.
    Route,
    /// `/pay/orders/account=42`: the calls of one key, under any of the others.
    Key,
}

/// What a path lacks, as a lower-case fragment that names the problem and the mend.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScopeError {
    /// The fragment.
    pub problem: String,
}

/// The seeded hash of a key's label: all that a decision ever sees of a key. Never zero, and never that of
/// [`KeyHash::MISSING`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct KeyHash(NonZeroU64);

impl Scope {
    /// The root of the tree, `/`.
    #[must_use]
    pub fn global() -> Scope {
        Scope("/".into())
    }

    /// Reads a path.
    ///
    /// # Errors
    /// Says what is wrong with a path that is not absolute, too deep, or has a malformed segment.
    pub fn parse(path: &str) -> Result<Scope, ScopeError> {
        let Some(rest) = path.strip_prefix('/') else {
            return Err(ScopeError::new("a scope starts with `/`"));
        };
        let mut scope = Scope::global();
        if rest.is_empty() {
            return Ok(scope);
        }
        for segment in rest.split('/') {
            if segment.is_empty() {
                return Err(ScopeError::new(
                    "a path has no empty name: write no `/` at its end, and no two in a row",
                ));
            }
            scope = match segment.split_once('=') {
                Some((dimension, MISSING)) => scope.missing_key(dimension)?,
                Some((dimension, label)) => scope.key(dimension, &decode(label)?)?,
                None => scope.child(segment)?,
            };
        }
        Ok(scope)
    }

    /// The group below `/`, or the route below a group.
    ///
    /// # Errors
    /// A malformed name, or a parent that is a route or a key.
    pub fn child(&self, name: &str) -> Result<Scope, ScopeError> {
        check_name(name)?;
        match self.level() {
            Level::Global => Ok(Scope(format!("/{name}").into())),
            Level::Group => Ok(Scope(format!("{}/{name}", self.0).into())),
            Level::Route => Err(ScopeError::new(
                "a path has a group, a route and a key, no more; a key is written `dimension=label`",
            )),
            Level::Key => Err(ScopeError::new("a key stands last in a path")),
        }
    }

    /// The key below this scope: appends `dimension=label` with the label encoded.
    ///
    /// # Errors
    /// A malformed dimension, a label that is empty or longer than 256 bytes, or a parent that is
    /// itself a key.
    pub fn key(&self, dimension: &str, label: &[u8]) -> Result<Scope, ScopeError> {
        let mut path = self.before_label(dimension)?;
        if label.is_empty() || label.len() > MAX_LABEL {
            return Err(ScopeError::new(format!("a label has 1 to {MAX_LABEL} bytes")));
        }
        for &byte in label {
            if is_plain(byte) {
                path.push(char::from(byte));
            } else {
                path.push_str(&format!("%{byte:02X}"));
            }
        }
        Ok(Scope(path.into()))
    }

    /// The key below this scope that stands for all calls that lack it: appends `dimension=!`.
    ///
    /// # Errors
    /// A malformed dimension, or a parent that is itself a key.
    pub fn missing_key(&self, dimension: &str) -> Result<Scope, ScopeError> {
        let mut path = self.before_label(dimension)?;
        path.push_str(MISSING);
        Ok(Scope(path.into()))
    }

    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How wide it is.
    #[must_use]
    pub fn level(&self) -> Level {
        if self.0.contains('=') {
            return Level::Key;
        }
        match self.0.bytes().filter(|&byte| byte == b'/').count() {
            1 if &*self.0 == "/" => Level::Global,
            1 => Level::Group,
            _ => Level::Route,
        }
    }

    /// Dimension and decoded label of a key, an empty one for the calls that lack it; `None` for a named scope.
    #[must_use]
    pub fn key_parts(&self) -> Option<(&str, Vec<u8>)> {
        let (_, last) = self.0.rsplit_once('/')?;
        let (dimension, label) = last.split_once('=')?;
        if label == MISSING {
            return Some((dimension, Vec::new()));
        }
        Some((dimension, decode(label).ok()?))
    }

    /// What it hangs from; `None` for `/`.
    #[must_use]
    pub fn parent(&self) -> Option<Scope> {
        match self.0.rsplit_once('/')? {
            ("", "") => None,
            ("", _) => Some(Scope::global()),
            (parent, _) => Some(Scope(parent.into())),
        }
    }

    /// The path of a key up to its label.
    fn before_label(&self, dimension: &str) -> Result<String, ScopeError> {
        check_name(dimension)?;
        if self.level() == Level::Key {
            return Err(ScopeError::new("a key stands last in a path"));
        }
        let parent = if &*self.0 == "/" { "" } else { &*self.0 };
        Ok(format!("{parent}/{dimension}="))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(path: &str) -> Result<Scope, ScopeError> {
        Scope::parse(path)
    }
}

impl TryFrom<String> for Scope {
    type Error = ScopeError;

    fn try_from(path: String) -> Result<Scope, ScopeError> {
        Scope::parse(&path)
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> String {
        scope.0.into()
    }
}

impl ScopeError {
    fn new(problem: impl Into<String>) -> ScopeError {
        ScopeError { problem: problem.into() }
    }
}

impl fmt::Display for ScopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for ScopeError {}

impl KeyHash {
    /// What stands for all calls that lack a key. No label, number or fingerprint has it.
    pub const MISSING: KeyHash = KeyHash(NonZeroU64::MAX);

    /// The hash of something that a call can carry: never [`KeyHash::MISSING`].
    pub(crate) const fn of(hash: u64) -> KeyHash {
        // Both ends of the range in one comparison.
        KeyHash::new(if hash.wrapping_add(1) < 2 { 1 } else { hash })
    }

    /// The hash, with zero (which marks an empty cell) moved to one.
    pub(crate) const fn new(hash: u64) -> KeyHash {
        match NonZeroU64::new(hash) {
            Some(hash) => KeyHash(hash),
            None => KeyHash(NonZeroU64::MIN),
        }
    }

    /// The number. It means something only under the seed of the breaker that made it.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0.get()
    }
}

/// Checks a name of a group, route or dimension.
pub(crate) fn check_name(name: &str) -> Result<(), ScopeError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(ScopeError::new(format!("a name has 1 to {MAX_NAME} bytes")));
    }
    if !name.bytes().all(plain) {
        return Err(ScopeError::new("a name has letters, digits, `_`, `.` and `-` only"));
    }
    if name == "." || name == ".." {
        return Err(ScopeError::new("`.` and `..` are no names: tools would resolve them away"));
    }
    Ok(())
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:@,+*[]()".contains(&byte)
}

fn decode(text: &str) -> Result<Vec<u8>, ScopeError> {
    let mut label = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let pair = digit(bytes.next()).zip(digit(bytes.next()));
            let value = pair.and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
            let Some(value) = value else {
                return Err(ScopeError::new(
                    "`%` in a label is followed by two hexadecimal digits",
                ));
            };
            label.push(value);
        } else if is_plain(byte) {
            label.push(byte);
        } else {
            return Err(ScopeError::new(format!(
                "write byte {byte} of the label as `%{byte:02X}`"
            )));
        }
    }
    Ok(label)
}

/// In place of a label: the calls that lack the key. In a label it is encoded.
const MISSING: &str = "!";
/// Bytes in a name, at most.
const MAX_NAME: usize = 64;
/// Bytes in a decoded label, at most.
const MAX_LABEL: usize = 256;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{KeyHash, Level, Scope};

    /// Goal: every shape of path is read, levelled, and led back to its parent.
    #[test]
    fn paths_have_levels_and_parents() {
        let cases = [
            ("/", Level::Global, None),
            ("/pay", Level::Group, Some("/")),
            ("/pay/orders", Level::Route, Some("/pay")),
            ("/symbol=EXC", Level::Key, Some("/")),
            ("/pay/account=42", Level::Key, Some("/pay")),
            ("/pay/orders/account=42", Level::Key, Some("/pay/orders")),
            ("/pay/account=!", Level::Key, Some("/pay")),
        ];
        for (path, level, parent) in cases {
            let scope = Scope::parse(path).unwrap();
            assert_eq!(scope.as_str(), path);
            assert_eq!(scope.level(), level);
            assert_eq!(scope.parent().as_ref().map(Scope::as_str), parent);
        }
    }

    /// Goal: malformed paths are refused, each kind once.
    #[test]
    fn malformed_paths_are_refused() {
        let long = format!("/{}", "a".repeat(65));
        let cases = [
            "", "pay", "//", "/pay/", "/pay//x", "/a/b/c", "/.", "/..", "/a b", "/a/x=", "/=x",
            "/x=1/y", "/x=1/y=2", "/x=!/y=!", "/x=!1", "/x=%4", "/x=%zz", "/x=a b", "/x=a%", "/ä",
            "/x=a=b", &long,
        ];
        for path in cases {
            assert!(Scope::parse(path).is_err(), "{path:?}");
        }
    }

    /// Goal: who forgets that a key has a label, or ends a path with a slash, is told how it is written.
    #[test]
    fn what_is_wrong_in_a_path_is_told_with_its_mend() {
        let said = |path| Scope::parse(path).unwrap_err().to_string();
        assert!(said("/pay/orders/account").ends_with("a key is written `dimension=label`"));
        for path in ["/pay/orders/", "/pay//orders", "//"] {
            assert!(said(path).starts_with("a path has no empty name"), "{path}");
        }
    }

    /// Goal: any label survives the way into a path and back, and has one spelling only.
    #[test]
    fn labels_are_encoded_once() {
        let bytes: Vec<u8> = (0..=255).collect();
        let scope = Scope::parse("/pay").unwrap().key("account", &bytes).unwrap();
        assert_eq!(Scope::parse(scope.as_str()).unwrap(), scope);
        assert_eq!(scope.key_parts().unwrap(), ("account", bytes));
        assert_eq!(Scope::parse("/x=%41%2f").unwrap().as_str(), "/x=A%2F");
        assert!(Scope::global().key("x", &[b'a'; 257]).is_err());
        let missing = Scope::parse("/x=!").unwrap();
        assert_eq!(missing, Scope::global().missing_key("x").unwrap());
        assert_eq!(missing.key_parts(), Some(("x", Vec::new())));
        assert_eq!(Scope::global().key("x", b"!").unwrap().as_str(), "/x=%21");
    }

    /// Goal: whatever a hash function returns, it is neither that of an empty cell nor that of a missing key.
    #[test]
    fn no_hash_is_reserved() {
        for hash in [0, 1, u64::MAX - 1, u64::MAX] {
            let key = KeyHash::of(hash);
            assert!(key != KeyHash::MISSING && key.as_u64() != 0);
        }
    }
}
