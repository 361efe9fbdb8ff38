//! Fields of a form: whatever the text, what is found is UTF-8 and stands there under that name once, and no order of the fields
//! changes what is found.
#![no_main]

use breaker_proxy::inspect::form::find;
use breaker_proxy::inspect::text::Room;
use libfuzzer_sys::fuzz_target;

fn read(text: &[u8], names: &[Box<str>]) -> Option<Vec<Option<Vec<u8>>>> {
    let found = find(text, names).ok()?;
    let values = found.iter().take(names.len()).map(|value| match value {
        None => Some(None),
        Some(value) => {
            let mut room = Room::<4096>::default();
            let bytes = value.read(&mut room).ok()?;
            let bytes = bytes.map(<[u8]>::to_vec);
            assert!(bytes.as_ref().is_none_or(|bytes| std::str::from_utf8(bytes).is_ok()));
            Some(bytes)
        }
    });
    values.collect()
}

fuzz_target!(|text: &[u8]| {
    let names: Vec<Box<str>> = ["a", "a_b", "filter[x]", "é"].map(Into::into).into();
    let found = read(text, &names);
    let mut fields: Vec<&[u8]> = text.split(|byte| *byte == b'&').collect();
    fields.reverse();
    assert_eq!(found, read(&fields.join(&b'&'), &names), "the order of the fields says nothing");
    if let Some(found) = found {
        // Said once more, every field that was found has two meanings.
        for (name, value) in names.iter().zip(found) {
            if value.is_some() {
                let twice = [text, b"&", name.as_bytes(), b"=x"].concat();
                assert!(find(&twice, &names).is_err(), "{name} stands there twice");
            }
        }
    }
});
