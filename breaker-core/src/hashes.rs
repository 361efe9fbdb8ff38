//! The hashes that a breaker's seed picks: of labels, numbers and fields; they know no key, table or scope.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::scope::KeyHash;

/// 128 random bits for the keys' hashes. The embedder provides them: the core has no random
/// source, and whoever knows them can make keys collide.
#[derive(Clone, Copy)]
pub struct Seed(pub [u64; 2]);

/// All hashes of one seed. Labels, numbers and fields have secrets of their own, so that no choice of one says anything of another.
pub(crate) struct Hashes {
    seed: Seed,
    numbers: Numbers,
    labels: Labels,
}

/// A permutation of the numbers that the seed picks: two rounds of a secret laid over (exclusive or), a secret odd factor, and the high
/// bits brought down (the finalizer of MurmurHash3, keyed throughout). Each step can be undone, so no two numbers meet. It is no
/// cipher: it keeps those who do not know the seed, and see no hash, from choosing numbers that crowd one bucket.
struct Numbers([(u64, u64); 2]);

/// Labels of up to 64 bytes as numbers: a secret for the length, and the label's words, each times a secret of its own; all of
/// 128 bits, and of the sum the upper half counts (vector multiply-shift; Dietzfelbinger 1996; Thorup, "High Speed Hashing for
/// Integers and Strings", 2015). It is strongly universal: two labels that were chosen without sight of the secrets meet with a
/// probability of 2^-64, whatever they look like. The sums are then permuted as numbers are, which hides what they were.
///
/// SipHash, of which no such thing is proven, takes longer for an account's name; it serves labels beyond.
struct Labels {
    lengths: [u128; WORDS * WORD + 1],
    words: [u128; WORDS],
    last: u128,
}

impl Hashes {
    pub(crate) fn new(seed: Seed) -> Hashes {
        Hashes { seed, numbers: Numbers::new(seed), labels: Labels::new(seed) }
    }

    /// Of a label; of a number as people write it, as of the number.
    #[inline(always)]
    pub(crate) fn of_label(&self, label: &[u8]) -> KeyHash {
        match number(label).or_else(|| self.labels.sum(label)) {
            Some(number) => self.of_number(number),
            None => self.of_long(label),
        }
    }

    /// Of a label that is too long to have a secret for each word.
    #[cold]
    fn of_long(&self, label: &[u8]) -> KeyHash {
        let Seed([first, second]) = self.seed;
        self.of_number(SipHasher13::new_with_keys(first, second).hash(label))
    }

    #[inline(always)]
    pub(crate) fn of_number(&self, number: u64) -> KeyHash {
        KeyHash::of(self.numbers.permuted(number))
    }

    /// Of several fields at once, which keep their borders.
    pub(crate) fn of_fields(&self, fields: &[&[u8]]) -> KeyHash {
        let Seed([first, second]) = self.seed;
        let mut hasher = SipHasher13::new_with_keys(first, !second);
        for field in fields {
            hasher.write_usize(field.len());
            hasher.write(field);
        }
        KeyHash::of(hasher.finish())
    }
}

impl Numbers {
    fn new(Seed([first, second]): Seed) -> Numbers {
        let hasher = SipHasher13::new_with_keys(!first, second);
        let secret = |index: u8| hasher.hash(&[index]);
        Numbers([0, 2].map(|index| (secret(index), secret(index + 1) | 1)))
    }

    #[inline(always)]
    fn permuted(&self, number: u64) -> u64 {
        self.0.iter().fold(number, |number, (secret, factor)| {
            let spread = (number ^ secret).wrapping_mul(*factor);
            spread ^ spread >> 32
        })
    }
}

impl Labels {
    fn new(Seed([first, second]): Seed) -> Labels {
        let hasher = SipHasher13::new_with_keys(!first, !second);
        let mut index = 0_u8;
        let mut half = || {
            index += 1;
            u128::from(hasher.hash(&[index]))
        };
        let mut secret = || half() << 64 | half();
        let words = std::array::from_fn(|_| secret());
        let last = secret();
        Labels { words, last, lengths: std::array::from_fn(|_| secret()) }
    }

    /// A label's words are each eight bytes of it in turn, and its last eight bytes once more (all it has, if these are
    /// fewer): labels of one length that differ differ in a word. `None` if it is too long.
    #[inline(always)]
    fn sum(&self, label: &[u8]) -> Option<u64> {
        let times = |word: u64, secret: u128| u128::from(word).wrapping_mul(secret);
        let start = self.lengths.get(label.len())?.wrapping_add(times(last(label), self.last));
        let (whole, _) = label.as_chunks::<WORD>();
        let words = whole.iter().zip(&self.words);
        let words = words.map(|(word, secret)| times(u64::from_le_bytes(*word), *secret));
        Some(upper(words.fold(start, u128::wrapping_add)))
    }
}

/// The last eight bytes of a label, or all if it has fewer: of a known length no two such labels are the same word.
#[inline(always)]
fn last(label: &[u8]) -> u64 {
    if let Some(word) = label.last_chunk::<WORD>() {
        return u64::from_le_bytes(*word);
    }
    if let (Some(first), Some(last)) = (label.first_chunk::<4>(), label.last_chunk::<4>()) {
        return u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last));
    }
    label.iter().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

#[inline(always)]
fn upper(sum: u128) -> u64 {
    u64::try_from(sum >> 64).unwrap_or(u64::MAX)
}

/// The number that a label is, if it is one as people write it.
#[inline(always)]
fn number(label: &[u8]) -> Option<u64> {
    let (&first, rest) = label.split_first()?;
    if !first.is_ascii_digit() || rest.len() >= 20 || (first == b'0' && !rest.is_empty()) {
        return None;
    }
    digits(label)
}

fn digits(label: &[u8]) -> Option<u64> {
    label.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Bytes of a label's word.
const WORD: usize = 8;
/// Whole words of a label that have a secret each.
const WORDS: usize = 8;

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(..)")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashSet;

    use super::{Hashes, Labels, Seed, last};

    /// Goal: labels that differ in any one byte, in length, or by zeros at their end have different hashes, at every length
    /// around the borders of words; and the same label has always the same.
    #[test]
    fn labels_that_differ_differ_in_their_hashes() {
        let hashes = Hashes::new(Seed([7, 8]));
        let mut seen = HashSet::new();
        let mut labels = 0;
        for length in 0..=80_usize {
            let plain = vec![b'x'; length];
            let changed = (0..length).flat_map(|at| [0, 1, 255].map(|byte| (at, byte)));
            let mut all = vec![plain.clone()];
            all.extend(changed.map(|(at, byte)| {
                let mut label = plain.clone();
                label[at] = byte;
                label
            }));
            for label in all {
                labels += 1;
                assert_eq!(hashes.of_label(&label), hashes.of_label(&label.clone()));
                seen.insert(hashes.of_label(&label));
            }
        }
        assert_eq!(seen.len(), labels);
    }

    /// Goal: of a known length the last word and the whole words tell labels apart; below eight bytes the last word alone does.
    #[test]
    fn short_labels_are_told_apart_by_their_last_word() {
        let mut seen = HashSet::new();
        for length in 1..8_usize {
            for at in 0..length {
                for byte in 1..=255 {
                    let mut label = vec![0; length];
                    label[at] = byte;
                    assert!(seen.insert((length, last(&label))), "{label:?}");
                }
            }
        }
    }

    /// Goal: the sum is the one of the formula: each word times its own secret, of which a wrong order or a lost carry would be seen.
    #[test]
    fn the_sum_is_the_formula() {
        let labels = Labels::new(Seed([1, 2]));
        let label = b"acct-00000000000000000042";
        let word =
            |at: usize| u128::from(u64::from_le_bytes(label[at..at + 8].try_into().unwrap()));
        let parts = [
            labels.lengths[25],
            labels.words[0].wrapping_mul(word(0)),
            labels.words[1].wrapping_mul(word(8)),
            labels.words[2].wrapping_mul(word(16)),
            labels.last.wrapping_mul(word(17)),
        ];
        let sum = parts.into_iter().fold(0, u128::wrapping_add);
        assert_eq!(labels.sum(label).map(u128::from), Some(sum >> 64));
    }

    /// Goal: nobody can tell from one hash what others of the same seed or of another are: two seeds that differ in a bit agree on no label.
    #[test]
    fn seeds_do_not_agree() {
        let (one, other) = (Hashes::new(Seed([7, 8])), Hashes::new(Seed([7, 9])));
        for number in 0..1_000 {
            let label = format!("account-{number}");
            assert_ne!(one.of_label(label.as_bytes()), other.of_label(label.as_bytes()));
        }
    }

    /// Goal: 2,000 labels of one shape spread over 64 buckets as chance would have it, whatever part of them counts up, for
    /// each of many seeds: the fullest bucket holds no more than chance gives.
    #[test]
    fn labels_that_count_up_spread() {
        for seed in 0..50 {
            let hashes = Hashes::new(Seed([seed, 3]));
            for shape in 0..3 {
                let mut buckets = [0_u32; 64];
                for number in 0..2_000_u64 {
                    let label = match shape {
                        0 => format!("acct-{number:020}"),
                        1 => format!("{number:x}-desk-a-long-name-of-one"),
                        _ => format!("x{number}"),
                    };
                    let at = hashes.of_label(label.as_bytes()).as_u64() >> 58;
                    buckets[usize::try_from(at).unwrap()] += 1;
                }
                // The mean is 31.25, its deviation 5.6: beyond nine deviations lies less than one in 10^15.
                assert!(buckets.iter().all(|&many| many < 85), "{seed} {shape} {buckets:?}");
            }
        }
    }
}
