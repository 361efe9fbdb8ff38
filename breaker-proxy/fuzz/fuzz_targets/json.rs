//! The one pass over a document against a tree built by `serde_json`: both take it or neither, and both find the same.
#![no_main]

use breaker_proxy::inspect::json::{JsonError, Pointer, Value, find};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

const TEXTS: [&str; 6] = ["/a", "/a/b", "/a/0", "/0/a", "/b/1/a", "/"];

static WANTED: LazyLock<Vec<Pointer>> =
    LazyLock::new(|| TEXTS.iter().map(|text| Pointer::parse(text).expect("a pointer")).collect());

fuzz_target!(|document: &[u8]| {
    let found = find(document, &WANTED);
    let tree = serde_json::from_slice::<serde_json::Value>(document);
    match (found, tree) {
        (Ok(found), Ok(tree)) => {
            for (text, found) in TEXTS.iter().zip(found) {
                assert!(is_same(tree.pointer(text), found), "{text}: {found:?}");
            }
        }
        // A number that no float holds is a number all the same.
        (Ok(_), Err(why)) => assert!(why.to_string().contains("out of range"), "{why}"),
        (Err(JsonError::NotText | JsonError::Syntax(_)), Ok(_)) => panic!("a document is refused"),
        (Err(_), _) => {}
    }
});

fn is_same(tree: Option<&serde_json::Value>, found: Option<Value<'_>>) -> bool {
    match (tree, found) {
        (None, None) => true,
        (Some(tree), Some(Value::Text(text))) => {
            tree.as_str().is_some_and(|tree| tree.chars().eq(text.chars()))
        }
        (Some(tree), Some(Value::Number(text))) => {
            serde_json::from_str::<serde_json::Value>(text).ok().as_ref() == Some(tree)
        }
        (Some(tree), Some(Value::Flag(flag))) => tree.as_bool() == Some(flag),
        (Some(tree), Some(Value::Null)) => tree.is_null(),
        (Some(tree), Some(Value::Nested)) => tree.is_array() || tree.is_object(),
        _ => false,
    }
}
