//! gRPC: what its clients are told when a call is refused, fails, or is cut in its middle.

use super::support::h2::{Event, H2, Stream};
use super::support::h2_server::{Far, RESET};
use super::support::upstream::{Serving, Upstream};
use super::support::wire::Wire;
use super::support::{Proxy, Setup, eventually};
use hyper::{HeaderMap, Request};
use std::net::SocketAddr;

/// One message of two bytes.
const MESSAGE: &str = "\0\0\0\0\x02hi";

/// A call by HTTP/2, with these fields more, whose request has no body.
fn call(client: &H2, path: &str, fields: &[(&str, &str)]) -> Stream {
    let mut request = Request::post(format!("http://a{path}"));
    for (name, value) in [("content-type", "application/grpc+proto"), ("te", "trailers")] {
        if fields.iter().all(|(own, _)| *own != name) {
            request = request.header(name, value);
        }
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    client.start(request.body(()).unwrap(), false)
}

fn field<'m>(fields: &'m HeaderMap, name: &str) -> &'m str {
    fields.get(name).map_or("", |value| value.to_str().unwrap())
}

/// The status of an answer that has no message, with its words and its pushback: one block of fields, and the end.
fn refusal(stream: &Stream, kind: &str) -> (String, String, String) {
    let (status, fields) = stream.head();
    assert_eq!((status.as_u16(), field(&fields, "content-type")), (200, kind), "{fields:?}");
    assert!(matches!(stream.next(), Event::End), "an answer of one block of fields");
    let text = |name| field(&fields, name).to_owned();
    (text("grpc-status"), text("grpc-message"), text("grpc-retry-pushback-ms"))
}

/// Where an upstream would be, and none is.
fn nobody() -> SocketAddr {
    Upstream::start().close()
}

/// Goal: whatever refuses a gRPC call, its client is answered in gRPC's words: 200 and a status among the fields, with the reason, and when to
/// try again, or that it must not.
#[test]
fn refusals_speak_grpc() {
    let serving = Serving::ok();
    let to = serving.address();
    let keyed = "[[routes.keys]]\nname = \"k\"\nfrom = { header = \"x-k\" }";
    let body = "[[routes.keys]]\nname = \"k\"\nfrom = { json = \"/k\" }";
    type Case<'c> = (&'c str, Setup, fn(&Proxy), &'c [(&'c str, &'c str)], [&'c str; 3]);
    let cases: [Case<'_>; 9] = [
        (
            "limited",
            Setup::route(to, "limit = [{ window = \"1/10s\" }]"),
            |proxy| drop(proxy.get("")),
            &[],
            ["8", "limited: a limit of this scope is used up", "10000"],
        ),
        (
            "killed",
            Setup::route(to, ""),
            |proxy| drop(proxy.halt("/default/api")),
            &[],
            [
                "14",
                "killed: this scope is killed until a person lifts it; do not retry; scope /default/api",
                "-1",
            ],
        ),
        ("cut", Setup::route(to, ""), |proxy| drop(proxy.cut("/")), &[], ["14", "killed: ", "-1"]),
        (
            "tripped",
            Setup::route(to, ""),
            |proxy| drop(proxy.order("trip", "/default/api", r#"{"reason":"x"}"#)),
            &[],
            ["14", "tripped: ", "-1"],
        ),
        ("no key", Setup::route(to, keyed), |_| {}, &[], ["3", "bad-key: ", ""]),
        (
            "no words but ASCII",
            Setup::route(to, keyed),
            |_| {},
            &[("x-k", "a"), ("x_k", "b")],
            ["3", "bad-key: ", ""],
        ),
        (
            "a body that is none",
            Setup::route(to, body),
            |_| {},
            &[("content-length", "0")],
            ["3", "bad-key: ", ""],
        ),
        (
            "unreachable",
            Setup::route(nobody(), ""),
            |_| {},
            &[],
            ["14", "upstream-unreachable: ", ""],
        ),
        (
            "no route",
            Setup::new(format!(
                "[[routes]]\nname = \"api\"\nmatch = {{ path = \"/other\" }}\nupstream = \"http://{to}\"\n"
            )),
            |_| {},
            &[],
            ["12", "unrouted: ", ""],
        ),
    ];
    for (name, setup, before, fields, [status, words, pushback]) in cases {
        let proxy = setup.start_clocked();
        before(&proxy);
        let client = H2::connect(proxy.data());
        let (own, said, push) = refusal(&call(&client, "/x", fields), "application/grpc");
        assert_eq!((own.as_str(), push.as_str()), (status, pushback), "{name}: {said}");
        assert!(said.starts_with(words), "{name}: {said}");
        client.assert_up();
        proxy.finish();
    }
}

/// Goal: what an upstream does not do, or not in time, is told in gRPC's words as well; and gRPC-Web hears its own type.
#[test]
fn failures_speak_grpc() {
    let upstream = Upstream::start();
    let setup = Setup { deadlines: "answer = \"100ms\"", ..Setup::route(upstream.address(), "") };
    let proxy = setup.start();
    let client = H2::connect(proxy.data());
    let late = call(&client, "/x", &[]);
    let mut silent = upstream.accept();
    silent.request();
    let (status, words, _) = refusal(&late, "application/grpc");
    assert_eq!((status.as_str(), words.starts_with("upstream-timeout: ")), ("4", true), "{words}");
    let web = call(&client, "/x", &[("content-type", "application/grpc-web+proto")]);
    let mut broken = upstream.accept();
    broken.request();
    broken.send("nonsense\r\n\r\n");
    let (status, words, _) = refusal(&web, "application/grpc-web");
    assert_eq!((status.as_str(), words.starts_with("upstream-broken: ")), ("14", true), "{words}");
    proxy.finish();
}

/// Goal: by HTTP/1.1 too a refusal of gRPC is an answer without a body; and what is no gRPC hears of it as ever.
#[test]
fn only_grpc_hears_grpc() {
    let serving = Serving::ok();
    let proxy = Setup::route(serving.address(), "").start_clocked();
    proxy.halt("/");
    let ask = |kind: &str, method: &str| {
        let mut client = Wire::connect(proxy.data());
        client.send(&format!(
            "{method} /x HTTP/1.1\r\nhost: a\r\ncontent-type: {kind}\r\ncontent-length: 0\r\n\r\n"
        ));
        client.answer()
    };
    let answer = ask("application/grpc", "POST");
    assert_eq!((answer.status(), answer.text().as_str()), (200, ""));
    assert_eq!(answer.head.field("grpc-status"), Some("14"));
    assert_eq!(answer.head.field("content-length"), Some("0"));
    for (kind, method) in
        [("application/grpc", "GET"), ("application/json", "POST"), ("application/grpcx", "POST")]
    {
        let answer = ask(kind, method);
        assert_eq!((answer.status(), answer.code().as_str()), (503, "killed"), "{method} {kind}");
        assert_eq!(answer.head.field("grpc-status"), None);
    }
    proxy.finish();
}

/// A call that has been answered with these bytes of messages.
fn begun(client: &H2, upstream: &Upstream, messages: &str) -> (Stream, Wire) {
    let stream = call(client, "/x", &[]);
    let mut exchange = upstream.accept();
    let request = exchange.request();
    assert_eq!(request.head.field("te"), Some("trailers"), "the upstream may send a status");
    let length = messages.len();
    exchange.send(&format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n\
         {length:x}\r\n{messages}\r\n"
    ));
    let (status, fields) = stream.head();
    assert_eq!((status.as_u16(), field(&fields, "grpc-status")), (200, ""));
    let mut come = Vec::new();
    while come.len() < length {
        match stream.next() {
            Event::Data(data) => come.extend_from_slice(&data),
            other => panic!("no data but {other:?}"),
        }
    }
    assert_eq!(come, messages.as_bytes());
    (stream, exchange)
}

/// Goal: a call that is cut between two messages ends with a status, and one that is cut within a message by a reset of its stream, since no
/// status may follow half a message; the connection stays.
#[test]
fn a_cut_call_ends_with_a_status_where_it_can() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let client = H2::connect(proxy.data());
    let (whole, mut one) = begun(&client, &upstream, &format!("{MESSAGE}{MESSAGE}"));
    let (half, mut other) = begun(&client, &upstream, &format!("{MESSAGE}{}", &MESSAGE[..6]));
    let cut = proxy.cut("/default/api");
    assert_eq!(cut["severed"], 2);
    let Event::Trailers(trailers) = whole.next() else { panic!("no trailers") };
    assert_eq!(field(&trailers, "grpc-status"), "14");
    assert_eq!(field(&trailers, "grpc-retry-pushback-ms"), "-1");
    assert!(field(&trailers, "grpc-message").starts_with("killed: "), "{trailers:?}");
    assert!(matches!(whole.next(), Event::End));
    assert!(matches!(half.next(), Event::Broken), "reset");
    one.assert_ends();
    other.assert_ends();
    client.assert_up();
    proxy.finish();
}

/// Goal: an upstream that breaks off between two messages is told of by a status, and one that ends well by its own.
#[test]
fn an_end_of_the_upstream_is_told_by_a_status() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let client = H2::connect(proxy.data());
    let (broken, exchange) = begun(&client, &upstream, MESSAGE);
    drop(exchange);
    let Event::Trailers(trailers) = broken.next() else { panic!("no trailers") };
    assert_eq!(field(&trailers, "grpc-status"), "14");
    assert!(field(&trailers, "grpc-message").starts_with("upstream-broken: "), "{trailers:?}");
    assert!(matches!(broken.next(), Event::End));
    let (good, mut exchange) = begun(&client, &upstream, MESSAGE);
    exchange.send("0\r\ngrpc-status: 5\r\n\r\n");
    let Event::Trailers(trailers) = good.next() else { panic!("no trailers") };
    assert_eq!(field(&trailers, "grpc-status"), "5");
    assert!(matches!(good.next(), Event::End));
    assert_eq!(proxy.finish()["upstream_errors"], 1);
}

/// Goal: the same holds with an upstream over HTTP/2, whose streams are reset; its connection stays, and an end of it is told by a status.
#[test]
fn a_call_over_http2_to_the_upstream_is_cut_as_well() {
    let upstream = Upstream::start();
    let proxy = Setup::new(format!(
        "[[upstreams]]\nname = \"u\"\nendpoints = \"http://{}\"\nprotocol = \"h2\"\n\
         [[routes]]\nname = \"api\"\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"u\"\n",
        upstream.address()
    ))
    .start();
    let client = H2::connect(proxy.data());
    let first = call(&client, "/x", &[]);
    let mut far = Far::accept(&upstream, &[]);
    let mut begin = |stream: &Stream, messages: &str| {
        let own = far.request();
        far.head(own, false);
        far.data(own, messages.as_bytes(), false);
        stream.head();
        assert!(matches!(stream.next(), Event::Data(data) if data == messages));
        own
    };
    let whole = begin(&first, MESSAGE);
    let second = call(&client, "/x", &[]);
    let half = begin(&second, &MESSAGE[..6]);
    let cut = proxy.cut("/default/api");
    assert_eq!(cut["severed"], 2);
    let Event::Trailers(trailers) = first.next() else { panic!("no trailers") };
    assert_eq!(field(&trailers, "grpc-status"), "14");
    assert!(matches!(first.next(), Event::End));
    assert!(matches!(second.next(), Event::Broken), "reset");
    let mut reset: Vec<u32> = (0..2)
        .map(|_| {
            let came = far.next();
            assert_eq!(came.kind, RESET, "{came:?}");
            came.stream
        })
        .collect();
    reset.sort_unstable();
    assert_eq!(reset, [whole, half]);
    proxy.lift("/default/api");
    let third = call(&client, "/x", &[]);
    let own = far.request();
    far.head(own, false);
    far.data(own, MESSAGE.as_bytes(), false);
    third.head();
    assert!(matches!(third.next(), Event::Data(_)));
    drop(far);
    let Event::Trailers(trailers) = third.next() else { panic!("no trailers") };
    assert_eq!(field(&trailers, "grpc-status"), "14");
    client.assert_up();
    proxy.finish();
}

/// Goal: who stopped reading a call that is cut is not waited for: the call is over at once.
#[test]
fn a_cut_call_is_over_though_nobody_reads() {
    let upstream = Upstream::start();
    let proxy = Setup::route(upstream.address(), "").start();
    let client = H2::connect(proxy.data());
    let (stream, mut exchange) = begun(&client, &upstream, MESSAGE);
    proxy.cut("/");
    drop(stream);
    exchange.assert_ends();
    eventually("no call in flight", || (proxy.status()["calls_open"] == 0).then_some(()));
    proxy.finish();
}
