//! Quantities as they are written, in whole units, exactly; no floating point ever touches them.
//!
//! What is written is a number as JSON has it (RFC 8259, 6): `12`, `0.5`, `1.25e3`. No sign but that of an exponent, no leading
//! zero, no blank, no separator: what is not in that form is refused. A quantity that is finer than the unit is rounded up, so
//! that what is charged is never less than what is asked for; trailing zeros are no fineness.

use super::json::number_length;
use std::fmt;

/// The most decimal places of a unit: `scale` 9 counts in billionths.
pub const MAX_SCALE: u8 = 9;

/// The largest quantity; the number beyond it means that the weight is not known.
pub const MAX_UNITS: u64 = u64::MAX - 1;

/// The largest exponent that is read, either way.
const MAX_EXPONENT: i32 = 99;

/// A number that is not negative: `digits` × 10^`exponent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decimal {
    digits: u128,
    exponent: i32,
}

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecimalError {
    /// It is no number.
    NotANumber,
    /// It is less than nothing, or `-0`.
    Negative,
    /// It has more digits than can be held exactly (38), an exponent beyond 99, or does not fit a 64-bit number of units.
    TooLarge,
}

impl fmt::Display for DecimalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DecimalError::NotANumber => "is not a number",
            DecimalError::Negative => "is negative",
            DecimalError::TooLarge => "is too large to be counted",
        })
    }
}

impl std::error::Error for DecimalError {}

impl Decimal {
    /// Reads a number, all of `text`.
    ///
    /// # Errors
    /// What is no number, negative, or beyond what can be held exactly.
    pub fn parse(text: &[u8]) -> Result<Decimal, DecimalError> {
        if number_length(text) != Some(text.len()) {
            return Err(DecimalError::NotANumber);
        }
        if text.starts_with(b"-") {
            return Err(DecimalError::Negative);
        }
        let mark = text.iter().position(|byte| matches!(byte, b'e' | b'E'));
        let (plain, exponent) =
            text.split_at_checked(mark.unwrap_or(text.len())).unwrap_or((text, b""));
        let mut number = Decimal { digits: 0, exponent: exponent_of(exponent)? };
        // Zeros are held back until a digit follows them: at the end of a fraction they say nothing.
        let (mut zeros, mut in_fraction) = (0_u32, false);
        for &byte in plain {
            match byte {
                b'.' => {
                    // Those before the point do say something, and so do not wait any longer.
                    number.shift(zeros, 0)?;
                    (zeros, in_fraction) = (0, true);
                    continue;
                }
                b'0' => zeros = zeros.saturating_add(1),
                digit => {
                    number.shift(zeros.saturating_add(1), digit.saturating_sub(b'0'))?;
                    if in_fraction {
                        let places = i32::try_from(zeros.saturating_add(1)).unwrap_or(i32::MAX);
                        number.exponent = number.exponent.saturating_sub(places);
                    }
                    zeros = 0;
                }
            }
        }
        if !in_fraction {
            number.shift(zeros, 0)?;
        }
        Ok(number)
    }

    /// Appends `places` digits, all of them zeros but the last.
    fn shift(&mut self, places: u32, last: u8) -> Result<(), DecimalError> {
        if self.digits == 0 {
            self.digits = u128::from(last);
            return Ok(());
        }
        let shifted = 10_u128.checked_pow(places).and_then(|ten| self.digits.checked_mul(ten));
        let shifted = shifted.and_then(|shifted| shifted.checked_add(u128::from(last)));
        self.digits = shifted.ok_or(DecimalError::TooLarge)?;
        Ok(())
    }

    /// The product, exactly.
    ///
    /// # Errors
    /// One that cannot be held.
    pub fn times(self, other: Decimal) -> Result<Decimal, DecimalError> {
        let digits = self.digits.checked_mul(other.digits).ok_or(DecimalError::TooLarge)?;
        Ok(Decimal { digits, exponent: self.exponent.saturating_add(other.exponent) })
    }

    /// How many units of 10^-`scale` it is, rounded up: with `scale` 2, 1.5 is 150 and 0.001 is 1.
    ///
    /// # Errors
    /// More than [`MAX_UNITS`].
    pub fn units(self, scale: u8) -> Result<u64, DecimalError> {
        if self.digits == 0 {
            return Ok(0);
        }
        let places = self.exponent.saturating_add(i32::from(scale));
        let ten = 10_u128.checked_pow(places.unsigned_abs());
        let units = if places < 0 {
            // A divisor beyond all numbers leaves less than one.
            ten.map_or(Some(1), |ten| Some(self.digits.div_ceil(ten)))
        } else {
            ten.and_then(|ten| self.digits.checked_mul(ten))
        };
        let units = units.and_then(|units| u64::try_from(units).ok());
        units.filter(|units| *units <= MAX_UNITS).ok_or(DecimalError::TooLarge)
    }
}

/// The exponent with its `e`, or none.
fn exponent_of(text: &[u8]) -> Result<i32, DecimalError> {
    let mut exponent = 0_i32;
    for digit in text.iter().filter(|byte| byte.is_ascii_digit()) {
        let digit = i32::from(digit.saturating_sub(b'0'));
        exponent = exponent.saturating_mul(10).saturating_add(digit);
        if exponent > MAX_EXPONENT {
            return Err(DecimalError::TooLarge);
        }
    }
    Ok(if text.contains(&b'-') { exponent.saturating_neg() } else { exponent })
}

#[cfg(test)]
mod tests {
    use super::{Decimal, DecimalError, MAX_UNITS};
    use proptest::prelude::{ProptestConfig, proptest};

    fn units(text: &str, scale: u8) -> Result<u64, DecimalError> {
        Decimal::parse(text.as_bytes())?.units(scale)
    }

    fn product(one: &str, other: &str, scale: u8) -> Result<u64, DecimalError> {
        Decimal::parse(one.as_bytes())?.times(Decimal::parse(other.as_bytes())?)?.units(scale)
    }

    /// Goal: one value has one number of units, however it is written, and a rest counts as a whole unit.
    #[test]
    fn quantities_are_exact_and_rounded_up() {
        for (text, scale, expected) in [
            ("0", 0, 0),
            ("0.000", 2, 0),
            ("0e99", 9, 0),
            ("1", 0, 1),
            ("100", 0, 100),
            ("1e2", 0, 100),
            ("1E+2", 0, 100),
            ("1.00e2", 0, 100),
            ("12000e-3", 0, 12),
            ("1.5", 0, 2),
            ("1.5", 2, 150),
            ("1.50000000000000000000000000000000000000000000000000000", 2, 150),
            ("0.1", 2, 10),
            ("0.10000000000000001", 2, 11),
            ("0.001", 2, 1),
            ("1e-99", 9, 1),
            ("10.10", 1, 101),
            ("100.01", 2, 10_001),
            ("1050.00", 0, 1050),
            ("18446744073709551614", 0, MAX_UNITS),
            ("1844674407370955161.4", 1, MAX_UNITS),
            ("18446744073.709551614", 9, MAX_UNITS),
        ] {
            assert_eq!(units(text, scale), Ok(expected), "{text} at {scale}");
        }
    }

    /// Goal: what is no number, negative or too large is refused; nothing wraps.
    #[test]
    fn what_cannot_be_counted_is_refused() {
        use DecimalError::{Negative, NotANumber, TooLarge};
        for (text, scale, why) in [
            ("", 0, NotANumber),
            (" 1", 0, NotANumber),
            ("1 ", 0, NotANumber),
            ("+1", 0, NotANumber),
            ("01", 0, NotANumber),
            (".5", 0, NotANumber),
            ("5.", 0, NotANumber),
            ("1,5", 0, NotANumber),
            ("1_000", 0, NotANumber),
            ("0x10", 0, NotANumber),
            ("NaN", 0, NotANumber),
            ("Infinity", 0, NotANumber),
            ("1e", 0, NotANumber),
            ("1e5x", 0, NotANumber),
            ("١", 0, NotANumber),
            ("-", 0, NotANumber),
            ("-1", 0, Negative),
            ("-0", 0, Negative),
            ("-0.0e1", 0, Negative),
            ("18446744073709551615", 0, TooLarge),
            ("18446744073709551616", 0, TooLarge),
            ("1844674407370955161.5", 1, TooLarge),
            ("1e20", 0, TooLarge),
            ("1e99", 9, TooLarge),
            ("1e100", 0, TooLarge),
            ("1e-100", 0, TooLarge),
            ("1e99999999999999999999", 0, TooLarge),
            ("999999999999999999999999999999999999999", 0, TooLarge),
            ("0.999999999999999999999999999999999999999", 0, TooLarge),
        ] {
            assert_eq!(units(text, scale), Err(why), "{text} at {scale}");
        }
    }

    /// Goal: a product is rounded once, at its end, and refused where it overflows.
    #[test]
    fn a_product_is_exact() {
        for (one, other, scale, expected) in [
            ("3", "0.335", 2, Ok(101)),
            ("10", "123.45678", 2, Ok(123_457)),
            ("0", "1e30", 0, Ok(0)),
            ("0.5", "0.5", 0, Ok(1)),
            ("1e-60", "1e60", 0, Ok(1)),
            ("4294967296", "4294967296", 0, Err(DecimalError::TooLarge)),
            ("99999999999999999999", "99999999999999999999", 0, Err(DecimalError::TooLarge)),
            ("4294967295", "4294967297", 0, Err(DecimalError::TooLarge)),
            ("4294967295", "4294967296", 0, Ok(18_446_744_069_414_584_320)),
        ] {
            assert_eq!(product(one, other, scale), expected, "{one} × {other} at {scale}");
            assert_eq!(product(other, one, scale), expected, "{other} × {one} at {scale}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        /// Goal: units agree with the same number written out and cut at its point, and a rest is rounded up.
        #[test]
        fn units_agree_with_long_hand(whole in 0_u64..1_000_000_000, fraction in "[0-9]{0,12}", scale in 0_u8..10) {
            let text = if fraction.is_empty() { whole.to_string() } else { format!("{whole}.{fraction}") };
            let mut padded = fraction.clone();
            while padded.len() < usize::from(scale) {
                padded.push('0');
            }
            let (kept, rest) = padded.split_at(usize::from(scale));
            let floor: u64 = format!("{whole}{kept}").parse().unwrap();
            let expected = floor + u64::from(rest.bytes().any(|digit| digit != b'0'));
            assert_eq!(units(&text, scale), Ok(expected), "{text} at {scale}");
            let moved = format!("{whole}{fraction}e-{}", fraction.len());
            if let Ok(number) = Decimal::parse(moved.as_bytes()) {
                assert_eq!(number.units(scale), Ok(expected), "{moved} at {scale}");
            }
        }

        /// Goal: a product of whole numbers is that of 128-bit arithmetic, or refused.
        #[test]
        fn products_agree_with_wide_arithmetic(one: u64, other: u64) {
            let wide = u128::from(one) * u128::from(other);
            let expected = u64::try_from(wide).ok().filter(|units| *units <= MAX_UNITS);
            assert_eq!(product(&one.to_string(), &other.to_string(), 0).ok(), expected);
        }

        /// Goal: no bytes make it panic.
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9eE.+-]{0,50}|\\PC{0,20}") {
            if let Ok(number) = Decimal::parse(text.as_bytes()) {
                let _ = (number.units(9), number.times(number));
            }
        }
    }
}
