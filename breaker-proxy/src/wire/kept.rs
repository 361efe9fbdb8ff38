//! The head of a request in memory of its own, for one that is decided only when some of its body has come; it changes nothing of it.

use super::asked::{Asked, Fields, Line, Lines};
use hyper::Method;

/// A head, copied.
#[derive(Clone, Debug)]
pub struct Kept {
    method: Method,
    http2: bool,
    http10: bool,
    /// Authority, path, query, then names and values.
    text: Vec<u8>,
    authority: Option<(usize, usize)>,
    path: (usize, usize),
    query: Option<(usize, usize)>,
    lines: Vec<Line>,
}

impl Kept {
    /// A copy of a head.
    #[must_use]
    pub fn of(head: &Asked<'_>) -> Kept {
        let mut text = Vec::new();
        let mut push = |piece: &[u8]| {
            let from = text.len();
            text.extend_from_slice(piece);
            (from, text.len())
        };
        let authority = head.authority.map(|authority| push(authority.as_bytes()));
        let path = push(head.path.as_bytes());
        let query = head.query.map(|query| push(query.as_bytes()));
        let line =
            |(name, value): (&str, &[u8])| Line { name: push(name.as_bytes()), value: push(value) };
        let lines = head.fields.iter().map(line).collect();
        let (method, http2, http10) = (head.method.clone(), head.http2, head.http10);
        Kept { method, http2, http10, text, authority, path, query, lines }
    }

    /// The head, as it was.
    #[must_use]
    pub fn asked(&self) -> Asked<'_> {
        Asked {
            method: self.method.clone(),
            http2: self.http2,
            http10: self.http10,
            authority: self.authority.map(|place| self.piece(place)),
            path: self.piece(self.path),
            query: self.query.map(|place| self.piece(place)),
            fields: Fields::Lines(Lines { text: &self.text, lines: &self.lines }),
        }
    }

    fn piece(&self, (from, to): (usize, usize)) -> &str {
        // It was text when it was copied.
        self.text
            .get(from..to)
            .and_then(|piece| std::str::from_utf8(piece).ok())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::{Asked, Kept};
    use hyper::Request;

    /// Goal: a copy says what the head said, field by field and in their order, also what is empty or no text.
    #[test]
    fn a_copy_says_the_same() {
        let odd = hyper::header::HeaderValue::from_bytes(b"\xff").unwrap();
        for (target, version) in [
            ("/a/b?x=1&y=", hyper::Version::HTTP_11),
            ("/a?", hyper::Version::HTTP_11),
            ("http://host:8080/é?x", hyper::Version::HTTP_2),
        ] {
            let request = Request::builder().method("PATCH").uri(target).version(version);
            let request = request.header("x-b", "1").header("x-a", "").header("x-b", "2");
            let (head, ()) = request.header("x-c", odd.clone()).body(()).unwrap().into_parts();
            let asked = Asked::of(&head);
            let kept = Kept::of(&asked);
            let copy = kept.asked();
            assert_eq!((copy.method, copy.http2), (asked.method, asked.http2));
            assert_eq!(
                (copy.authority, copy.path, copy.query),
                (asked.authority, asked.path, asked.query)
            );
            assert!(copy.fields.iter().eq(asked.fields.iter()));
        }
    }
}
