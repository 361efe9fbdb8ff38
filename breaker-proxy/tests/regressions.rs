//! What went wrong once, each on a whole proxy on loopback; it asserts no time.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may stop at what it did not expect")]

use breaker_proxy::app::{self, Running};
use breaker_proxy::config::check;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

/// Long beside anything that is waited for: only a test that fails takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

fn proxy(dir: &Path, data: &str, rest: &str) -> Running {
    let text = format!(
        "[listen]\ndata = \"{data}\"\nadmin = \"127.0.0.1:0\"\nworkers = 1\n[state]\ndir = \"{}\"\n{rest}",
        dir.join("state").display()
    );
    let config = check::load(&text, "test", &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
    app::start(config).unwrap_or_else(|error| panic!("{error}"))
}

fn route(upstream: &str, rest: &str) -> String {
    format!(
        "[[groups]]\nname = \"g\"\n[[routes]]\nname = \"r\"\ngroup = \"g\"\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"{upstream}\"\n{rest}"
    )
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends, and reads up to the end of the connection or of the first head.
fn head(to: SocketAddr, request: &str) -> String {
    let mut stream = connect(to);
    stream.write_all(request.as_bytes()).unwrap();
    read_head(&mut stream)
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

fn status(head: &str) -> &str {
    head.get(9..12).unwrap_or("none")
}

fn order(proxy: &Running, verb: &str, scope: &str) -> String {
    let body = "{\"reason\":\"test\"}";
    let request = format!(
        "POST /v1/{verb}{scope} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
        proxy.token(),
        body.len()
    );
    status(&head(proxy.admin_addr(), &request)).to_owned()
}

/// Goal: an answer does not wait for the rest of a pipelined head behind its request.
#[test]
fn an_answer_was_held_back_by_bytes_behind_its_request() {
    let root = tempfile::tempdir().unwrap();
    let proxy = proxy(root.path(), "127.0.0.1:0", &route("builtin:origin", ""));
    let answer = head(proxy.data_addr(), "GET /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HT");
    assert_eq!(status(&answer), "200");
}

/// Goal: garbage is answered, not only hung up on.
#[test]
fn garbage_was_hung_up_on_without_an_answer() {
    let root = tempfile::tempdir().unwrap();
    let proxy = proxy(root.path(), "127.0.0.1:0", &route("builtin:origin", ""));
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(40_000));
    assert_eq!(status(&head(proxy.data_addr(), "\x01\x02 / HTTP/1.1\r\n\r\n")), "400");
    let answer = head(proxy.data_addr(), &long);
    assert_eq!(status(&answer), "431");
}

/// Goal: of an answer that its client does not read no more is taken from the upstream than a few buffers hold.
#[test]
fn an_answer_that_nobody_read_was_held_whole() {
    const WHOLE: usize = 256 << 20;
    let root = tempfile::tempdir().unwrap();
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap());
    let proxy = proxy(root.path(), "127.0.0.1:0", &route(&url, ""));
    let mut client = connect(proxy.data_addr());
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let (mut server, _) = upstream.accept().unwrap();
    read_head(&mut server);
    server
        .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {WHOLE}\r\n\r\n").as_bytes())
        .unwrap();
    // When nobody takes anything for so long, nobody will.
    server.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let piece = vec![b'x'; 64 << 10];
    let mut taken = 0;
    while taken < WHOLE && server.write_all(&piece).is_ok() {
        taken += piece.len();
    }
    assert!(taken < WHOLE / 4, "{taken} bytes were taken that nobody read");
}

/// Goal: a kept-alive connection that waits after its answer owes nothing: it ends without an answer to a request that
/// nobody sent, and none is counted.
#[test]
fn an_idle_connection_was_counted_as_a_slow_request() {
    let root = tempfile::tempdir().unwrap();
    let text = format!("[deadlines]\nidle = \"1s\"\n{}", route("builtin:origin", ""));
    let proxy = proxy(root.path(), "127.0.0.1:0", &text);
    let mut client = connect(proxy.data_addr());
    client
        .write_all(
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n",
        )
        .unwrap();
    assert_eq!(status(&read_head(&mut client)), "100");
    client.write_all(b"abc").unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("HTTP/1.1 200") && !rest.contains("408"), "{rest}");
    let totals = breaker_proxy::data::counts::Totals::of(&proxy.plane().shards);
    assert_eq!((totals.offered, totals.invalid), (1, 0));
}

/// Goal: however many keys strangers tripped, the proxy starts again, and they are tripped still.
#[test]
fn tables_full_of_tripped_keys_kept_it_from_starting() {
    let root = tempfile::tempdir().unwrap();
    let keys = "[[routes.keys]]\nname = \"client\"\nfrom = { header = \"x-client\" }\nlimit = [{ window = \"3/10s\", of = \"offered\", on_breach = \"trip\" }]\n";
    let text = format!("[bounds]\nkeys = 256\n{}", route("builtin:origin", keys));
    let first = proxy(root.path(), "127.0.0.1:0", &text);
    let mut tripped = 0;
    for key in 0..400 {
        tripped += usize::from(order(&first, "trip", &format!("/g/r/client=k{key}")) == "200");
    }
    assert!(tripped > 200, "{tripped}");
    assert!(first.stop().durable);
    let second = proxy(root.path(), "127.0.0.1:0", &text);
    assert_eq!(second.facts().tripped.len(), tripped);
}

/// Goal: a kill names a peer in whatever spelling of its address, and stops it; what is no peer is no scope.
#[test]
fn a_kill_of_a_peer_spelled_otherwise_stopped_nobody() {
    let root = tempfile::tempdir().unwrap();
    let keys = "[[routes.keys]]\nname = \"peer\"\nfrom = \"peer\"\nlimit = [{ rate = \"1000/s\", burst = 1000 }]\n";
    let proxy = proxy(root.path(), "127.0.0.1:0", &route("builtin:origin", keys));
    let get = || head(proxy.data_addr(), "GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(status(&get()), "200");
    assert_eq!(order(&proxy, "kill", "/g/r/peer=localhost"), "400");
    assert_eq!(order(&proxy, "kill", "/g/r/peer=::ffff:127.0.0.1"), "200");
    assert_eq!(status(&get()), "503");
}
