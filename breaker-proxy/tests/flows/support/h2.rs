//! An HTTP/2 client in clear text whose streams a test plays one by one; it hides no end.

use super::LIMIT;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::mpsc as events;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};

/// One connection, driven by a thread of its own.
pub(crate) struct H2 {
    handle: Handle,
    sender: SendRequest<Feed>,
    ended: events::Receiver<()>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What comes on a stream.
#[derive(Debug)]
pub(crate) enum Event {
    Head(StatusCode, HeaderMap),
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    Broken,
}

/// One stream.
pub(crate) struct Stream {
    events: events::Receiver<Event>,
    feed: Option<mpsc::UnboundedSender<Bytes>>,
}

/// A request's body that is fed by hand.
pub(crate) struct Feed(Option<mpsc::UnboundedReceiver<Bytes>>);

/// An HTTP/2 client that asks for one thing and then neither reads nor makes room.
pub(crate) fn h2_get() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // Empty SETTINGS; then HEADERS of stream 1 with END_STREAM and END_HEADERS: GET, http, `/`, `:authority: a`.
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    let block = [0x82, 0x86, 0x84, 0x41, 0x01, b'a'];
    bytes.extend([0, 0, 6, 1, 5, 0, 0, 0, 1]);
    bytes.extend(block);
    bytes
}

/// An HTTP/2 client that starts a POST and sends `half` of its body on stream 1.
pub(crate) fn h2_half_upload() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // As in `h2_get`, but POST, and the stream does not end here.
    let block = [0x83, 0x86, 0x84, 0x41, 0x01, b'a'];
    bytes.extend([0, 0, 6, 1, 4, 0, 0, 0, 1]);
    bytes.extend(block);
    bytes.extend([0, 0, 4, 0, 0, 0, 0, 0, 1]);
    bytes.extend(b"half");
    bytes
}

/// Takes stream 1 back, with a code of RFC 9113, 7.
pub(crate) fn h2_reset(code: u8) -> [u8; 13] {
    [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, code]
}

/// Makes room for so many bytes on a stream, or with 0 on the connection.
pub(crate) fn h2_window(stream: u8, room: u32) -> Vec<u8> {
    let mut bytes = vec![0, 0, 4, 8, 0, 0, 0, 0, stream];
    bytes.extend(room.to_be_bytes());
    bytes
}

impl H2 {
    pub(crate) fn connect(address: SocketAddr) -> H2 {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (up, made) = events::channel();
        let (down, ended) = events::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                let stream = tokio::net::TcpStream::connect(address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                let io = TokioIo::new(stream);
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), io).await.unwrap();
                up.send(sender).unwrap();
                tokio::select! {
                    _ = connection => drop(down.send(())),
                    _ = stopped => {}
                }
            });
        });
        let sender = made.recv_timeout(LIMIT).unwrap();
        H2 { handle, sender, ended, stop: Some(stop), thread: Some(thread) }
    }

    /// Starts a stream; with `streams_up`, its body is fed by hand and must be ended.
    pub(crate) fn start(&self, request: Request<()>, streams_up: bool) -> Stream {
        let (send, events) = events::channel();
        let (feed, fed) = mpsc::unbounded_channel();
        let (feed, fed) = if streams_up { (Some(feed), Some(fed)) } else { (None, None) };
        let request = request.map(|()| Feed(fed));
        let mut sender = self.sender.clone();
        self.handle.spawn(async move {
            let answer = match sender.send_request(request).await {
                Ok(answer) => answer,
                Err(_) => return drop(send.send(Event::Broken)),
            };
            let (head, mut body) = answer.into_parts();
            drop(send.send(Event::Head(head.status, head.headers)));
            while let Some(frame) = body.frame().await {
                match frame.map(Frame::into_data) {
                    Ok(Ok(data)) => drop(send.send(Event::Data(data))),
                    Ok(Err(frame)) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        drop(send.send(Event::Trailers(trailers)));
                    }
                    Err(_) => return drop(send.send(Event::Broken)),
                }
            }
            drop(send.send(Event::End));
        });
        Stream { events, feed }
    }

    /// A GET of a path.
    pub(crate) fn get(&self, path: &str) -> Stream {
        let uri = format!("http://a{path}");
        self.start(Request::builder().uri(uri).body(()).unwrap(), false)
    }

    /// The connection is still there.
    pub(crate) fn assert_up(&self) {
        assert!(self.ended.try_recv().is_err(), "the connection ended");
        assert!(!self.sender.is_closed());
    }
}

impl Drop for H2 {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Stream {
    pub(crate) fn next(&self) -> Event {
        self.events.recv_timeout(LIMIT).expect("nothing came on the stream")
    }

    pub(crate) fn head(&self) -> (StatusCode, HeaderMap) {
        match self.next() {
            Event::Head(status, headers) => (status, headers),
            other => panic!("no head but {other:?}"),
        }
    }

    /// All data up to the end, and whether that was a good one.
    pub(crate) fn rest(&self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            match self.next() {
                Event::Data(data) => body.extend_from_slice(&data),
                Event::Trailers(_) => {}
                Event::End => return (body, true),
                Event::Broken => return (body, false),
                Event::Head(..) => panic!("a second head"),
            }
        }
    }

    /// A whole answer.
    pub(crate) fn answer(&self) -> (u16, Vec<u8>) {
        let (status, _) = self.head();
        let (body, whole) = self.rest();
        assert!(whole, "the stream broke off");
        (status.as_u16(), body)
    }

    pub(crate) fn feed(&self, data: &[u8]) {
        self.feed.as_ref().unwrap().send(Bytes::copy_from_slice(data)).unwrap();
    }

    pub(crate) fn end(&mut self) {
        self.feed = None;
    }
}

impl Body for Feed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.0 {
            Some(fed) => fed.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data)))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}
