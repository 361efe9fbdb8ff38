//! Documents that a hostile client would write, and a slow reader of the same rules beside the one pass.

use super::{JsonError, MAX_DEPTH, Pointer, PointerError, Value, find};
use crate::inspect::MAX_WANTED;
use crate::inspect::text::{Room, alike};
use proptest::prelude::{ProptestConfig, Strategy, any, prop, proptest};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

fn pointers(texts: &[&str]) -> Vec<Pointer> {
    texts.iter().map(|text| Pointer::parse(text).unwrap()).collect()
}

fn one<'a>(document: &'a str, pointer: &str) -> Result<Option<Value<'a>>, JsonError> {
    find(document.as_bytes(), &pointers(&[pointer])).map(|found| found[0])
}

/// What a string at `/a` means.
fn text_of(document: &str) -> String {
    let Ok(Some(Value::Text(text))) = one(document, "/a") else { panic!("{document}") };
    text.chars().collect()
}

/// Goal: values of every kind are found where RFC 6901 says, its own examples included.
#[test]
fn pointers_lead_where_the_standard_says() {
    let document = r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
    for (pointer, number) in [
        ("/", "0"),
        ("/a~1b", "1"),
        ("/c%d", "2"),
        ("/e^f", "3"),
        ("/g|h", "4"),
        ("/i\\j", "5"),
        ("/k\"l", "6"),
        ("/ ", "7"),
        ("/m~0n", "8"),
    ] {
        assert_eq!(one(document, pointer), Ok(Some(Value::Number(number))), "{pointer}");
    }
    assert_eq!(one(document, "/foo"), Ok(Some(Value::Nested)));
    let Ok(Some(Value::Text(text))) = one(document, "/foo/1") else { panic!("a text") };
    assert_eq!(text.read(&mut Room::<8>::default()), Some(&b"baz"[..]));
    for pointer in ["/foo/2", "/foo/-", "/foo/01", "/foo/+1", "/foo/1/x", "/bar", "/foo/bar"] {
        assert_eq!(one(document, pointer), Ok(None), "{pointer}");
    }
    assert_eq!(one(r#"{"0":true,"a":{"b":[[],{"c":null}]}}"#, "/0"), Ok(Some(Value::Flag(true))));
    assert_eq!(one(r#"{"a":{"b":[[],{"c":null}]}}"#, "/a/b/1/c"), Ok(Some(Value::Null)));
    assert_eq!(one("[[1,2],[3,[4]]]", "/1/1/0"), Ok(Some(Value::Number("4"))));
    assert_eq!(one("\n\"alone\"\t", "/a"), Ok(None));
}

/// Goal: several pointers are followed in one pass, also where one is the beginning of another or the same.
#[test]
fn many_pointers_are_followed_at_once() {
    let document = br#"{"a":{"b":1,"c":[2,3]},"d":"x"}"#;
    let wanted = pointers(&["/a", "/a/b", "/a/c/1", "/d", "/a/b", "/e", "/a/c/2", "/a/c/0"]);
    let found = find(document, &wanted).unwrap();
    let number = |text| Some(Value::Number(text));
    assert_eq!(
        found[..3],
        [Some(Value::Nested), number("1"), number("3")],
        "the beginning of another is found as well"
    );
    assert!(matches!(found[3], Some(Value::Text(_))));
    assert_eq!(found[4..], [number("1"), None, None, number("2")]);
    assert_eq!(wanted.len(), MAX_WANTED);
}

/// Goal: what is no pointer is told, and the pointer to everything is none.
#[test]
fn what_is_no_pointer_is_refused() {
    for (text, why) in [
        ("", PointerError::NoSlash),
        ("a", PointerError::NoSlash),
        ("#/a", PointerError::NoSlash),
        ("/a~", PointerError::BadTilde),
        ("/a~2", PointerError::BadTilde),
        (&"/a".repeat(MAX_DEPTH + 1), PointerError::TooDeep),
    ] {
        assert_eq!(Pointer::parse(text), Err(why), "{text}");
    }
    for (text, name) in [("/~01", "~1"), ("/a~1b", "a/b"), ("/", "")] {
        let pointer = Pointer::parse(text).unwrap();
        assert_eq!(pointer.tokens, Pointer::member(name).tokens, "decoded once");
        assert_eq!((pointer.as_str(), Pointer::member(name).as_str()), (text, name));
    }
}

/// Goal: a member on the way that stands twice is refused however it is spelled, at every depth; one beside the way is not.
#[test]
fn a_doubled_member_on_the_way_is_refused() {
    for document in [
        r#"{"a":1,"a":1}"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"{"\u0061":1,"\u0061":2}"#,
        r#"{"a":{"b":1},"a":{"b":2}}"#,
        r#"{"a":{"b":1,"\u0062":2}}"#,
        r#"{"a":{"b":1},"x":[{"a":1}],"a":null}"#,
        r#"{"a":{"c":0,"b":1,"d":2,"b":[]}}"#,
    ] {
        assert_eq!(one(document, "/a/b"), Err(JsonError::Doubled(0)), "{document}");
    }
    for document in [
        r#"{"x":1,"x":2,"a":{"b":3}}"#,
        r#"{"b":1,"b":2,"a":{"b":3,"a":1,"a":2}}"#,
        r#"[{"a":1,"a":2}]"#,
        r#"{"x":{"a":1,"a":2},"a":{"b":3}}"#,
    ] {
        assert!(one(document, "/a/b").is_ok(), "{document}");
    }
    let both = pointers(&["/x", "/a"]);
    assert_eq!(find(br#"{"a":1,"x":2,"a":3}"#, &both), Err(JsonError::Doubled(1)));
}

/// Goal: a member that a reader without regard to case takes for the wanted one is refused, be it beside it or in its place.
#[test]
fn a_member_in_another_case_is_refused() {
    for document in [
        r#"{"side":1,"Side":2}"#,
        r#"{"SIDE":1}"#,
        r#"{"\u0053ide":1,"side":2}"#,
        "{\"\u{17f}ide\":1,\"side\":2}",
        r#"{"\u017fide":1}"#,
    ] {
        assert_eq!(one(document, "/side"), Err(JsonError::Otherwise(0)), "{document}");
    }
    assert!(one(r#"{"sides":1,"sid":2,"side":3,"x":{"SIDE":4}}"#, "/side").is_ok());
}

/// Goal: what a strict reader refuses is refused, wherever in the document it stands, also beside the way.
#[test]
fn what_is_no_json_is_refused() {
    for document in [
        "",
        " ",
        "{",
        "}",
        "[",
        "]",
        "{}}",
        "[]]",
        "{} {}",
        "{},",
        "1 2",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{,}",
        "{a:1}",
        "{'a':1}",
        "{\"a\" 1}",
        "{1:2}",
        "[1}",
        "{\"a\":1]",
        "nul",
        "nulll",
        "True",
        "NaN",
        "Infinity",
        "-",
        "+1",
        "01",
        "-01",
        "1.",
        ".5",
        "1e",
        "1e+",
        "1.e3",
        "0x1",
        "--1",
        "1_000",
        "\"",
        "\"a",
        "\"\\\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\ud800\"",
        "\"\\udc00\"",
        "\"\\ud800\\ud800\"",
        "\"\\ud800x\"",
        "\"\\ud800\\n\"",
        "\"a\nb\"",
        "\"a\tb\"",
        "\"\u{0}\"",
        "/**/1",
        "1//",
        "// x\n1",
        "\u{b}1",
        "\u{a0}1",
        "1\u{0}",
    ] {
        for text in [document.to_owned(), format!("{{\"a\":1,\"x\":{document}}}")] {
            // An empty value beside the way is the only one of these that is told apart below.
            let found = one(&text, "/a");
            assert!(matches!(found, Err(JsonError::Syntax(_))), "{text}: {found:?}");
        }
    }
    assert_eq!(one("\u{FEFF}{}", "/a"), Err(JsonError::NotText), "a byte order mark");
    assert_eq!(find(b"{\"x\":\"\xff\"}", &[]), Err(JsonError::NotText));
    assert_eq!(find(b"\"\xed\xa0\x80\"", &[]), Err(JsonError::NotText), "half a pair as UTF-8");
    assert_eq!(
        find(
            "{\"a\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>().as_slice(),
            &[]
        ),
        Err(JsonError::Syntax(1))
    );
    assert_eq!(one("{\"a\":tru}", "/a"), Err(JsonError::Syntax(5)), "told where");
}

/// Goal: escapes mean what the standard says, and a text that does not fit its room is not cut.
#[test]
fn escapes_are_read() {
    for (document, text) in [
        (r#"{"a":"\"\\\/\b\f\n\r\t"}"#, "\"\\/\u{8}\u{c}\n\r\t"),
        (r#"{"a":"\u00e9\u20AC\ud83d\ude00"}"#, "é€😀"),
        (r#"{"a":"é\u0000"}"#, "é\0"),
        (r#"{"a":"\\u0061"}"#, "\\u0061"),
        (r#"{"a":"\udbff\udfff"}"#, "\u{10ffff}"),
    ] {
        assert_eq!(text_of(document), text, "{document}");
    }
    for document in [r#"{"a":"12345"}"#, r#"{"a":"1\u0032345"}"#] {
        let Ok(Some(Value::Text(text))) = one(document, "/a") else { panic!("{document}") };
        assert_eq!(text.read(&mut Room::<5>::default()), Some(&b"12345"[..]));
        assert_eq!(text.read(&mut Room::<4>::default()), None);
    }
}

/// Goal: numbers are kept as they are written: nothing is rounded, nothing overflows.
#[test]
fn numbers_are_kept_as_text() {
    for number in [
        "0",
        "-0",
        "0.0",
        "1e0",
        "1E+400",
        "-1.5e-30",
        "9007199254740993",
        "18446744073709551616",
        "0.1000000000000000055511151231257827",
    ] {
        let document = format!("{{\"a\":{number}}}");
        assert_eq!(one(&document, "/a"), Ok(Some(Value::Number(number))));
    }
}

/// Goal: depth has a bound, and what is nested to the bound is read.
#[test]
fn depth_is_bounded() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        assert!(find(nested(MAX_DEPTH).as_bytes(), &[]).is_ok());
        assert_eq!(find(nested(MAX_DEPTH + 1).as_bytes(), &[]), Err(JsonError::TooDeep));
        assert_eq!(find(open.repeat(1_000_000).as_bytes(), &[]), Err(JsonError::TooDeep));
    }
    let deepest = "/a".repeat(MAX_DEPTH);
    let document = format!("{}1{}", "{\"a\":".repeat(MAX_DEPTH), "}".repeat(MAX_DEPTH));
    assert_eq!(one(&document, &deepest), Ok(Some(Value::Number("1"))));
}

/// A document as a tree that keeps members which stand twice.
#[derive(Debug)]
enum Tree {
    Leaf(serde_json::Value),
    List(Vec<Tree>),
    Members(Vec<(String, Tree)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Tree, D::Error> {
        reader.deserialize_any(Grower)
    }
}

struct Grower;

impl<'de> Visitor<'de> for Grower {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf(serde_json::Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = values.next_element()? {
            list.push(value);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<Tree, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = values.next_entry()? {
            members.push(member);
        }
        Ok(Tree::Members(members))
    }
}

/// What stands at a pointer, by the slow way; `Err`: it has no single meaning.
fn slow<'t>(tree: &'t Tree, pointer: &str) -> Result<Option<&'t Tree>, ()> {
    let mut at = vec![tree];
    for token in pointer.split('/').skip(1) {
        let name = token.replace("~1", "/").replace("~0", "~");
        let mut next = Vec::new();
        for tree in at {
            match tree {
                Tree::Leaf(_) => {}
                Tree::List(list) => {
                    let index = name.parse::<usize>().ok().filter(|at| at.to_string() == name);
                    next.extend(index.and_then(|index| list.get(index)));
                }
                Tree::Members(members) => {
                    let like = members.iter().filter(|(own, _)| alike(own.chars(), name.chars()));
                    let like: Vec<_> = like.collect();
                    if like.len() > 1 || like.iter().any(|(own, _)| *own != name) {
                        return Err(());
                    }
                    next.extend(like.iter().map(|(_, value)| value));
                }
            }
        }
        at = next;
    }
    Ok(at.first().copied())
}

fn is_same(tree: &Tree, value: Value<'_>) -> bool {
    match (tree, value) {
        (Tree::List(_) | Tree::Members(_), Value::Nested) => true,
        (Tree::Leaf(leaf), Value::Text(text)) => {
            leaf.as_str() == Some(text.chars().collect::<String>().as_str())
        }
        (Tree::Leaf(leaf), Value::Number(text)) => {
            leaf.is_number()
                && serde_json::from_str::<serde_json::Value>(text).ok().as_ref() == Some(leaf)
        }
        (Tree::Leaf(leaf), Value::Flag(flag)) => leaf.as_bool() == Some(flag),
        (Tree::Leaf(leaf), Value::Null) => leaf.is_null(),
        _ => false,
    }
}

const WANTED: [&str; 5] = ["/a", "/a/b", "/a/0", "/0/a/s", "/b/1/a"];

/// The one pass and the slow way agree on this text.
fn agree(text: &str) {
    let found = find(text.as_bytes(), &pointers(&WANTED));
    let tree = serde_json::from_str::<Tree>(text);
    match (&found, &tree) {
        (Err(JsonError::Syntax(_)), Err(_)) => {}
        // It may break later on as well.
        (Err(JsonError::Doubled(_) | JsonError::Otherwise(_)), Err(_)) => {}
        (Err(JsonError::Doubled(at) | JsonError::Otherwise(at)), Ok(tree)) => {
            assert_eq!(slow(tree, WANTED[*at]).err(), Some(()), "{text}");
        }
        (Ok(found), Ok(tree)) => {
            for (pointer, found) in WANTED.iter().zip(found) {
                let slow = slow(tree, pointer).unwrap_or_else(|()| panic!("{pointer} in {text}"));
                let same = match (slow, found) {
                    (None, None) => true,
                    (Some(tree), Some(value)) => is_same(tree, *value),
                    _ => false,
                };
                assert!(same, "{pointer} in {text}: {found:?} and {slow:?}");
            }
        }
        _ => panic!("{text}: {found:?} and {tree:?}"),
    }
}

/// A valid document, of names that clash in every way.
fn documents() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "null",
        "true",
        "false",
        "0",
        "-1.5e2",
        "12345678901234567890",
        "\"\"",
        "\"x\\n\\u00e9\"",
        "\"\\ud83d\\ude00\"",
        "[]",
        "{ }",
    ]);
    let name = prop::sample::select(vec![
        "\"a\"",
        "\"b\"",
        "\"s\"",
        "\"0\"",
        "\"1\"",
        "\"x\"",
        "\"\\u0061\"",
        "\"A\"",
        "\"\\u0053\"",
        "\"\u{17f}\"",
        "\"\"",
    ]);
    let blank = prop::sample::select(vec!["", "", " ", "\n\t"]);
    leaf.prop_map(str::to_owned).prop_recursive(5, 40, 5, move |inner| {
        let list = prop::collection::vec((blank.clone(), inner.clone()), 0..4).prop_map(|values| {
            let values: Vec<String> =
                values.into_iter().map(|(blank, value)| format!("{blank}{value}{blank}")).collect();
            format!("[{}]", values.join(","))
        });
        let members =
            prop::collection::vec((name.clone(), blank.clone(), inner), 0..5).prop_map(|values| {
                let values: Vec<String> = values
                    .into_iter()
                    .map(|(name, blank, value)| format!("{blank}{name}{blank}:{blank}{value}"))
                    .collect();
                format!("{{{}}}", values.join(","))
            });
        prop::strategy::Union::new_weighted(vec![(1, list.boxed()), (3, members.boxed())])
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// Goal: on every valid document the one pass finds what a tree holds, and refuses exactly where that has two meanings.
    #[test]
    fn one_pass_agrees_with_a_tree(text in documents()) {
        agree(&text);
    }

    /// Goal: what is nearly a document is one or none for both. Method: a valid one with a piece torn out and another put in.
    #[test]
    fn one_pass_agrees_on_what_is_no_document(
        text in documents(),
        from in any::<prop::sample::Index>(),
        length in 0_usize..4,
        piece in "([\\[\\]{}:,\"\\\\0-9eE.+-]|true|null|\\\\u0061|\"a\"| ){0,3}",
    ) {
        let from = from.index(text.len().max(1));
        let to = (from + length).min(text.len());
        if let (Some(before), Some(after)) = (text.get(..from), text.get(to..)) {
            // What the other reader calls out of its range is none of its business here.
            let text = format!("{before}{piece}{after}");
            let range = serde_json::from_str::<Tree>(&text).err().is_some_and(|why| why.to_string().contains("out of range"));
            if !range {
                agree(&text);
            }
        }
    }

    /// Goal: no bytes at all make it panic.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = find(&bytes, &pointers(&WANTED));
    }
}
