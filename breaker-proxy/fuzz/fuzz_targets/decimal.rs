//! Quantities: what is read is near what a float makes of it, and never less.
#![no_main]

use breaker_proxy::inspect::decimal::Decimal;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Ok(number) = Decimal::parse(text) else { return };
    let float: f64 = std::str::from_utf8(text).expect("ASCII").parse().expect("a number");
    for scale in [0, 2, 9] {
        let expected = float * 10_f64.powi(i32::from(scale));
        match number.units(scale) {
            Ok(units) => {
                let units = units as f64;
                assert!(units >= expected * (1.0 - 1e-12), "{units} and {expected}");
                assert!(units <= expected * (1.0 + 1e-12) + 1.0, "{units} and {expected}");
            }
            Err(_) => assert!(expected > 1.8e19, "{expected}"),
        }
    }
    if let Ok(square) = number.times(number) {
        let _ = square.units(9);
    }
});
