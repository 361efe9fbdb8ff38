//! Bearer tokens: no field makes it panic, and a scheme that is not `Bearer` never has claims.
#![no_main]

use breaker_proxy::inspect::json::{Pointer, find};
use breaker_proxy::inspect::token::payload;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|field: &[u8]| {
    if let Ok(Some(claims)) = payload(field) {
        assert!(field.trim_ascii().get(..6).is_some_and(|word| word.eq_ignore_ascii_case(b"bearer")));
        let _ = find(&claims, &[Pointer::member("sub")]);
    }
    let whole = [b"Bearer a.", field, b".b"].concat();
    let _ = payload(&whole);
});
