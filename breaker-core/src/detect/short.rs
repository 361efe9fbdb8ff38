//! A count or a bound in sixteen bits, pure: five of exponent, eleven of mantissa; it knows no rule.
//!
//! Whole numbers up to 4 095 are exact; above, one part in 2 048. Four of them fill one atomic word.

use crate::detect::{narrow, wide};

/// A number from 0, and 1/16, to about 134 million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Short(u16);

impl Short {
    /// As a bound: none at all.
    pub(crate) const NONE: Short = Short(u16::MAX);
    /// The largest number.
    pub(crate) const MOST: Short = Short(u16::MAX - 1);

    /// The largest short that is not above `value`; zero for what is no number.
    pub(crate) fn down(value: f64) -> Short {
        if value.is_nan() || value < LEAST {
            return Short(0);
        }
        if value >= Short::MOST.value() {
            return Short::MOST;
        }
        // In units of 1/32 768 every short is a whole number: mantissa of 12 bits, shifted.
        let units = narrow(value * 32_768.0).max(1 << 11);
        let shift = (63 - units.leading_zeros()).saturating_sub(11);
        let mantissa = (units >> shift) & 0x7ff;
        Short(u16::try_from((u64::from(shift) + 1) << 11 | mantissa).unwrap_or(u16::MAX - 1))
    }

    /// The smallest short that is not below `value`, up to the largest of all.
    pub(crate) fn up(value: f64) -> Short {
        let short = Short::down(value);
        if short.value() >= value || short >= Short::MOST || value.is_nan() {
            return short;
        }
        if short.0 == 0 { Short(1 << 11) } else { Short(short.0 + 1) }
    }

    /// The nearest short.
    pub(crate) fn near(value: f64) -> Short {
        let (below, above) = (Short::down(value), Short::up(value));
        if above.value() - value < value - below.value() { above } else { below }
    }

    /// The number.
    pub(crate) fn value(self) -> f64 {
        if self.0 < 1 << 11 {
            return 0.0;
        }
        wide(u64::from(self.0 & 0x7ff | 0x800) << ((self.0 >> 11) - 1)) / 32_768.0
    }

    /// The whole part; for [`Short::NONE`] more than any count.
    pub(crate) const fn floor(self) -> u64 {
        if self.0 == u16::MAX {
            return u64::MAX;
        }
        if self.0 < 1 << 11 {
            return 0;
        }
        ((self.0 as u64 & 0x7ff | 0x800) << ((self.0 >> 11) - 1)) >> 15
    }

    /// Four in one word, the first lowest.
    pub(crate) const fn pack(shorts: [Short; 4]) -> u64 {
        let [a, b, c, d] = shorts;
        a.0 as u64 | (b.0 as u64) << 16 | (c.0 as u64) << 32 | (d.0 as u64) << 48
    }

    /// The four of a word.
    pub(crate) const fn unpack(word: u64) -> [Short; 4] {
        let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
        [
            Short(u16::from_le_bytes([a, b])),
            Short(u16::from_le_bytes([c, d])),
            Short(u16::from_le_bytes([e, f])),
            Short(u16::from_le_bytes([g, h])),
        ]
    }
}

/// The smallest number above zero.
const LEAST: f64 = 0.062_5;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Short;
    use proptest::prelude::*;

    /// Goal: small whole numbers are exact, and order is kept.
    #[test]
    fn small_numbers_are_exact() {
        for number in 0..=4_095_u32 {
            let short = Short::down(f64::from(number));
            assert_eq!((short.value(), short.floor()), (f64::from(number), u64::from(number)));
            assert_eq!(Short::up(f64::from(number)), short);
        }
        assert_eq!(Short::NONE.floor(), u64::MAX);
        assert_eq!(
            Short::unpack(Short::pack([Short(1), Short(2), Short(3), Short(4)])),
            [Short(1), Short(2), Short(3), Short(4)]
        );
    }

    /// Goal: what is no number, or no count, has a place too.
    #[test]
    fn odd_numbers_have_a_place() {
        for odd in [f64::NAN, -1.0, f64::NEG_INFINITY, 0.01, -0.0] {
            assert_eq!(Short::down(odd).value(), 0.0);
        }
        assert_eq!(Short::down(f64::INFINITY), Short::MOST);
        assert_eq!(Short::up(f64::INFINITY), Short::MOST);
        assert_eq!(Short::up(0.01).value(), 0.062_5);
        assert_eq!([0.0, -1.0, f64::NAN].map(Short::up), [Short::default(); 3]);
    }

    proptest! {
        /// Goal: down is never above, up never below, both within one part in 2 048; all round trips are exact.
        #[test]
        fn rounding_keeps_its_side(value in 0.07_f64..130_000_000.0, bits: u16) {
            let (down, up) = (Short::down(value).value(), Short::up(value).value());
            prop_assert!(down <= value && value <= up);
            prop_assert!(up - down <= value / 2_047.0);
            if (1 << 11..u16::MAX).contains(&bits) {
                prop_assert_eq!(Short::down(Short(bits).value()), Short(bits));
                prop_assert_eq!(Short::up(Short(bits).value()), Short(bits));
            }
        }
    }
}
