//! Looks into what a client wrote, for the few values that are asked for; it knows no request, no rule and no clock.
//!
//! Whatever two readers could take for different things is an error here: a name that stands twice, or once more in another
//! spelling, an encoding that is broken, a number that is none. All of it works on borrowed bytes, with bounds on depth and
//! length, and without allocation.

pub mod certificate;
pub mod decimal;
pub mod events;
pub mod form;
pub mod json;
pub mod prefix;
pub mod text;
pub mod token;

/// The most values that are looked for at once: four keys, and a weight with its factor.
pub const MAX_WANTED: usize = 8;

/// A set of wanted values, one bit for each.
type Set = u8;

/// The bits of a set, from the lowest.
fn bits(set: Set) -> impl Iterator<Item = usize> {
    (0..MAX_WANTED).filter(move |bit| set >> bit & 1 == 1)
}

/// The set of the first `count` values.
fn first(count: usize) -> Set {
    (0..count.min(MAX_WANTED)).fold(0, |set, bit| set | 1 << bit)
}
