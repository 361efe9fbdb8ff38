//! Clients that connect by TLS: the same calls, the same kills, and certificates that change while it runs.

use super::support::upstream::{Serving, Upstream};
use super::support::{LIMIT, Proxy, Setup, eventually, room};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Socket, Type};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// An authority, and who it signed: certificate and key as PEM.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// Files of a server's certificate, and the lines that name them.
struct Files {
    dir: TempDir,
    authority: Authority,
}

impl Files {
    fn new() -> Files {
        let files = Files { dir: room(), authority: Authority::new() };
        files.renew();
        std::fs::write(files.dir.path().join("ca.pem"), &files.authority.pem).unwrap();
        files
    }

    fn renew(&self) {
        let (certificate, key) = self.authority.sign("localhost");
        std::fs::write(self.dir.path().join("cert.pem"), certificate).unwrap();
        std::fs::write(self.dir.path().join("key.pem"), key).unwrap();
    }

    fn setup(&self, upstream: SocketAddr, more: &str) -> Setup {
        let at = |name: &str| Path::new(self.dir.path()).join(name).display().to_string();
        let mut setup = Setup::route(upstream, "");
        setup.rules = format!(
            "[listen.tls]\ncertificate = \"{}\"\nkey = \"{}\"\n{}\n{}",
            at("cert.pem"),
            at("key.pem"),
            more.replace("CA", &at("ca.pem")),
            setup.rules
        );
        setup
    }

    fn client(&self, own: Option<(String, String)>, protocols: &[&[u8]]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }

    fn connect(&self, proxy: &Proxy) -> Secure {
        Secure::connect(proxy, self.client(None, &[]))
    }
}

/// A client's end.
struct Secure(StreamOwned<ClientConnection, TcpStream>);

impl Secure {
    fn connect(proxy: &Proxy, config: Arc<ClientConfig>) -> Secure {
        let socket = TcpStream::connect(proxy.data()).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.set_write_timeout(Some(LIMIT)).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        Secure(StreamOwned::new(ClientConnection::new(config, name).unwrap(), socket))
    }

    /// One that takes little of what it does not read.
    fn narrow(proxy: &Proxy, config: Arc<ClientConfig>) -> Secure {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(32 * 1024).unwrap();
        socket.connect(&proxy.data().into()).unwrap();
        let socket = TcpStream::from(socket);
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.set_write_timeout(Some(LIMIT)).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        Secure(StreamOwned::new(ClientConnection::new(config, name).unwrap(), socket))
    }

    fn say(&mut self, words: &str) {
        self.0.write_all(words.as_bytes()).unwrap();
        self.0.flush().unwrap();
    }

    /// One call; status and body, whose length must be told.
    fn ask(&mut self, request: &[u8]) -> std::io::Result<(u16, Vec<u8>)> {
        self.0.write_all(request)?;
        self.0.flush()?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body)?;
        Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), body))
    }

    fn get(&mut self) -> std::io::Result<(u16, Vec<u8>)> {
        self.ask(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n")
    }

    fn certificate(&self) -> Vec<u8> {
        self.0.conn.peer_certificates().unwrap()[0].to_vec()
    }
}

/// Goal: a call by TLS is a call: one after the other on a connection, with bodies of many records both ways, and the upstream is
/// told how it came.
#[test]
fn calls_pass_by_tls() {
    let files = Files::new();
    let upstream = Serving::start(|request| {
        let body = String::from_utf8(request.body.clone()).unwrap();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    });
    let proxy = files.setup(upstream.address(), "").start();
    let mut client = files.connect(&proxy);
    assert_eq!(client.get().unwrap(), (200, Vec::new()));
    for length in [1, 16_383, 16_384, 16_385, 3_000_000] {
        let body = "0123456789".repeat(length / 10 + 1)[..length].to_owned();
        let head = format!("POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
        let (status, echo) = client.ask((head + &body).as_bytes()).unwrap();
        assert!(status == 200 && echo == body.as_bytes(), "{length}");
    }
    assert_eq!(upstream.heard()[0].head.field("x-forwarded-proto"), Some("https"));
    assert_eq!(upstream.connections(), 1);
    drop(client);
    proxy.finish();
}

/// Goal: ALPN chooses HTTP/2, and its streams are served.
#[test]
fn alpn_chooses_http2() {
    let files = Files::new();
    let upstream = Serving::ok();
    let proxy = files.setup(upstream.address(), "").start();
    let (address, config) = (proxy.data(), files.client(None, &[b"h2", b"http/1.1"]));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, socket).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(connection);
        for _ in 0..3 {
            let request = Request::get("https://a/x").body(Empty::<Bytes>::new()).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.status(), 200);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, "ok");
        }
        drop(sender);
        driver.await.unwrap().unwrap();
    });
    proxy.finish();
    assert_eq!(upstream.heard().len(), 3);
}

/// Goal: a client that offers nothing but HTTP/1.0, as `curl --http1.0` does, is served; one that offers nothing we speak is not.
#[test]
fn http_10_by_its_own_name_is_served() {
    let files = Files::new();
    let upstream = Serving::start(|_| "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned());
    let proxy = files.setup(upstream.address(), "").start();
    let mut client = Secure::connect(&proxy, files.client(None, &[b"http/1.0"]));
    let answer = client.ask(b"GET /x HTTP/1.0\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(answer, (200, b"ok".to_vec()));
    assert!(Secure::connect(&proxy, files.client(None, &[b"gopher"])).get().is_err());
    proxy.finish();
}

/// Goal: who speaks in clear where TLS is asked for is served nothing, and counted.
#[test]
fn nothing_passes_in_clear() {
    let files = Files::new();
    let upstream = Serving::ok();
    let proxy = files.setup(upstream.address(), "").start();
    let mut client = proxy.client();
    client.send("GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    // An alert of TLS, which is no HTTP.
    assert!(!client.rest().starts_with(b"HTTP"));
    eventually("its count", || {
        (proxy.metric("breaker_tls_handshake_failures_total") == 1.0).then_some(())
    });
    let mut client = files.connect(&proxy);
    assert_eq!(client.get().unwrap().0, 200);
    drop(client);
    proxy.finish();
    assert_eq!(upstream.heard().len(), 1);
}

/// Goal: with an authority for clients, who shows none of its certificates, or another's, is served nothing; unless none is
/// required: then one that is shown must still be good.
#[test]
fn clients_show_certificates() {
    for (required, lines) in [
        (true, "client_ca = \"CA\""),
        (false, "client_ca = \"CA\"\nclient_certificate = \"optional\""),
    ] {
        let files = Files::new();
        let upstream = Serving::ok();
        let proxy = files.setup(upstream.address(), lines).start();
        let served = |own| Secure::connect(&proxy, files.client(own, &[])).get().is_ok();
        assert!(served(Some(files.authority.sign("desk"))));
        assert_eq!(served(None), !required);
        assert!(!served(Some(Authority::new().sign("stranger"))));
        let refused = if required { 2.0 } else { 1.0 };
        eventually("the refusals", || {
            (proxy.metric("breaker_tls_handshake_failures_total") == refused).then_some(())
        });
        proxy.finish();
    }
}

/// Goal: a client is counted, and killed, by what its certificate says, whichever of its certificates it shows and on whichever connection,
/// also one that takes its session up again; who shows none lacks the key.
#[test]
fn a_certificate_names_its_client() {
    let files = Files::new();
    let upstream = Serving::ok();
    let lines = "client_ca = \"CA\"\nclient_certificate = \"optional\"";
    let mut setup = files.setup(upstream.address(), lines);
    setup.rules += "[[routes.keys]]\nname = \"desk\"\nfrom = { certificate = \"dns\" }\n\
        limit = [{ window = \"2/1h\" }]\n";
    let proxy = setup.start();
    let status =
        |config: &Arc<ClientConfig>| Secure::connect(&proxy, Arc::clone(config)).get().unwrap().0;
    let own = |name: &str| files.client(Some(files.authority.sign(name)), &[]);
    let (one, other) = (own("desk.one"), own("desk.two"));
    assert_eq!([status(&one), status(&one), status(&one)], [200, 200, 429]);
    assert_eq!(status(&own("Desk.One")), 429, "another certificate, the same client");
    assert_eq!(status(&other), 200);
    assert_eq!(status(&files.client(None, &[])), 400);
    proxy.cut("/default/api/desk=DESK.TWO");
    assert_eq!(status(&other), 503);
    assert_eq!(proxy.state_of("/default/api/desk=desk.two"), "killed");
    assert_eq!(status(&own("desk.three")), 200);
    proxy.finish();
}

/// Goal: a renewed certificate is shown to new connections, those that are there serve on, and one that cannot be used changes
/// nothing but what is told.
#[test]
fn renewed_certificates_are_shown() {
    let files = Files::new();
    let upstream = Serving::ok();
    let proxy = files.setup(upstream.address(), "").start();
    let certificates = proxy.plane().certificates.clone().unwrap();
    let mut old = files.connect(&proxy);
    assert_eq!(old.get().unwrap().0, 200);
    files.renew();
    assert!(certificates.look_again().unwrap());
    let mut new = files.connect(&proxy);
    assert_eq!(new.get().unwrap().0, 200);
    assert_eq!(old.get().unwrap().0, 200);
    assert_ne!(old.certificate(), new.certificate());
    std::fs::write(files.dir.path().join("key.pem"), "nonsense").unwrap();
    assert!(certificates.look_again().is_err());
    let mut next = files.connect(&proxy);
    assert_eq!(next.get().unwrap().0, 200);
    assert_eq!(next.certificate(), new.certificate());
    assert_eq!(proxy.metric("breaker_tls_certificate_failing"), 1.0);
    assert_eq!(proxy.metric("breaker_tls_certificate_renewals_total"), 1.0);
    drop((old, new, next));
    proxy.finish();
}

/// Goal: a cut ends an answer that flows by TLS, without the end that would make it look whole.
#[test]
fn a_cut_ends_what_flows_by_tls() {
    let files = Files::new();
    let upstream = Upstream::start();
    let proxy = files.setup(upstream.address(), "").start();
    let mut client = files.connect(&proxy);
    client.0.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut exchange = upstream.accept();
    exchange.request();
    exchange.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf");
    let mut seen = Vec::new();
    while !seen.ends_with(b"half") {
        let mut byte = [0];
        client.0.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    proxy.cut("/");
    let end = client.0.read_to_end(&mut seen);
    assert!(end.is_err() && seen.ends_with(b"half"), "{end:?}");
    exchange.assert_ends();
    proxy.finish();
}

/// Goal: what TLS keeps for a client that does not take it is still owed: a cut ends it, and so does the deadline of who stops reading,
/// wherever in the answer that is.
/// Method: answers of so many lengths that of some only the last bytes are kept.
#[test]
fn what_tls_kept_was_out_of_reach() {
    for cut in [true, false] {
        let files = Files::new();
        let upstream = Serving::start(|request| {
            let length: usize = request.head.word(1)[1..].parse().unwrap();
            let body = "x".repeat(length);
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}")
        });
        let deadlines = if cut { "" } else { "body_idle = \"200ms\"" };
        let proxy = Setup { deadlines, ..files.setup(upstream.address(), "") }.start();
        let config = files.client(None, &[]);
        let clients: Vec<_> = (1..60)
            .map(|step| {
                let mut client = Secure::narrow(&proxy, Arc::clone(&config));
                let length = step * 16_000;
                client.say(&format!(
                    "GET /{length} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
                ));
                client
            })
            .collect();
        eventually("all calls", || (upstream.heard().len() == clients.len()).then_some(()));
        if cut {
            proxy.cut("/");
        }
        eventually("their ends", || (proxy.metric("breaker_connections") == 0.0).then_some(()));
        drop(clients);
        proxy.finish();
    }
}

/// Goal: who agrees on HTTP/2 and then says nothing, or half of a handshake, has the same deadline as who says nothing at all.
#[test]
fn silence_behind_a_handshake_had_no_end() {
    let files = Files::new();
    let upstream = Serving::ok();
    let setup = files.setup(upstream.address(), "");
    let proxy = Setup { deadlines: "head = \"300ms\"", ..setup }.start();
    let mut half = TcpStream::connect(proxy.data()).unwrap();
    half.write_all(&[0x16, 3, 1, 2, 0, 1]).unwrap();
    let mut ends: Vec<_> = [&b"h2"[..], b"http/1.1"]
        .into_iter()
        .map(|protocol| {
            let mut client = Secure::connect(&proxy, files.client(None, &[protocol]));
            client.0.conn.complete_io(&mut client.0.sock).unwrap();
            client.0.sock
        })
        .collect();
    ends.push(half);
    for mut end in ends {
        end.set_read_timeout(Some(LIMIT)).unwrap();
        let ended = std::io::copy(&mut end, &mut std::io::sink());
        assert!(!ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    }
    eventually("their places", || (proxy.metric("breaker_connections") == 0.0).then_some(()));
    assert_eq!(proxy.metric("breaker_slow_heads_total"), 3.0);
    proxy.finish();
}

/// Goal: what the upstream of a WebSocket says last reaches a client by TLS, however slowly it reads, with an end that is said.
#[test]
fn last_words_through_a_tunnel_by_tls_were_lost() {
    let files = Files::new();
    let upstream = Upstream::start();
    let mut setup = files.setup(upstream.address(), "");
    setup.rules.push_str("websocket = true\n");
    let proxy = setup.start();
    let mut client = Secure::narrow(&proxy, files.client(None, &[]));
    client.say("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let mut exchange = upstream.accept();
    exchange.head();
    exchange.send(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    let words = vec![b'w'; 3_000_000];
    let mut writer = exchange.writer();
    drop(exchange);
    let sender = std::thread::spawn(move || {
        writer.send_bytes(&words);
        writer.end_writing();
    });
    let mut heard = Vec::new();
    client.0.read_to_end(&mut heard).expect("an end that was said");
    sender.join().unwrap();
    let head = heard.windows(4).position(|piece| piece == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(heard.len() - head, 3_000_000);
    proxy.finish();
}
