//! A small stand-in for a proxy, right or wrong at will, that shows that the tests themselves see what they should;
//! it is slow and simple, for tests only, and no part of any verdict about the real proxy.

use crate::admin::Accounts;
use crate::proxy::Proxy;
use crate::wire::{Decoder, Event, Head, Side};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Nothing.
    None,
    /// Each connection looks at the gates only at every 64th request, so a kill is seen late.
    StaleGates,
    /// It counts what became of a call only 99 times of 100.
    Miscounts,
}

/// A running stand-in; its threads end with the test's process or with their connections.
pub(crate) struct StandIn {
    house: Arc<House>,
    data: SocketAddr,
    admin: SocketAddr,
}

struct House {
    upstream: SocketAddr,
    flaw: Flaw,
    /// Held for reading from the look at the gates to the end of the write to the upstream: so a kill, which takes
    /// it for writing, is in force and silent once it has it.
    gates: RwLock<BTreeSet<String>>,
    accounts: Mutex<Accounts>,
}

impl StandIn {
    /// Starts one on ports of the system's choice.
    pub(crate) fn start(upstream: SocketAddr, flaw: Flaw) -> StandIn {
        let house = Arc::new(House {
            upstream,
            flaw,
            gates: RwLock::default(),
            accounts: Mutex::default(),
        });
        let data = accept(&house, |house, stream| {
            let _ = house.serve(stream);
        });
        let admin = accept(&house, |house, stream| {
            let _ = house.order(stream);
        });
        StandIn { house, data, admin }
    }

    /// As the tests see it.
    pub(crate) fn proxy(&self) -> Proxy {
        Proxy::external(self.data, self.admin, "token")
    }

    /// Its accounts.
    pub(crate) fn accounts(&self) -> Accounts {
        *self.house.accounts.lock()
    }
}

fn accept(house: &Arc<House>, serve: fn(&House, TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let house = Arc::clone(house);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let house = Arc::clone(&house);
            std::thread::spawn(move || serve(&house, stream));
        }
    });
    addr
}

/// The scopes a request lies in, by its path and key; `None` where there is no route.
fn lineage(head: &Head) -> Option<Vec<String>> {
    let path = head.first_line.split(' ').nth(1)?;
    let (group, route) = match path.get(1..)?.split('/').next()? {
        "t" => ("h", "t"),
        route @ ("r" | "s" | "free" | "limited" | "keyed") => ("g", route),
        _ => return None,
    };
    let mut scopes = vec!["/".to_owned(), format!("/{group}"), format!("/{group}/{route}")];
    if let Some(client) = &head.client {
        scopes.push(format!("/{group}/{route}/client={client}"));
    }
    Some(scopes)
}

const PROBLEM: &str = "content-type: application/problem+json\r\ncontent-length: 2\r\n\r\n{}";

impl House {
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut upstream = TcpStream::connect(self.upstream)?;
        upstream.set_nodelay(true)?;
        let mut answers = Decoder::new(Side::Response);
        let mut seen = BTreeSet::new();
        let mut turn = 0_u64;
        messages(&mut client.try_clone()?, Side::Request, |head, bytes| {
            self.accounts.lock().offered += 1;
            let (status, count): (&str, fn(&mut Accounts) -> &mut u64) = 'answer: {
                if head.first_line.contains("%2F") || head.first_line.contains("/keyed/c") {
                    break 'answer ("400 Bad Request", |accounts| &mut accounts.invalid);
                }
                let Some(scopes) = lineage(head) else {
                    break 'answer ("404 Not Found", |accounts| &mut accounts.unrouted);
                };
                let gates = self.gates.read();
                turn += 1;
                if self.flaw != Flaw::StaleGates || turn.is_multiple_of(64) {
                    seen = gates.clone();
                }
                if scopes.iter().any(|scope| seen.contains(scope)) {
                    break 'answer ("503 Service Unavailable", |accounts| &mut accounts.halted);
                }
                if head.first_line.contains("/limited/") && turn.is_multiple_of(2) {
                    break 'answer ("429 Too Many Requests", |accounts| &mut accounts.throttled);
                }
                upstream.write_all(bytes)?;
                drop(gates);
                answer(&mut upstream, &mut answers)?;
                ("200 OK", |accounts| &mut accounts.forwarded)
            };
            // Counted before it is answered, so that who has the answer finds it counted.
            if self.flaw != Flaw::Miscounts || !turn.is_multiple_of(100) {
                *count(&mut self.accounts.lock()) += 1;
            }
            client.write_all(format!("HTTP/1.1 {status}\r\n").as_bytes())?;
            match status {
                "200 OK" => client.write_all(b"content-length: 2\r\n\r\nok"),
                _ => client.write_all(PROBLEM.as_bytes()),
            }
        })
    }

    fn order(&self, mut client: TcpStream) -> io::Result<()> {
        messages(&mut client.try_clone()?, Side::Request, |head, _| {
            let path = head.first_line.split(' ').nth(1).unwrap_or_default().to_owned();
            let mut body = serde_json::json!({ "in_force": true, "silent": true, "durable": true });
            for verb in ["kill", "trip"] {
                if let Some(scope) = path.strip_prefix(&format!("/v1/{verb}")) {
                    self.gates.write().insert(scope.to_owned());
                }
            }
            for verb in ["lift", "reset"] {
                if let Some(scope) = path.strip_prefix(&format!("/v1/{verb}")) {
                    self.gates.write().remove(scope);
                }
            }
            if path == "/v1/status" {
                let now = *self.accounts.lock();
                body = serde_json::json!({ "accounts": {
                    "offered": now.offered, "forwarded": now.forwarded, "throttled": now.throttled,
                    "halted": now.halted, "invalid": now.invalid, "unrouted": now.unrouted,
                    "failed": now.failed, "in_flight": now.in_flight } });
            }
            let body = body.to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            client.write_all(format!("{head}{body}").as_bytes())
        })
    }
}

/// Calls `then` with the head and all the bytes of each message until the stream ends.
fn messages(
    from: &mut TcpStream,
    side: Side,
    mut then: impl FnMut(&Head, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut decoder = Decoder::new(side);
    let mut buffer = vec![0; 64 * 1024];
    let mut whole = Vec::new();
    let mut last = Head::default();
    loop {
        let bytes = from.read(&mut buffer)?;
        if bytes == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..bytes];
        loop {
            let (used, event) = decoder.push(rest).map_err(io::Error::other)?;
            whole.extend_from_slice(&rest[..used]);
            rest = &rest[used..];
            match event {
                Event::More => break,
                Event::Head(head) => last = head,
                Event::End => {
                    then(&last, &whole)?;
                    whole.clear();
                }
            }
        }
    }
}

/// Reads one answer.
fn answer(from: &mut TcpStream, decoder: &mut Decoder) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        let bytes = from.read(&mut buffer)?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = &buffer[..bytes];
        loop {
            let (used, event) = decoder.push(rest).map_err(io::Error::other)?;
            rest = &rest[used..];
            match event {
                Event::More => break,
                Event::Head(_) => {}
                Event::End => return Ok(()),
            }
        }
    }
}
