//! HTTP/2 upstreams: one that the test plays by hand, frame for frame, and one that answers by itself and remembers.

use super::LIMIT;
use super::upstream::Upstream;
use super::wire::Wire;
use bytes::Bytes;
use h2::server::SendResponse;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Request, Response};
use parking_lot::Mutex;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW: u8 = 8;

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Came {
    pub(crate) kind: u8,
    pub(crate) ends: bool,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// The upstream's end of a connection.
pub(crate) struct Far {
    pub(crate) wire: Wire,
}

impl Far {
    /// The next who connects, told these settings: name and value.
    pub(crate) fn accept(upstream: &Upstream, settings: &[(u16, u32)]) -> Far {
        let mut far = Far::greet(upstream);
        far.settle(settings);
        far
    }

    /// The next who connects; it is told nothing yet.
    pub(crate) fn greet(upstream: &Upstream) -> Far {
        let mut wire = upstream.accept();
        assert_eq!(wire.exactly(24).unwrap(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        Far { wire }
    }

    pub(crate) fn settle(&mut self, settings: &[(u16, u32)]) {
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        self.send(SETTINGS, 0, 0, &payload);
    }

    pub(crate) fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        self.wire.send_bytes(&bytes);
    }

    /// The next frame of any kind; `None` at the end of the connection.
    pub(crate) fn any(&mut self) -> Option<Came> {
        let head = self.wire.exactly(9).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let payload = self.wire.exactly(usize::try_from(length).unwrap()).ok()?;
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        let ends = matches!(head[3], DATA | HEADERS) && head[4] & 1 != 0;
        Some(Came { kind: head[3], ends, stream, payload })
    }

    /// The next frame of a stream that is no word about room.
    pub(crate) fn try_next(&mut self) -> Option<Came> {
        loop {
            let came = self.any()?;
            if came.stream != 0 && came.kind != WINDOW {
                return Some(came);
            }
        }
    }

    pub(crate) fn next(&mut self) -> Came {
        self.try_next().expect("the connection ended")
    }

    /// The stream of the next request, which must begin now.
    pub(crate) fn request(&mut self) -> u32 {
        let came = self.next();
        assert_eq!(came.kind, HEADERS, "{came:?}");
        came.stream
    }

    /// 200, and perhaps an end.
    pub(crate) fn head(&mut self, stream: u32, ends: bool) {
        self.send(HEADERS, 4 | u8::from(ends), stream, &[0x88]);
    }

    pub(crate) fn data(&mut self, stream: u32, data: &[u8], ends: bool) {
        self.send(DATA, u8::from(ends), stream, data);
    }

    pub(crate) fn reply(&mut self, stream: u32, words: &str) {
        self.head(stream, false);
        self.data(stream, words.as_bytes(), true);
    }

    pub(crate) fn reset(&mut self, stream: u32, code: u32) {
        self.send(RESET, 0, stream, &code.to_be_bytes());
    }

    /// No stream after `last` was or will be looked at.
    pub(crate) fn go_away(&mut self, last: u32) {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend([0; 4]);
        self.send(GOAWAY, 0, 0, &payload);
    }

    pub(crate) fn room(&mut self, stream: u32, bytes: u32) {
        self.send(WINDOW, 0, stream, &bytes.to_be_bytes());
    }
}

/// What is answered: status, fields, body, trailers.
#[derive(Default)]
pub(crate) struct Said {
    pub(crate) fields: Vec<(&'static str, &'static str)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<Vec<(&'static str, &'static str)>>,
}

/// What was heard.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) head: Arc<Parts>,
    pub(crate) body: Vec<u8>,
}

/// An HTTP/2 server that answers by itself.
pub(crate) struct Grove {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
    connections: Arc<Mutex<usize>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Grove {
    /// Answers every request with what `answer` makes of it.
    pub(crate) fn start(answer: impl Fn(&Heard) -> Said + Send + Sync + 'static) -> Grove {
        let (heard, connections) = (Arc::<Mutex<Vec<Heard>>>::default(), Arc::default());
        let (stop, stopped) = oneshot::channel();
        let (up, bound) = mpsc::channel();
        let (list, count): (_, Arc<Mutex<usize>>) = (Arc::clone(&heard), Arc::clone(&connections));
        let answer = Arc::new(answer);
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            let serve = async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                up.send(listener.local_addr().unwrap()).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    *count.lock() += 1;
                    let (list, answer) = (Arc::clone(&list), Arc::clone(&answer));
                    tokio::spawn(async move {
                        let Ok(mut connection) = h2::server::handshake(stream).await else {
                            return;
                        };
                        while let Some(Ok((request, respond))) = connection.accept().await {
                            let (list, answer) = (Arc::clone(&list), Arc::clone(&answer));
                            tokio::spawn(async move {
                                let heard = hear(request).await?;
                                let said = answer(&heard);
                                list.lock().push(heard);
                                say(respond, said).await
                            });
                        }
                    });
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    () = serve => {}
                    _ = stopped => {}
                }
            });
        });
        let address = bound.recv_timeout(LIMIT).unwrap();
        Grove { address, heard, connections, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        *self.connections.lock()
    }
}

impl Drop for Grove {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn hear(request: Request<h2::RecvStream>) -> Option<Heard> {
    let (head, mut body) = request.into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        body.flow_control().release_capacity(data.len()).ok()?;
        bytes.extend_from_slice(&data);
    }
    Some(Heard { head: Arc::new(head), body: bytes })
}

async fn say(mut respond: SendResponse<Bytes>, said: Said) -> Option<()> {
    let mut response = Response::builder();
    for (name, value) in &said.fields {
        response = response.header(*name, *value);
    }
    let whole = said.body.is_empty() && said.trailers.is_none();
    let mut out = respond.send_response(response.body(()).ok()?, whole).ok()?;
    let mut left = Bytes::from(said.body);
    while !left.is_empty() {
        out.reserve_capacity(left.len());
        let room = poll_fn(|cx| out.poll_capacity(cx)).await?.ok()?;
        let part = left.split_to(room.min(left.len()));
        out.send_data(part, left.is_empty() && said.trailers.is_none()).ok()?;
    }
    if let Some(trailers) = said.trailers {
        let mut fields = HeaderMap::new();
        for (name, value) in trailers {
            fields.append(name, value.parse().ok()?);
        }
        out.send_trailers(fields).ok()?;
    }
    Some(())
}
