//! Keys and weights from every part of a head, by HTTP/1.1 and HTTP/2: each client has its own limits and its own kill, and no spelling
//! leads around them.

use super::support::h2::H2;
use super::support::upstream::Serving;
use super::support::{Proxy, Setup};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Request;
use serde_json::Value;

/// By which version a call comes.
#[derive(Clone, Copy, Debug)]
enum By {
    Http1,
    Http2,
}

const BOTH: [By; 2] = [By::Http1, By::Http2];

/// A request without a body.
#[derive(Clone, Debug)]
struct Ask {
    target: String,
    fields: Vec<(&'static str, String)>,
}

fn to(target: &str) -> Ask {
    Ask { target: target.to_owned(), fields: Vec::new() }
}

fn with(name: &'static str, value: &str) -> Ask {
    Ask { target: "/x".to_owned(), fields: vec![(name, value.to_owned())] }
}

impl Ask {
    fn and(mut self, name: &'static str, value: &str) -> Ask {
        self.fields.push((name, value.to_owned()));
        self
    }
}

/// The status and the document of the answer.
fn call(proxy: &Proxy, by: By, ask: &Ask) -> (u16, Value) {
    let (status, body) = match by {
        By::Http1 => {
            let mut client = proxy.client();
            let fields: String =
                ask.fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            client.send(&format!("GET {} HTTP/1.1\r\nhost: a\r\n{fields}\r\n", ask.target));
            let answer = client.answer();
            (answer.status(), answer.text().into_bytes())
        }
        By::Http2 => {
            let mut request = Request::builder().uri(format!("http://a{}", ask.target));
            for (name, value) in &ask.fields {
                request = request.header(*name, value);
            }
            H2::connect(proxy.data()).start(request.body(()).unwrap(), false).answer()
        }
    };
    let text = String::from_utf8(body).unwrap();
    let document = text.find('{').and_then(|from| serde_json::from_str(&text[from..]).ok());
    (status, document.unwrap_or(Value::Null))
}

fn token(claims: &str) -> String {
    format!("Bearer e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

/// A source of a key, and how clients write it.
struct Case {
    from: &'static str,
    /// All of them are the client `a b`, or of the address 192.0.2.1.
    same: Vec<Ask>,
    other: Ask,
    /// Requests that could mean two clients, or none.
    refused: Vec<Ask>,
    label: &'static str,
}

fn cases() -> Vec<Case> {
    let claim = |claims: &str| with("authorization", &token(claims));
    let header = |value: &str| with("x-client", value);
    let hops = |value: &str| with("x-forwarded-for", value);
    vec![
        Case {
            from: "{ header = \"x-client\" }",
            same: vec![header("a b"), header("  a b ")],
            other: header("b"),
            refused: vec![
                header("a b").and("x-client", "b"),
                header("a b").and("x_client", "b"),
                with("x_client", "a b"),
                to("/x"),
            ],
            label: "a%20b",
        },
        Case {
            from: "{ query = \"acct\" }",
            same: vec![to("/x?acct=a%20b"), to("/x?y=1&%61cc%74=a+b&z=%zz")],
            other: to("/x?acct=b"),
            refused: vec![
                to("/x?acct=b&acct=a+b"),
                to("/x?acct=b&%61cct=a+b"),
                to("/x?acct=b&ACCT=a+b"),
                to("/x?acct=b&acct[]=a+b"),
                to("/x?acct=b;acct=a+b"),
                to("/x?acct=a+b%00"),
                to("/x?acct=%"),
                to("/x?acct="),
                to("/x"),
            ],
            label: "a%20b",
        },
        Case {
            from: "{ segment = \"{id}\" }",
            same: vec![to("/of/a%20b/x"), to("/of/%61%20%62/x")],
            other: to("/of/b/x"),
            refused: vec![to("/of/a%20b;v=1/x"), to("/of/a%20b%3Bv/x"), to("/of/%20/x")],
            label: "a%20b",
        },
        Case {
            from: "{ claim = \"sub\", unverified = true }",
            same: vec![claim(r#"{"sub":"a b"}"#), claim(r#"{"x":[{}],"s\u0075b":"\u0061 b"}"#)],
            other: claim(r#"{"sub":"b"}"#),
            refused: vec![
                claim(r#"{"sub":"b","sub":"a b"}"#),
                claim(r#"{"sub":"b","Sub":"a b"}"#),
                claim(r#"{"sub":"b"}"#).and("authorization", &token(r#"{"sub":"a b"}"#)),
                claim(r#"{"sub":["a b"]}"#),
                claim(r#"{"sub":"a b"#),
                with("authorization", "Bearer opaque"),
                with("authorization", "Basic YTpi"),
                to("/x"),
            ],
            label: "a%20b",
        },
        Case {
            from: "{ forwarded = 2 }",
            same: vec![
                hops("192.0.2.1"),
                hops("198.51.100.7, 192.0.2.1"),
                hops("198.51.100.7, 192.0.2.1, 127.0.0.2"),
                hops("10.9.8.7").and("x-forwarded-for", "::ffff:192.0.2.1"),
            ],
            other: hops("192.0.2.2"),
            refused: vec![hops("unknown"), hops("192.0.2.1, _hidden")],
            label: "192.0.2.1",
        },
    ]
}

fn setup(upstream: &Serving, from: &str, lines: &str) -> Setup {
    let address = upstream.address();
    let path = if from.contains("segment") { "/of/{id}/x" } else { "/{*rest}" };
    let rules = format!(
        "[[routes]]\nname = \"api\"\nmatch = {{ path = \"{path}\" }}\nupstream = \"http://{address}\"\n\
         [[routes.keys]]\nname = \"k\"\nfrom = {from}\n{lines}\n"
    );
    Setup { wire: "trusted = [\"127.0.0.0/8\"]", ..Setup::new(rules) }
}

/// Goal: however a client spells itself it has one limit, its neighbour another; what could mean two clients reaches no upstream.
#[test]
fn every_source_gives_each_client_one_limit() {
    for case in cases() {
        for by in BOTH {
            let upstream = Serving::ok();
            let count = case.same.len();
            let lines = format!("limit = [{{ window = \"{count}/10s\" }}]");
            let proxy = setup(&upstream, case.from, &lines).start_clocked();
            for ask in &case.same {
                assert_eq!(call(&proxy, by, ask).0, 200, "{by:?} {ask:?}");
            }
            for ask in &case.same {
                let (status, document) = call(&proxy, by, ask);
                assert_eq!(status, 429, "{by:?} {ask:?}");
                assert_eq!(document["scope"], format!("/default/api/k={}", case.label), "{ask:?}");
            }
            assert_eq!(call(&proxy, by, &case.other).0, 200, "{by:?} {:?}", case.other);
            for ask in &case.refused {
                let (status, document) = call(&proxy, by, ask);
                assert_eq!((status, &document["code"]), (400, &"bad-key".into()), "{by:?} {ask:?}");
            }
            let accounts = proxy.finish();
            assert_eq!(accounts["invalid"], case.refused.len());
            assert_eq!(upstream.heard().len(), count + 1, "what was refused was not sent");
        }
    }
}

/// Goal: a kill of one client stops it in every spelling and nobody else; a label that no request leads to is not taken for one.
#[test]
fn every_source_gives_each_client_one_kill() {
    for case in cases() {
        let upstream = Serving::ok();
        let proxy = setup(&upstream, case.from, "").start_clocked();
        proxy.halt(&format!("/default/api/k={}", case.label));
        for by in BOTH {
            for ask in &case.same {
                let (status, document) = call(&proxy, by, ask);
                assert_eq!((status, &document["code"]), (503, &"killed".into()), "{by:?} {ask:?}");
            }
            for ask in &case.refused {
                assert_eq!(call(&proxy, by, ask).0, 400, "{by:?} {ask:?}");
            }
            assert_eq!(call(&proxy, by, &case.other).0, 200);
        }
        for label in ["%20a", "x%00", "x%0A"] {
            let path = format!("/v1/kill/default/api/k={label}");
            let answer = proxy.admin("POST", &path, r#"{"reason":"test"}"#);
            assert_ne!(answer.status(), 200, "{} {label}: {}", case.from, answer.text());
        }
        assert_eq!(upstream.heard().len(), BOTH.len(), "only the other client");
        proxy.finish();
    }
}

/// Goal: a peer that is not trusted is its own address, whatever it writes; so it drains nobody's limit but its own.
#[test]
fn a_stranger_that_names_another_drains_its_own_limit() {
    let upstream = Serving::ok();
    let lines = "limit = [{ window = \"3/10s\" }]";
    let setup = Setup {
        wire: "trusted = [\"10.0.0.0/8\"]",
        ..setup(&upstream, "{ forwarded = 1 }", lines)
    };
    let proxy = setup.start_clocked();
    for by in [By::Http1, By::Http2, By::Http1] {
        assert_eq!(call(&proxy, by, &with("x-forwarded-for", "192.0.2.1")).0, 200);
    }
    for value in ["192.0.2.1", "192.0.2.2", "10.0.0.1, 192.0.2.3", "garbage"] {
        let (status, document) = call(&proxy, By::Http1, &with("x-forwarded-for", value));
        assert_eq!(
            (status, &document["scope"]),
            (429, &"/default/api/k=127.0.0.1".into()),
            "{value}"
        );
    }
    proxy.finish();
}

/// Goal: a call weighs what it says, exactly; one that does not say it, or says no number, is refused and charged nothing.
#[test]
fn a_call_weighs_what_it_says() {
    for by in BOTH {
        for (weight, ask) in [
            ("{ header = \"x-cost\", scale = 1 }", with as fn(&'static str, &str) -> Ask),
            ("{ query = \"cost\", scale = 1 }", |_, value| to(&format!("/x?cost={value}"))),
        ] {
            let upstream = Serving::ok();
            let lines =
                format!("weight = {weight}\nlimit = [{{ window = \"100/10s\", by = \"weight\" }}]");
            let proxy = Setup::route(upstream.address(), &lines).start_clocked();
            for value in ["-1", "1e400", "x", "0x10", "99999999999999999999", ""] {
                let (status, document) = call(&proxy, by, &ask("x-cost", value));
                assert_eq!(
                    (status, &document["code"]),
                    (400, &"bad-key".into()),
                    "{weight} {value}"
                );
            }
            assert_eq!(call(&proxy, by, &to("/x")).0, 400, "nothing is said");
            for (value, status) in
                [("9.1", 200), ("0.95", 429), ("0.81", 200), ("0.01", 429), ("0", 200)]
            {
                assert_eq!(
                    call(&proxy, by, &ask("x-cost", value)).0,
                    status,
                    "{by:?} {weight} {value}"
                );
            }
            let accounts = proxy.finish();
            assert_eq!(accounts["invalid"], 7);
        }
    }
}

/// Goal: a product of two is exact, a constant is what it is, and the length of a body is what its head says.
#[test]
fn products_constants_and_lengths() {
    let upstream = Serving::ok();
    let limit = "limit = [{ window = \"10/10s\", by = \"weight\" }]";
    let lines = format!("weight = {{ query = \"n\", times = \"p\", missing = 4 }}\n{limit}");
    let proxy = Setup::route(upstream.address(), &lines).start_clocked();
    for (target, status) in
        [("/?n=3&p=1.9", 200), ("/?p=3", 200), ("/?n=1&p=1", 429), ("/?n=1&p=0", 200)]
    {
        assert_eq!(call(&proxy, By::Http1, &to(target)).0, status, "{target}");
    }
    proxy.finish();

    let proxy = Setup::route(upstream.address(), &format!("weight = 5\n{limit}")).start_clocked();
    assert_eq!(
        [200, 200, 429].map(|status| (status, proxy.get("").status())),
        [(200, 200), (200, 200), (429, 429)]
    );
    proxy.finish();

    let proxy =
        Setup::route(upstream.address(), &format!("weight = \"length\"\n{limit}")).start_clocked();
    let mut client = proxy.client();
    for (body, status) in [("123456", 200), ("12345", 429), ("1234", 200), ("", 200)] {
        let length = body.len();
        client.send(&format!(
            "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}"
        ));
        let answer = client.answer();
        assert_eq!(answer.status(), status, "{body}");
        if status != 200 {
            client = proxy.client();
        }
    }
    client.send(
        "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    );
    let answer = client.answer();
    assert_eq!(
        (answer.status(), answer.code()),
        (400, "bad-key".to_owned()),
        "nobody knows its length"
    );
    proxy.finish();
}
