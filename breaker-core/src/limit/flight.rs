//! At most N at once: a count, an amount, an answer; it holds no atomic and reads no clock.
//!
//! The word is what is in flight. Only the end of a call gives back what it took: time heals nothing, and no
//! wait is known to suffice.

/// A count, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InFlight {
    count: u64,
}

impl InFlight {
    /// At most `count` at once; the error is a problem and a hint.
    pub(crate) fn new(count: u64) -> Result<InFlight, (String, String)> {
        if count == 0 {
            let hint = "use a count of at least 1, or kill the scope";
            return Err(("0 in flight can never pass".to_owned(), hint.to_owned()));
        }
        // The largest amount stands for one that is not known: it never passes.
        Ok(InFlight { count: count.min(u64::MAX - 1) })
    }

    /// What is in flight with this amount more, if it may pass.
    #[inline]
    pub(crate) const fn take(self, used: u64, amount: u64) -> Option<u64> {
        match used.checked_add(amount) {
            Some(after) if after <= self.count => Some(after),
            _ => None,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::InFlight;

    /// Goal: up to the count passes, and nothing overflows.
    #[test]
    fn up_to_the_count_passes() {
        assert!(InFlight::new(0).is_err());
        let flight = InFlight::new(3).unwrap();
        assert_eq!([1, 3, 4].map(|amount| flight.take(0, amount)), [Some(1), Some(3), None]);
        assert_eq!([0, 1].map(|amount| flight.take(3, amount)), [Some(3), None]);
        assert_eq!(InFlight::new(u64::MAX).unwrap().take(u64::MAX, 1), None);
    }
}
