//! A whole reader: a stranger's query, field, token and body; what it takes for a key is always the spelling that a person would kill.
#![no_main]

use breaker_core::{Breaker, Call, Capacity, Class, GroupSpec, PolicySpec, RouteId, RouteSpec, ScopeSpec, Seed};
use breaker_proxy::config::{KeyFrom, KeySource, Missing, Segment, Unreadable, Weight};
use breaker_proxy::inspect::json::Pointer;
use breaker_proxy::inspect::prefix::Seen;
use breaker_proxy::keys::{Given, Reader, spelled};
use breaker_proxy::path;
use breaker_proxy::wire::asked::Asked;
use hyper::Request;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static HOUSE: LazyLock<(Breaker, RouteId)> = LazyLock::new(|| {
    let breaker = Breaker::new(Capacity { scopes: 4, keys: 4 }, Seed([1, 2]));
    let mut spec = PolicySpec::default();
    spec.groups.push(GroupSpec { name: "g".to_owned(), scope: ScopeSpec::default() });
    let (name, group) = ("r".to_owned(), "g".to_owned());
    spec.routes.push(RouteSpec { name, group, class: Class::Normal, scope: ScopeSpec::default() });
    let policy = breaker.compile(&spec).expect("a policy");
    let route = policy.routes().next().expect("a route").0;
    (breaker, route)
});

fn sources() -> [KeyFrom; 7] {
    [
        KeyFrom::Query("a".to_owned()),
        KeyFrom::Header("x-a".parse().expect("a name")),
        KeyFrom::Segment(Segment::At(1)),
        KeyFrom::Claim(Pointer::member("a")),
        KeyFrom::Json(Pointer::member("a")),
        KeyFrom::Form("a".to_owned()),
        KeyFrom::Forwarded(2),
    ]
}

fn reader(from: KeyFrom) -> Reader {
    let source = KeySource { from, missing: Missing::Share, unreadable: Unreadable::Refuse };
    let quantity = Weight::Quantity {
        from: KeyFrom::Query("n".to_owned()),
        times: Some(KeyFrom::Query("p".to_owned())),
        scale: 2,
        missing: Some(1),
    };
    let trusted = ["10.0.0.0/8".parse().expect("a network")].into();
    Reader::new(vec![("k".to_owned(), source)], Some(&quantity), "/{id}", trusted)
}

static READERS: LazyLock<Vec<(KeyFrom, Reader)>> =
    LazyLock::new(|| sources().into_iter().map(|from| (from.clone(), reader(from))).collect());

// Lines: the target, then the values of four fields, then the body.
fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.splitn(6, |byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let mut request = Request::builder().uri(line());
    for name in ["x-a", "authorization", "x-forwarded-for", "content-type"] {
        request = request.header(name, line());
    }
    let body = line();
    let Ok(request) = request.body(()) else { return };
    let (head, ()) = request.into_parts();
    let asked = Asked::of(&head);
    let Ok(path) = path::canonical(asked.path) else { return };
    let peer = "10.0.0.9".parse().expect("an address");
    let given = Given { head: &asked, path: &path, peer, certificate: None, length: None, body: Seen::Whole(body) };
    let (breaker, route) = &*HOUSE;
    for (from, reader) in &*READERS {
        if reader.read(breaker, &given, Call::new(*route)).is_ok() {
            reader.each_label(&given, |_, label| {
                assert_eq!(spelled(from, label).as_deref(), Some(label), "{from}");
            });
        }
    }
});
