//! The beginning of a body, held until it was looked into and then handed on as it came; it reads nothing by itself and knows no
//! time.
//!
//! How it is used: [`Prefix::new`] with the head; while [`Prefix::wants`] says so, [`Prefix::push`] what comes; [`Prefix::end`] at the
//! body's end; then [`Prefix::seen`] once, and [`Prefix::into_held`] goes to the upstream before whatever is still to come.

use bytes::{Bytes, BytesMut};

/// What is known of a body when it is decided about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// Nobody asked for it.
    Nothing,
    /// All of it.
    Whole(&'a [u8]),
    /// It is longer than is looked into.
    TooLong,
}

/// A body up to where it is looked into.
#[derive(Debug)]
pub struct Prefix {
    /// All of it so far, in one piece once there are two.
    held: BytesMut,
    /// The first piece, as long as it is the only one: then nothing is copied.
    first: Bytes,
    most: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unasked,
    Coming,
    Whole,
    TooLong,
}

impl Prefix {
    /// For a body that is looked into up to `most` bytes, if that is `wanted` at all. `length` is what the head says of it: one that is
    /// longer is not waited for.
    #[must_use]
    pub fn new(wanted: bool, length: Option<u64>, most: usize) -> Prefix {
        let fits =
            length.is_none_or(|length| usize::try_from(length).is_ok_and(|length| length <= most));
        let state = match (wanted, length, fits) {
            (false, ..) => State::Unasked,
            (true, Some(0), _) => State::Whole,
            (true, _, false) => State::TooLong,
            (true, ..) => State::Coming,
        };
        Prefix { held: BytesMut::new(), first: Bytes::new(), most, state }
    }

    /// Whether more has to come before it can be decided.
    #[must_use]
    pub fn wants(&self) -> bool {
        self.state == State::Coming
    }

    /// The bytes that it holds, for whoever bounds the memory of all.
    #[must_use]
    pub fn held(&self) -> usize {
        self.first.len().max(self.held.len())
    }

    /// Takes the next piece, all of it in every case: the piece that goes beyond the bound is held too.
    pub fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        if self.held() == 0 {
            self.first = piece;
        } else {
            if self.held.is_empty() {
                self.held.reserve(
                    self.most.min(self.first.len().saturating_add(piece.len()).saturating_mul(2)),
                );
                self.held.extend_from_slice(&std::mem::take(&mut self.first));
            }
            self.held.extend_from_slice(&piece);
        }
        if self.wants() && self.held() > self.most {
            self.state = State::TooLong;
        }
    }

    /// The body came to its good end.
    pub fn end(&mut self) {
        if self.wants() {
            self.state = State::Whole;
        }
    }

    /// What there is to look into. A body that has not come to its end, nor beyond the bound, is none yet: ask [`Prefix::wants`] first.
    #[must_use]
    pub fn seen(&self) -> Seen<'_> {
        debug_assert!(!self.wants(), "it is decided about a body that is still to come");
        match self.state {
            State::Unasked => Seen::Nothing,
            State::Whole => {
                Seen::Whole(if self.held.is_empty() { &self.first } else { &self.held })
            }
            State::Coming | State::TooLong => Seen::TooLong,
        }
    }

    /// All that came, in its order, to be sent before the rest. Empty if nothing did.
    #[must_use]
    pub fn into_held(self) -> Bytes {
        if self.held.is_empty() { self.first } else { self.held.freeze() }
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Prefix, Seen};
    use proptest::prelude::{ProptestConfig, any, prop, proptest};

    /// Goal: a body that says it is longer is not waited for, one of no length is whole at once, and an unasked one is nothing.
    #[test]
    fn what_the_head_says_decides_first() {
        for (wanted, length, wants, seen) in [
            (false, Some(5), false, Seen::Nothing),
            (false, None, false, Seen::Nothing),
            (true, Some(0), false, Seen::Whole(b"")),
            (true, Some(9), false, Seen::TooLong),
            (true, Some(u64::MAX), false, Seen::TooLong),
        ] {
            let prefix = Prefix::new(wanted, length, 8);
            assert_eq!((prefix.wants(), prefix.seen()), (wants, seen), "{wanted} {length:?}");
        }
        assert!(Prefix::new(true, Some(8), 8).wants() && Prefix::new(true, None, 8).wants());
    }

    /// Goal: one piece is handed on as it is, without a copy.
    #[test]
    fn one_piece_is_not_copied() {
        let piece = Bytes::from(vec![7; 100]);
        let mut prefix = Prefix::new(true, None, 100);
        prefix.push(piece.clone());
        prefix.end();
        assert_eq!(prefix.seen(), Seen::Whole(&piece));
        assert_eq!(prefix.into_held().as_ptr(), piece.as_ptr());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Goal: whatever the pieces, what is handed on is what came, byte for byte; it is whole exactly if it fits, and no more is
        /// asked for than one piece beyond the bound.
        #[test]
        fn what_came_is_handed_on(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..8),
            most in 0_usize..24,
            told in any::<bool>(),
        ) {
            let all: Vec<u8> = pieces.concat();
            let length = told.then_some(all.len() as u64);
            let mut prefix = Prefix::new(true, length, most);
            let mut taken = 0;
            for piece in &pieces {
                if !prefix.wants() {
                    break;
                }
                assert!(taken <= most);
                taken += piece.len();
                prefix.push(Bytes::copy_from_slice(piece));
                assert_eq!(prefix.held(), taken);
            }
            prefix.end();
            let expected = if all.len() <= most { Seen::Whole(&all) } else { Seen::TooLong };
            assert_eq!(prefix.seen(), expected);
            let held = prefix.into_held();
            assert_eq!(&held[..], &all[..taken]);
        }
    }
}
