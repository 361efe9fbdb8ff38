//! Keys in an order that no prefetcher guesses, and what lives as long as the run; it decides nothing.

/// Leaves it in place for the rest of the run, so that cases can share it.
pub(crate) fn still<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// So many different numbers, in a shuffled order.
pub(crate) fn numbers(count: usize) -> &'static [u64] {
    let mut keys: Vec<u64> = (0..).map(spread).take(count).collect();
    let mut state = 88_172_645_463_325_252_u64;
    for last in (1..keys.len()).rev() {
        // Xorshift (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let span = u64::try_from(last + 1).unwrap_or(1);
        keys.swap(last, usize::try_from(state % span).unwrap_or(0));
    }
    Vec::leak(keys)
}

/// So many different labels of 25 bytes, in a shuffled order.
pub(crate) fn labels(count: usize) -> &'static [String] {
    let all: Vec<String> =
        numbers(count).iter().map(|number| format!("acct-{number:020}")).collect();
    assert!(all.iter().all(|label| label.len() == 25));
    Vec::leak(all)
}

/// Turns of most keyed cases before each sample: once through their 100,000 keys.
pub(crate) const WARM: usize = 300_000;

/// Different for each number (an odd factor), and all over the range.
const fn spread(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
