//! The proxies that are compared: what each is told, how it is started, which version it is; it measures nothing.

use crate::admin::Admin;
use crate::error::LoadError;
use crate::rivals::child::{Running, free_port};
use crate::rivals::gauge;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A reverse proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rival {
    /// breaker-proxy with everything on.
    Breaker,
    /// `HAProxy` that only forwards: the rival that goals speak of.
    HaProxy,
    /// `HAProxy` with two stick tables that count calls, one by address and one by key.
    HaProxyLimits,
    /// nginx that only forwards.
    Nginx,
    /// Envoy that only forwards.
    Envoy,
    /// A small program on Pingora that only forwards.
    Pingora,
}

/// Where programs that are not on the search path lie.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// The breaker's own.
    pub(crate) breaker: PathBuf,
    /// Envoy and the program on Pingora.
    pub(crate) dir: PathBuf,
}

/// Where one proxy listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    /// HTTP/1.1.
    pub(crate) plain: SocketAddr,
    /// HTTP/2 without TLS, from its first byte on.
    pub(crate) http2: SocketAddr,
    /// HTTP/1.1 over TLS.
    pub(crate) tls: SocketAddr,
}

/// A proxy that runs.
pub(crate) struct Player {
    /// Which.
    pub(crate) rival: Rival,
    /// Where.
    pub(crate) ports: Ports,
    /// The breaker's admin plane, whose metrics are read meanwhile, as a scraper would.
    pub(crate) admin: Option<Admin>,
    running: Running,
    dir: TempDir,
}

/// The upstream of all: nginx with one worker.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    _running: Running,
    _dir: TempDir,
}

/// A key and its certificate for 127.0.0.1, signed by itself, in one file.
#[derive(Debug)]
pub(crate) struct Certificate {
    dir: TempDir,
}

impl Rival {
    /// All, in the table's order.
    pub(crate) const ALL: [Rival; 6] = [
        Rival::Breaker,
        Rival::HaProxy,
        Rival::HaProxyLimits,
        Rival::Nginx,
        Rival::Envoy,
        Rival::Pingora,
    ];

    /// For tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Rival::Breaker => "breaker",
            Rival::HaProxy => "HAProxy",
            Rival::HaProxyLimits => "HAProxy, limits",
            Rival::Nginx => "nginx",
            Rival::Envoy => "Envoy",
            Rival::Pingora => "Pingora",
        }
    }

    /// Why it cannot be measured over TLS, if so.
    pub(crate) fn without_tls(self) -> Option<&'static str> {
        match self {
            Rival::Pingora => Some("our program on it has no TLS"),
            _ => None,
        }
    }

    /// The program, and the argument that makes it say its version.
    fn program(self, programs: &Programs) -> (PathBuf, Option<&'static str>) {
        match self {
            Rival::Breaker => (programs.breaker.clone(), Some("--version")),
            Rival::HaProxy | Rival::HaProxyLimits => ("haproxy".into(), Some("-v")),
            Rival::Nginx => ("nginx".into(), Some("-v")),
            Rival::Envoy => (programs.dir.join("envoy"), Some("--version")),
            Rival::Pingora => (programs.dir.join("pingora-plain"), None),
        }
    }

    /// Its version.
    ///
    /// # Errors
    /// Why it cannot be run here, for the table.
    pub(crate) fn version(self, programs: &Programs) -> Result<String, String> {
        let (program, argument) = self.program(programs);
        match argument {
            Some(argument) => said(&program, argument).map(|text| version_in(&text)),
            None if program.is_file() => {
                Ok(locked(PINGORA_LOCK, "pingora-proxy").unwrap_or_else(|| "?".to_owned()))
            }
            None => Err(missing(&program)),
        }
    }

    /// Starts it before `upstream`, and waits until it listens.
    ///
    /// # Errors
    /// Whatever kept it from starting.
    pub(crate) fn start(
        self,
        programs: &Programs,
        upstream: SocketAddr,
        certificate: Option<&Certificate>,
    ) -> Result<Player, LoadError> {
        let dir = readable_dir()?;
        let (program, _) = self.program(programs);
        let mut command = Command::new(&program);
        let certificate = certificate.filter(|_| self.without_tls().is_none());
        let plain = free_port()?;
        let mut ports = Ports { plain, http2: free_port()?, tls: free_port()? };
        let mut admin = None;
        let write = |name: &str, text: &str| -> Result<PathBuf, LoadError> {
            let path = dir.path().join(name);
            fs::write(&path, text).map_err(LoadError::io("write a configuration"))?;
            Ok(path)
        };
        match self {
            Rival::Breaker => {
                ports.http2 = plain;
                // It listens in clear or by TLS.
                ports.tls = plain;
                let plane = free_port()?;
                let state = dir.path().join("state");
                let mut text = breaker(plain, plane, &state, upstream);
                if let Some(certificate) = certificate {
                    let (chain, key) = (certificate.file("cert"), certificate.file("key"));
                    text += &format!("\n[listen.tls]\ncertificate = {chain:?}\nkey = {key:?}\n");
                }
                let path = write("breaker.toml", &text)?;
                command.args(["run", "--config"]).arg(path);
                admin = Some((plane, state.join("admin.token")));
            }
            Rival::HaProxy | Rival::HaProxyLimits => {
                let limits = self == Rival::HaProxyLimits;
                let path = write("haproxy.cfg", &haproxy(ports, upstream, certificate, limits))?;
                command.args(["-db", "-f"]).arg(path);
            }
            Rival::Nginx => {
                write("nginx.conf", &nginx(ports, upstream, certificate))?;
                command.args(["-e", "error.log", "-c", "nginx.conf", "-p"]).arg(dir.path());
            }
            Rival::Envoy => {
                ports.http2 = plain;
                let path = write("envoy.json", &envoy(ports, upstream, certificate))?;
                command.args(["--concurrency", "2", "--use-dynamic-base-id", "-l", "error", "-c"]);
                command.arg(path);
            }
            Rival::Pingora => {
                ports.http2 = plain;
                command.arg(plain.to_string()).arg(upstream.to_string());
            }
        }
        let mut running = Running::start(command, self.name(), dir.path())?;
        running.listens(plain)?;
        let admin =
            admin.map(|(plane, token)| token_of(&token).map(|token| Admin::new(plane, &token)));
        Ok(Player { rival: self, ports, admin: admin.transpose()?, running, dir })
    }
}

impl Player {
    /// Its processes, as of now: nginx starts its workers after it listens.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn pids(&self) -> Result<Vec<u32>, LoadError> {
        gauge::family(self.running.pid())
    }

    /// A directory of its own, which goes with it.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Upstream {
    /// Starts it.
    ///
    /// # Errors
    /// When nginx is missing or does not start.
    pub(crate) fn start() -> Result<Upstream, LoadError> {
        crate::nginx::need("nginx", "-v")?;
        let dir = readable_dir()?;
        let addr = free_port()?;
        for (name, length) in [("1k", 1_024), ("64k", 65_536)] {
            fs::write(dir.path().join(name), vec![b'x'; length])
                .map_err(LoadError::io("write what the origin serves"))?;
        }
        fs::write(dir.path().join("nginx.conf"), origin(addr))
            .map_err(LoadError::io("write nginx.conf"))?;
        let mut command = Command::new("nginx");
        command.args(["-e", "error.log", "-c", "nginx.conf", "-p"]).arg(dir.path());
        let mut running = Running::start(command, "nginx", dir.path())?;
        running.listens(addr)?;
        Ok(Upstream { addr, _running: running, _dir: dir })
    }
}

impl Certificate {
    /// Makes one.
    ///
    /// # Errors
    /// Why there is none, for the table.
    pub(crate) fn new() -> Result<Certificate, String> {
        let dir = readable_dir().map_err(|error| error.to_string())?;
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args([
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=127.0.0.1",
                "-addext",
                "subjectAltName=IP:127.0.0.1,DNS:localhost",
                "-keyout",
                "key",
                "-out",
                "cert",
            ])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output();
        let together = || {
            let cert = fs::read(dir.path().join("cert"))?;
            let key = fs::read(dir.path().join("key"))?;
            fs::write(dir.path().join("pem"), [cert, key].concat())
        };
        match made {
            Err(error) => Err(format!("openssl: {error}")),
            Ok(made) if !made.status.success() => Err("openssl made no certificate".to_owned()),
            Ok(_) => together().map(|()| Certificate { dir }).map_err(|error| error.to_string()),
        }
    }

    /// Where it is: `cert`, `key`, or `pem` for both in one.
    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

/// The version of h2load, wrk and the like, or why there is none.
///
/// # Errors
/// When the program cannot be run.
pub(crate) fn version_of(program: &str, argument: &str) -> Result<String, String> {
    said(Path::new(program), argument).map(|text| version_in(&text))
}

/// What locked the Pingora that our program is built with.
const PINGORA_LOCK: &str = include_str!("../../pingora/Cargo.lock");

/// How long the breaker's token may take to be written.
const PATIENCE: Duration = Duration::from_secs(5);

/// The breaker writes its token before it listens, so it is there.
pub(crate) fn token_of(path: &Path) -> Result<String, LoadError> {
    crate::wait::until("the admin token", PATIENCE, Duration::from_millis(5), || {
        Ok(fs::read_to_string(path).ok())
    })
    .map(|text| text.trim().to_owned())
}

/// What a program says when asked for its version, on either channel.
fn said(program: &Path, argument: &str) -> Result<String, String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output();
    let output = output.map_err(|_| missing(program))?;
    let both = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&both).into_owned())
}

fn missing(program: &Path) -> String {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    format!("{name} is not installed")
}

/// The first word, or part of a word between slashes, that begins with a digit and has a point in it.
fn version_in(text: &str) -> String {
    let mut parts = text.split(|c: char| c.is_whitespace() || c == '/');
    let version =
        parts.find(|part| part.starts_with(|c: char| c.is_ascii_digit()) && part.contains('.'));
    version.unwrap_or("?").to_owned()
}

/// The version of a package in a `Cargo.lock`.
fn locked(lock: &str, package: &str) -> Option<String> {
    let (_, after) = lock.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    after.split('"').next().map(str::to_owned)
}

/// A directory that worker processes of another user may read.
pub(crate) fn readable_dir() -> Result<TempDir, LoadError> {
    let dir = TempDir::new().map_err(LoadError::io("make a directory"))?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))
        .map_err(LoadError::io("make a directory readable"))?;
    Ok(dir)
}

/// Two rates, a limit on offered calls that trips, one key with a rate, and a detector of faults on the route, which hears how every
/// call ended and how long it took. None ever acts. 10,000 idle connections need a higher bound than the default, and longer than 10 s.
fn breaker(data: SocketAddr, admin: SocketAddr, state: &Path, upstream: SocketAddr) -> String {
    let state = state.display().to_string();
    format!(
        r#"[listen]
data = "{data}"
admin = "{admin}"
workers = 2

[state]
dir = {state:?}

[bounds]
connections = 12000

[deadlines]
head = "60s"

[[groups]]
name = "g"
limit = [{{ rate = "1000000/s", burst = 100000 }}]

[[routes]]
name = "all"
group = "g"
match = {{ path = "/{{*rest}}" }}
upstream = "http://{upstream}"
limit = [{{ rate = "500000/s", burst = 50000 }}, {{ window = "100000/100ms", of = "offered", on_breach = "trip" }}]
detect = [{{ errors = 0.5 }}]

[[routes.keys]]
name = "client"
from = {{ header = "x-client" }}
missing = "refuse"
limit = [{{ rate = "400000/s", burst = 40000 }}]
"#
    )
}

/// Two threads, keep-alive on both sides, shared upstream connections, no log. `no strict-limits`: where descriptors
/// are bounded below twice `maxconn` it starts all the same.
fn haproxy(
    ports: Ports,
    upstream: SocketAddr,
    certificate: Option<&Certificate>,
    limits: bool,
) -> String {
    let tls = certificate.map_or_else(String::new, |certificate| {
        format!("    bind {} ssl crt {} ssl-min-ver TLSv1.3\n", ports.tls, certificate.file("pem"))
    });
    let (rules, table) = if limits { (HAPROXY_RULES, HAPROXY_KEYS) } else { ("", "") };
    format!(
        r"global
    nbthread 2
    maxconn 12000
    no strict-limits
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 30s
    timeout http-request 10s
    timeout http-keep-alive 60s
    option forwardfor
    http-reuse safe
frontend in
    bind {plain}
    bind {http2} proto h2
{tls}{rules}    default_backend origin
{table}backend origin
    server one {upstream}
",
        plain = ports.plain,
        http2 = ports.http2,
    )
}

const HAPROXY_RULES: &str = "    stick-table type ip size 64k expire 60s store http_req_rate(1s)
    http-request track-sc0 src
    http-request track-sc1 req.hdr(x-client) table keys
    http-request deny deny_status 429 if { sc0_http_req_rate gt 1000000 }
    http-request deny deny_status 429 if { sc1_http_req_rate(keys) gt 1000000 }
";

const HAPROXY_KEYS: &str = "backend keys
    stick-table type string len 64 size 64k expire 60s store http_req_rate(1s)
";

/// Two workers, keep-alive on both sides, buffers that hold 64 KiB, no log.
fn nginx(ports: Ports, upstream: SocketAddr, certificate: Option<&Certificate>) -> String {
    let tls = certificate.map_or_else(String::new, |certificate| {
        format!(
            "        listen {} ssl;\n        ssl_protocols TLSv1.3;\n        ssl_certificate {};\n        ssl_certificate_key {};\n",
            ports.tls,
            certificate.file("cert"),
            certificate.file("key")
        )
    });
    format!(
        r#"daemon off;
worker_processes 2;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 16384; }}
http {{
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    access_log off;
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    upstream origin {{
        server {upstream};
        keepalive 512;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {plain};
        listen {http2} http2;
{tls}        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_buffers 16 16k;
            proxy_max_temp_file_size 0;
        }}
    }}
}}
"#,
        plain = ports.plain,
        http2 = ports.http2,
    )
}

/// The origin: 2 bytes from the configuration, 1 KiB and 64 KiB from files that stay in its cache.
fn origin(addr: SocketAddr) -> String {
    format!(
        r#"daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 16384; }}
http {{
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    access_log off;
    default_type text/plain;
    sendfile on;
    open_file_cache max=16 inactive=1h;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    server {{
        listen {addr};
        root .;
        location = /2 {{ return 200 "ok"; }}
    }}
}}
"#
    )
}

/// Two workers; HTTP/1.1 and HTTP/2 on one port, told apart by the first bytes; X-Forwarded-For, no request ids, no log.
fn envoy(ports: Ports, upstream: SocketAddr, certificate: Option<&Certificate>) -> String {
    let address = |addr: SocketAddr| {
        serde_json::json!({ "socket_address": {
            "address": addr.ip().to_string(), "port_value": addr.port() } })
    };
    let manager = serde_json::json!({
        "@type": format!("{ENVOY}filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "in",
        "use_remote_address": true,
        "generate_request_id": false,
        "route_config": { "virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "origin" } }] }] },
        "http_filters": [{
            "name": "router",
            "typed_config": { "@type": format!("{ENVOY}filters.http.router.v3.Router") } }],
    });
    let chain = serde_json::json!({ "filters": [{ "name": "http", "typed_config": manager }] });
    let mut listeners = vec![serde_json::json!({
        "name": "plain", "address": address(ports.plain), "filter_chains": [chain] })];
    if let Some(certificate) = certificate {
        let mut chain = chain.clone();
        if let Some(chain) = chain.as_object_mut() {
            let socket = serde_json::json!({
                "name": "tls",
                "typed_config": {
                    "@type": format!("{ENVOY}transport_sockets.tls.v3.DownstreamTlsContext"),
                    "common_tls_context": {
                        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3",
                            "tls_maximum_protocol_version": "TLSv1_3" },
                        "tls_certificates": [{
                            "certificate_chain": { "filename": certificate.file("cert") },
                            "private_key": { "filename": certificate.file("key") } }] } } });
            chain.insert("transport_socket".to_owned(), socket);
        }
        listeners.push(serde_json::json!({
            "name": "tls", "address": address(ports.tls), "filter_chains": [chain] }));
    }
    let endpoint = serde_json::json!({ "endpoint": { "address": address(upstream) } });
    serde_json::json!({ "static_resources": {
        "listeners": listeners,
        "clusters": [{
            "name": "origin", "type": "STATIC", "connect_timeout": "2s",
            "load_assignment": { "cluster_name": "origin", "endpoints": [{
                "lb_endpoints": [endpoint] }] } }] } })
    .to_string()
}

/// How Envoy names the types of its extensions.
const ENVOY: &str = "type.googleapis.com/envoy.extensions.";

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the version is found in the words of each program.
    #[test]
    fn versions_are_read() {
        for (said, version) in [
            (
                "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/",
                "2.6.12-1+deb12u4",
            ),
            ("nginx version: nginx/1.22.1\n", "1.22.1"),
            (
                "\nenvoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL\n",
                "1.40.0",
            ),
            ("breaker-proxy 0.1.0\n", "0.1.0"),
            ("h2load nghttp2/1.52.0\n", "1.52.0"),
            ("wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012 Will Glozer\n", "4.1.0-3+b2"),
            ("nothing of the kind", "?"),
        ] {
            assert_eq!(version_in(said), version);
        }
        assert!(locked(PINGORA_LOCK, "pingora-proxy").is_some());
        assert_eq!(locked(PINGORA_LOCK, "no-such-package"), None);
    }

    /// Goal: a rival that is not installed is told apart by name, before anything is started.
    #[test]
    fn a_missing_program_is_named() {
        let programs =
            Programs { breaker: "/nowhere/breaker-proxy".into(), dir: "/nowhere".into() };
        for rival in [Rival::Breaker, Rival::Envoy, Rival::Pingora] {
            let why = rival.version(&programs).unwrap_err();
            assert!(why.ends_with(" is not installed"), "{why}");
        }
    }

    /// Goal: the breaker's configuration is one it accepts, whatever its checks may become.
    #[test]
    fn the_breaker_accepts_its_rules() {
        let any = SocketAddr::from(([127, 0, 0, 1], 4_711));
        let other = SocketAddr::from(([127, 0, 0, 1], 4_712));
        let upstream = SocketAddr::from(([127, 0, 0, 1], 4_713));
        let text = breaker(any, other, Path::new("/tmp/state"), upstream);
        let config = breaker_proxy::config::check::load(&text, "rivals", &|_| None).unwrap();
        let route = &config.policy.routes[0].scope;
        assert_eq!((route.limits.len(), route.keys.len(), route.detectors.len()), (2, 1, 1));
    }

    /// Goal: only what has TLS gets a listener for it, and only the HAProxy with limits counts.
    #[test]
    fn configurations_differ_where_they_should() {
        let any = SocketAddr::from(([127, 0, 0, 1], 4_711));
        let tls = SocketAddr::from(([127, 0, 0, 1], 4_712));
        let ports = Ports { plain: any, http2: any, tls };
        let certificate = Certificate { dir: TempDir::new().unwrap() };
        for text in
            [haproxy(ports, any, None, true), nginx(ports, any, None), envoy(ports, any, None)]
        {
            assert!(!text.contains("4712"), "{text}");
        }
        let with = Some(&certificate);
        for text in
            [haproxy(ports, any, with, true), nginx(ports, any, with), envoy(ports, any, with)]
        {
            assert!(text.contains("4712"), "{text}");
        }
        assert!(haproxy(ports, any, None, true).contains("stick-table"));
        assert!(!haproxy(ports, any, None, false).contains("stick-table"));
    }
}
