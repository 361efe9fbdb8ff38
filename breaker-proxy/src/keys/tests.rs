//! A reader over each source of a key and a weight, fed by hand with what a client could write.

use super::{Given, KeyError, Reader, Why, spelled};
use crate::config::{KeyFrom, KeySource, Missing, Segment, Unreadable, Weight};
use crate::inspect::json::Pointer;
use crate::inspect::prefix::Seen;
use crate::path;
use crate::wire::asked::Asked;
use breaker_core::{
    Breaker, Call, Capacity, Class, GroupSpec, PolicySpec, RouteId, RouteSpec, ScopeSpec, Seed,
};
use hyper::Request;
use proptest::prelude::{ProptestConfig, prop, proptest};
use std::collections::BTreeMap;

const PATTERN: &str = "/orders/{id}/lines/{*rest}";

/// What a client sends.
#[derive(Clone, Default)]
struct Sent<'a> {
    target: &'a str,
    fields: &'a [(&'a str, &'a str)],
    body: Option<&'a [u8]>,
    length: Option<u64>,
}

fn with<T>(sent: &Sent<'_>, look: impl FnOnce(&Given<'_>) -> T) -> T {
    let target = if sent.target.is_empty() { "/orders/7/lines/" } else { sent.target };
    let mut request = Request::builder().uri(target);
    for (name, value) in sent.fields {
        request = request.header(*name, *value);
    }
    let (head, ()) = request.body(()).unwrap().into_parts();
    let asked = Asked::of(&head);
    let path = path::canonical(asked.path).unwrap();
    let body = sent.body.map_or(Seen::Nothing, Seen::Whole);
    let peer = "10.0.0.9".parse().unwrap();
    look(&Given { head: &asked, path: &path, peer, certificate: None, length: sent.length, body })
}

fn source(from: KeyFrom) -> KeySource {
    KeySource { from, missing: Missing::Share, unreadable: Unreadable::Refuse }
}

fn reader(sources: Vec<KeySource>, weight: Option<&Weight>) -> Reader {
    let named = sources.into_iter().enumerate();
    let dimensions = named.map(|(index, source)| (format!("k{index}"), source)).collect();
    Reader::new(dimensions, weight, PATTERN, ["10.0.0.0/8".parse().unwrap()].into())
}

/// A breaker with one route, which is never asked.
fn house() -> (Breaker, RouteId) {
    let breaker = Breaker::new(Capacity { scopes: 4, keys: 4 }, Seed([1, 2]));
    let mut spec = PolicySpec::default();
    spec.groups.push(GroupSpec { name: "g".to_owned(), scope: ScopeSpec::default() });
    let (name, group) = ("r".to_owned(), "g".to_owned());
    spec.routes.push(RouteSpec { name, group, class: Class::Normal, scope: ScopeSpec::default() });
    let policy = breaker.compile(&spec).unwrap();
    let route = policy.routes().next().unwrap().0;
    (breaker, route)
}

/// The labels of one reading, by dimension; or why there are none.
fn labels(reader: &Reader, sent: &Sent<'_>) -> Result<BTreeMap<u8, String>, KeyError> {
    let (breaker, route) = house();
    with(sent, |given| {
        let read = reader.read(&breaker, given, Call::new(route));
        let mut labels = BTreeMap::new();
        reader.each_label(given, |index, label| {
            labels.insert(index, String::from_utf8_lossy(label).into_owned());
        });
        read.map(|_| labels)
    })
}

/// The label of the only dimension.
fn one(from: KeyFrom, sent: &Sent<'_>) -> Result<Option<String>, Why> {
    let labels = labels(&reader(vec![source(from)], None), sent).map_err(|error| error.why)?;
    Ok(labels.get(&0).cloned())
}

fn pointer(text: &str) -> Pointer {
    Pointer::parse(text).unwrap()
}

fn json(text: &str) -> Sent<'_> {
    const FIELDS: &[(&str, &str)] = &[("content-type", "application/json")];
    Sent { fields: FIELDS, body: Some(text.as_bytes()), ..Sent::default() }
}

fn form(text: &str) -> Sent<'_> {
    const FIELDS: &[(&str, &str)] = &[("content-type", "application/x-www-form-urlencoded")];
    Sent { fields: FIELDS, body: Some(text.as_bytes()), ..Sent::default() }
}

/// Goal: a field names its client once, and in no spelling that a server could take for the field.
#[test]
fn a_field() {
    fn read(fields: &[(&str, &str)]) -> Result<Option<String>, Why> {
        let from = KeyFrom::Header(hyper::header::HeaderName::from_static("x-client"));
        one(from, &Sent { fields, ..Sent::default() })
    }
    assert_eq!(read(&[("x-client", "  a b ")]), Ok(Some("a b".to_owned())));
    assert_eq!(read(&[("X-Client", "a"), ("x-clients", "b")]), Ok(Some("a".to_owned())));
    assert_eq!(read(&[("x-client", " ")]), Ok(None));
    assert_eq!(read(&[]), Ok(None));
    assert_eq!(read(&[("x-client", "a"), ("x-client", "a")]), Err(Why::Doubled));
    assert_eq!(read(&[("x-client", ""), ("x-client", "a")]), Err(Why::Doubled));
    assert_eq!(read(&[("x-client", "a"), ("x_client", "b")]), Err(Why::Otherwise));
    assert_eq!(read(&[("x_client", "b")]), Err(Why::Otherwise));
    let long = "x".repeat(257);
    assert_eq!(read(&[("x-client", &long[1..])]), Ok(Some(long[1..].to_owned())));
    assert_eq!(read(&[("x-client", &long)]), Err(Why::TooLong));
}

/// Goal: a query parameter has one label in every encoding, and none where it has two meanings.
#[test]
fn a_query_parameter() {
    fn read(target: &str) -> Result<Option<String>, Why> {
        one(KeyFrom::Query("acct".to_owned()), &Sent { target, ..Sent::default() })
    }
    for target in ["/?acct=a+b", "/?x=1&%61cct=a%20b", "/?acct=%20a+b%20", "/?acct=%61%20%62&y=%zz"]
    {
        assert_eq!(read(target), Ok(Some("a b".to_owned())), "{target}");
    }
    for target in ["/", "/?", "/?acct", "/?acct=", "/?acct=+", "/?x=acct"] {
        assert_eq!(read(target), Ok(None), "{target}");
    }
    for (target, why) in [
        ("/?acct=a&acct=b", Why::Doubled),
        ("/?acct=a&ac%63t=a", Why::Doubled),
        ("/?Acct=a", Why::Otherwise),
        ("/?acct[]=a", Why::Otherwise),
        ("/?acct=a;x=1", Why::Otherwise),
        ("/?acct=%0a", Why::Unfit("holds a control character")),
        ("/?acct=a%00", Why::Unfit("holds a control character")),
        ("/?acct=%c2%85", Why::Unfit("holds a control character")),
        ("/?acct=%zz", Why::Unfit("is no proper encoding")),
        ("/?acct=%ff", Why::Unfit("is no proper encoding")),
    ] {
        assert_eq!(
            read(target).map_err(|found| found == why),
            Err(true),
            "{target}: {:?}",
            read(target)
        );
    }
    assert_eq!(read(&format!("/?acct={}", "%61".repeat(256))), Ok(Some("a".repeat(256))));
    assert_eq!(read(&format!("/?acct={}", "%61".repeat(257))), Err(Why::TooLong));
}

/// Goal: a segment is found by its name or its place, decoded, and refused where some servers would cut it.
#[test]
fn a_path_segment() {
    let named = |name: &str| KeyFrom::Segment(Segment::Named(name.to_owned()));
    let at = |place| KeyFrom::Segment(Segment::At(place));
    fn read(from: KeyFrom, target: &str) -> Result<Option<String>, Why> {
        one(from, &Sent { target, ..Sent::default() })
    }
    let target = "/orders/a%20%C3%A9%2Bb/lines/x/y";
    assert_eq!(read(named("id"), target), Ok(Some("a é+b".to_owned())));
    assert_eq!(read(at(2), target), Ok(Some("a é+b".to_owned())));
    assert_eq!(read(at(1), target), Ok(Some("orders".to_owned())));
    assert_eq!(read(at(5), target), Ok(Some("y".to_owned())));
    assert_eq!(read(at(6), target), Ok(None));
    assert_eq!(read(at(4), "/orders/7/lines/"), Ok(None), "it is there, and empty");
    assert_eq!(read(named("none"), target), Ok(None));
    assert_eq!(read(named("id"), "/orders/%61/lines/"), read(named("id"), "/orders/a/lines/"));
    for target in ["/orders/7;v=1/lines/", "/orders/7%3Bv=1/lines/", "/orders/7;/lines/"] {
        assert_eq!(read(named("id"), target), Err(Why::Unfit("holds a semicolon")), "{target}");
    }
    assert_eq!(read(named("id"), &format!("/orders/{}/", "a".repeat(257))), Err(Why::TooLong));
}

/// Goal: the claim of a token is read, said to be unverified elsewhere, and refused where two readers could differ.
#[test]
fn a_claim() {
    let claims = |text: &str| {
        use base64::Engine as _;
        let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        format!("Bearer e30.{payload}.c2ln")
    };
    let read = |field: &str| {
        let fields: &[(&str, &str)] = &[("authorization", field)];
        one(KeyFrom::Claim(Pointer::member("sub")), &Sent { fields, ..Sent::default() })
    };
    assert_eq!(read(&claims(r#"{"iss":"x","sub":"jo\u0065"}"#)), Ok(Some("joe".to_owned())));
    assert_eq!(read(&claims(r#"{"sub":42}"#)), Ok(Some("42".to_owned())));
    assert_eq!(read(&claims(r#"{"sub":null}"#)), Ok(None));
    assert_eq!(read(&claims("{}")), Ok(None));
    assert_eq!(read("Basic YTpi"), Ok(None));
    assert_eq!(read(&claims(r#"{"sub":"a","sub":"b"}"#)), Err(Why::Doubled));
    assert_eq!(read(&claims(r#"{"Sub":"a"}"#)), Err(Why::Otherwise));
    for field in ["Bearer opaque".to_owned(), claims("{"), claims("")] {
        assert!(matches!(read(&field), Err(Why::Unreadable(_)) | Ok(None)), "{field}");
    }
    assert!(matches!(read("Bearer opaque"), Err(Why::Unreadable(_))));
    let (one_token, other) = (claims("{}"), claims(r#"{"sub":"a"}"#));
    let twice: &[(&str, &str)] = &[("authorization", &one_token), ("authorization", &other)];
    let from = KeyFrom::Claim(Pointer::member("sub"));
    assert_eq!(one(from, &Sent { fields: twice, ..Sent::default() }), Err(Why::Doubled));
    let nested = KeyFrom::Claim(pointer("/realm/sub"));
    let field = claims(r#"{"realm":{"sub":"a"},"sub":"b"}"#);
    let fields: &[(&str, &str)] = &[("authorization", &field)];
    assert_eq!(one(nested, &Sent { fields, ..Sent::default() }), Ok(Some("a".to_owned())));
}

/// Goal: a JSON value is one key however it is spelled; what has several spellings or none is refused.
#[test]
fn a_json_value() {
    let read = |text: &'static str| one(KeyFrom::Json(pointer("/order/account")), &json(text));
    for text in [
        r#"{"order":{"account":"42"}}"#,
        r#"{"order":{"account":42}}"#,
        r#"{"order":{"account":" \u00342 "}}"#,
        r#"{"\u006frder":{"account":"42"},"other":{"account":1,"account":2}}"#,
    ] {
        assert_eq!(read(text), Ok(Some("42".to_owned())), "{text}");
    }
    for text in [
        "",
        "{}",
        "[]",
        "null",
        r#"{"order":"x"}"#,
        r#"{"order":{"account":null}}"#,
        r#"{"order":{"account":""}}"#,
    ] {
        assert_eq!(read(text), Ok(None), "{text}");
    }
    for text in [
        r#"{"order":{"account":42.0}}"#,
        r#"{"order":{"account":4.2e1}}"#,
        r#"{"order":{"account":-0}}"#,
        r#"{"order":{"account":true}}"#,
        r#"{"order":{"account":["42"]}}"#,
        r#"{"order":{"account":"4\u0000"}}"#,
        r#"{"order":{"account":"42"}"#,
        "account=42",
    ] {
        assert!(
            matches!(read(text), Err(Why::Unreadable(_) | Why::Unfit(_))),
            "{text}: {:?}",
            read(text)
        );
    }
    assert_eq!(read(r#"{"order":{"account":1},"order":{}}"#), Err(Why::Doubled));
    assert_eq!(read(r#"{"order":{"Account":1}}"#), Err(Why::Otherwise));
}

/// Goal: a form's field follows the rules of a query's parameter.
#[test]
fn a_form_field() {
    let read = |text: &'static str| one(KeyFrom::Form("acct".to_owned()), &form(text));
    assert_eq!(read("x=1&ac%63t=a+b"), Ok(Some("a b".to_owned())));
    assert_eq!(read("acct=a&acct=a"), Err(Why::Doubled));
    assert_eq!(read("acct=a;b"), Err(Why::Otherwise));
    assert_eq!(read(""), Ok(None));
}

/// Goal: a body that is not plainly of the looked-for type, encoded, too long or not seen is refused, and by choice counts as one without
/// the key; an ambiguous one is refused by any choice.
#[test]
fn a_body_that_cannot_be_read() {
    let lax = |from| KeySource { from, missing: Missing::Share, unreadable: Unreadable::Missing };
    let account = || KeyFrom::Json(pointer("/account"));
    let good = r#"{"account":"a"}"#;
    let plain: &[(&str, &str)] = &[("content-type", "text/plain")];
    let zipped: &[(&str, &str)] =
        &[("content-type", "application/json"), ("content-encoding", "gzip")];
    for (sent, why) in [
        (Sent { fields: plain, ..json(good) }, Why::OtherType),
        (Sent { fields: &[], ..json(good) }, Why::OtherType),
        (Sent { fields: zipped, ..json(good) }, Why::Encoded),
        (Sent { body: None, ..json(good) }, Why::Unreadable("was not looked for")),
        (json("{"), Why::Unreadable("is in what is no JSON document")),
    ] {
        assert_eq!(one(account(), &sent), Err(why));
        assert_eq!(labels(&reader(vec![lax(account())], None), &sent), Ok(BTreeMap::new()));
    }
    let strict = reader(vec![source(account())], None);
    let (breaker, route) = house();
    with(&json(good), |given| {
        let given = Given { body: Seen::TooLong, ..*given };
        let found = strict.read(&breaker, &given, Call::new(route));
        assert_eq!(found.err().map(|error| error.why), Some(Why::LongBody));
    });
    let doubled =
        labels(&reader(vec![lax(account())], None), &json(r#"{"account":1,"account":2}"#));
    assert_eq!(doubled.map_err(|error| error.why), Err(Why::Doubled));
}

/// Goal: keys of every source are read together, and the one that is at fault is the one that is named.
#[test]
fn the_one_at_fault_is_named() {
    let sources = vec![
        source(KeyFrom::Query("a".to_owned())),
        source(KeyFrom::Query("b".to_owned())),
        source(KeyFrom::Forwarded(1)),
        source(KeyFrom::Json(pointer("/c"))),
    ];
    let weight = Weight::Quantity {
        from: KeyFrom::Json(pointer("/d")),
        times: None,
        scale: 0,
        missing: None,
    };
    let reader = reader(sources, Some(&weight));
    assert!(reader.looks_into_body());
    let fields: &[(&str, &str)] =
        &[("content-type", "application/json"), ("x-forwarded-for", "192.0.2.5")];
    let sent = |target, body: &'static str| Sent {
        target,
        fields,
        body: Some(body.as_bytes()),
        length: None,
    };
    let found = labels(&reader, &sent("/?b=2&a=1", r#"{"c":"3","d":4}"#)).unwrap();
    let expected = [(0, "1"), (1, "2"), (2, "192.0.2.5"), (3, "3")];
    assert_eq!(found, expected.map(|(index, label)| (index, label.to_owned())).into());
    for (target, body, line) in [
        (
            "/?b=1&b=2",
            "{}",
            "the request gives the query parameter `b` (its key `k0`) more than once",
        ),
        (
            "/?a=1&A=2",
            "{}",
            "the request gives the query parameter `a` (its key `k0`) in a form that only some readers understand",
        ),
        (
            "/",
            r#"{"d":1,"d":2}"#,
            "the request gives the JSON value at `/d` (its key `k3`) more than once",
        ),
        ("/", r#"{"c":1}"#, "the request lacks its weight (the JSON value at `/d`)"),
        ("/", r#"{"d":-1}"#, "its weight (the JSON value at `/d`) is negative"),
        ("/?a=%00", "{}", "the query parameter `a` (its key `k0`) holds a control character"),
    ] {
        assert_eq!(labels(&reader, &sent(target, body)).unwrap_err().to_string(), line);
    }
}

/// Goal: a call without its key is refused, shares or skips, as the dimension says.
#[test]
fn who_lacks_a_key() {
    for (missing, expected) in [
        (
            Missing::Refuse,
            Err("the request lacks the query parameter `a` (its key `k0`)".to_owned()),
        ),
        (Missing::Share, Ok(())),
        (Missing::Skip, Ok(())),
    ] {
        let source = KeySource { missing, ..source(KeyFrom::Query("a".to_owned())) };
        let read = labels(&reader(vec![source], None), &Sent::default());
        assert_eq!(read.map(drop).map_err(|error| error.to_string()), expected);
    }
}

/// The weight that a call is given: its `Debug` form tells.
fn weighed(weight: &Weight, sent: &Sent<'_>) -> Result<String, Why> {
    let (breaker, route) = house();
    let reader = reader(vec![], Some(weight));
    let call = with(sent, |given| reader.read(&breaker, given, Call::new(route)));
    call.map(|(call, _)| told(&call)).map_err(|error| error.why)
}

fn told(call: &Call) -> String {
    let call = format!("{call:?}");
    let (_, weight) = call.split_once("weight: ").unwrap();
    weight.split(',').next().unwrap().to_owned()
}

fn weighing(weight: u64) -> Result<String, Why> {
    let (_, route) = house();
    Ok(told(&Call::new(route).weighing(weight)))
}

/// Goal: a weight comes from where the route says, exactly, and a call without one is refused or weighs what the route says.
#[test]
fn weights() {
    let quantity = |from, times, scale, missing| Weight::Quantity { from, times, scale, missing };
    let header = || KeyFrom::Header(hyper::header::HeaderName::from_static("x-cost"));
    let query = |name: &str| KeyFrom::Query(name.to_owned());
    let at = |text| KeyFrom::Json(pointer(text));
    fn costs<'a>(fields: &'a [(&'a str, &'a str)]) -> Sent<'a> {
        Sent { fields, ..Sent::default() }
    }
    assert_eq!(weighed(&Weight::Constant(5), &Sent::default()), weighing(5));
    for (length, expected) in
        [(Some(0), weighing(0)), (Some(17), weighing(17)), (None, Err(Why::Missing))]
    {
        assert_eq!(weighed(&Weight::Length, &Sent { length, ..Sent::default() }), expected);
    }
    let cost = quantity(header(), None, 2, None);
    assert_eq!(weighed(&cost, &costs(&[("x-cost", "1.5")])), weighing(150));
    assert_eq!(weighed(&cost, &costs(&[("x-cost", "0.001")])), weighing(1), "rounded up");
    assert_eq!(weighed(&cost, &costs(&[])), Err(Why::Missing));
    assert_eq!(weighed(&cost, &costs(&[("x-cost", "")])), Err(Why::Missing));
    assert_eq!(weighed(&cost, &costs(&[("x-cost", "1"), ("x-cost", "1")])), Err(Why::Doubled));
    for (text, how) in [
        ("-1", "is negative"),
        ("1,5", "is not a number"),
        ("1e30", "is too large to be counted"),
        ("ten", "is not a number"),
    ] {
        assert_eq!(weighed(&cost, &costs(&[("x-cost", text)])), Err(Why::Unfit(how)), "{text}");
    }
    let lax = quantity(header(), None, 0, Some(7));
    assert_eq!(weighed(&lax, &costs(&[])), weighing(7));
    assert_eq!(weighed(&lax, &costs(&[("x-cost", "x")])), Err(Why::Unfit("is not a number")));
    let parameter = quantity(query("n"), Some(query("p")), 2, None);
    let sent = |target| Sent { target, ..Sent::default() };
    assert_eq!(weighed(&parameter, &sent("/?n=%33&p=1.335")), weighing(401));
    assert_eq!(weighed(&parameter, &sent("/?n=3")), Err(Why::Missing));
    assert_eq!(
        weighed(&parameter, &sent("/?n=3&p=+1")),
        Err(Why::Unfit("is not a number")),
        "a blank"
    );
    let notional = quantity(at("/quantity"), Some(at("/price")), 2, None);
    assert_eq!(
        weighed(&notional, &json(r#"{"quantity":10,"price":"123.45678"}"#)),
        weighing(123_457)
    );
    assert_eq!(weighed(&notional, &json(r#"{"quantity":10,"price":null}"#)), Err(Why::Missing));
    assert_eq!(
        weighed(&notional, &json(r#"{"quantity":[1],"price":1}"#)),
        Err(Why::Unfit("is not a number"))
    );
    assert_eq!(
        weighed(&notional, &json(r#"{"quantity":1e15,"price":1e15}"#)),
        Err(Why::Unfit("is too large to be counted"))
    );
    let formed = quantity(KeyFrom::Form("n".to_owned()), None, 0, None);
    assert_eq!(weighed(&formed, &form("n=12&x=1")), weighing(12));
}

/// Goal: a label that a person writes is taken in the one spelling that requests lead to, or not at all.
#[test]
fn labels_are_spelled_as_requests_carry_them() {
    let header = KeyFrom::Header(hyper::header::FROM);
    let query = KeyFrom::Query("a".to_owned());
    let segment = KeyFrom::Segment(Segment::At(1));
    let long = "x".repeat(257);
    for (from, label, is_spelled) in [
        (&header, "a b", true),
        (&header, " a", false),
        (&header, "", false),
        (&header, "a\nb", false),
        (&header, &long, false),
        (&header, &long[1..], true),
        (&query, "a b", true),
        (&query, "a\u{a0}", false),
        (&query, "a\u{0}", false),
        (&query, &long, false),
        (&segment, "a b", true),
        (&segment, "é+%", true),
        (&segment, "a/b", false),
        (&segment, "a;b", false),
        (&segment, "a\\b", false),
        (&segment, "..", false),
        (&segment, ".", false),
        (&segment, "%2f", false),
        (&segment, "%zz", true),
    ] {
        let found = spelled(from, label.as_bytes());
        assert_eq!(found.is_some(), is_spelled, "{from} {label:?}");
        assert!(found.is_none_or(|found| found == label.as_bytes()));
    }
    assert_eq!(spelled(&query, b"\xff"), None);
    assert_eq!(spelled(&header, b"\xff"), Some(b"\xff".to_vec()), "fields hold any bytes");
    assert_eq!(spelled(&KeyFrom::Forwarded(1), b"::ffff:10.1.2.3"), Some(b"10.1.2.3".to_vec()));
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    /// Goal: `spelled` keeps its promise for every source: whatever label a request leads to is spelled as itself, and whatever is
    /// spelled is what a request leads to. Method: one text, sent through each source in a form that is always allowed.
    #[test]
    fn a_spelled_label_is_one_that_requests_carry(text in "([a-zA-Z0-9 %;/\\\\.+&=é\u{a0}\u{0}\u{7f}\"-]|\\PC){0,12}") {
        let query = format!("/?a={}", encoded(&text));
        let body = format!("{{\"a\":{}}}", serde_json::to_string(&text).unwrap());
        let formed = format!("a={}", encoded(&text));
        let path = format!("/{}", encoded(&text));
        let is_path = path::canonical(&path).is_ok();
        let cases = [
            (KeyFrom::Query("a".to_owned()), Some(Sent { target: &query, ..Sent::default() })),
            (KeyFrom::Json(pointer("/a")), Some(json(&body))),
            (KeyFrom::Form("a".to_owned()), Some(form(&formed))),
            (KeyFrom::Segment(Segment::At(1)), is_path.then_some(Sent { target: &path, ..Sent::default() })),
        ];
        for (from, sent) in cases {
            let label = sent.and_then(|sent| one(from.clone(), &sent).ok().flatten());
            match &label {
                Some(label) => {
                    assert_eq!(spelled(&from, label.as_bytes()), Some(label.clone().into_bytes()), "{from}");
                    assert_eq!(label, text.trim());
                }
                None => assert_eq!(spelled(&from, text.as_bytes()), None, "{from} {text:?}"),
            }
        }
    }

    /// Goal: nothing that a client writes anywhere makes a reading panic, and what is found is always spelled so.
    #[test]
    fn any_request_is_read_or_refused(
        query in "([a-c=&;%+0-9\\[]|%61|%00){0,16}",
        values in prop::collection::vec(("x-client|x_client|x-forwarded-for|authorization|content-type", "[ -~]{0,20}"), 0..5),
        body in "([\\[\\]{}:,\"a-c0-9.eE=&%-]|\"a\"|\"\\\\u0061\"){0,20}",
    ) {
        let sources = vec![
            source(KeyFrom::Query("a".to_owned())),
            source(KeyFrom::Header(hyper::header::HeaderName::from_static("x-client"))),
            source(KeyFrom::Json(pointer("/a"))),
            source(KeyFrom::Claim(Pointer::member("a"))),
        ];
        let weight = Weight::Quantity {
            from: KeyFrom::Json(pointer("/b")),
            times: Some(KeyFrom::Json(pointer("/c"))),
            scale: 2,
            missing: Some(1),
        };
        let froms: Vec<KeyFrom> = sources.iter().map(|source| source.from.clone()).collect();
        let fields: Vec<(&str, &str)> = values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let target = format!("/?{query}");
        let sent = Sent { target: &target, fields: &fields, body: Some(body.as_bytes()), length: None };
        if let Ok(labels) = labels(&reader(sources, Some(&weight)), &sent) {
            for (index, label) in labels {
                let from = &froms[usize::from(index)];
                assert_eq!(spelled(from, label.as_bytes()), Some(label.into_bytes()), "{from}");
            }
        }
    }
}
