//! Upstreams: one that the test plays by hand, connection by connection, and one that answers by itself and remembers; neither
//! knows anything of the proxy.

use super::LIMIT;
use super::wire::{Answer, FULL_AFTER, Wire};
use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::Duration;

/// For whoever has something else to look at.
const SOON: Duration = Duration::from_millis(20);

/// A listener whose connections are handed on as they come.
pub(crate) struct Upstream {
    address: SocketAddr,
    streams: Receiver<TcpStream>,
    acceptor: Acceptor,
}

impl Upstream {
    pub(crate) fn start() -> Upstream {
        let (send, streams) = mpsc::channel();
        let acceptor = Acceptor::start(move |stream| drop(send.send(stream)));
        Upstream { address: acceptor.address, streams, acceptor }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection.
    pub(crate) fn accept(&self) -> Wire {
        Wire::new(self.streams.recv_timeout(LIMIT).expect("nobody connected to the upstream"))
    }

    /// The next connection, if it comes soon.
    pub(crate) fn try_accept(&self) -> Option<Wire> {
        self.streams.recv_timeout(SOON).ok().map(Wire::new)
    }

    /// The next connection, as the system gave it.
    pub(crate) fn accept_stream(&self) -> TcpStream {
        self.streams.recv_timeout(LIMIT).expect("nobody connected to the upstream")
    }

    /// The same, if it comes soon.
    pub(crate) fn try_accept_stream(&self) -> Option<TcpStream> {
        self.streams.recv_timeout(SOON).ok()
    }

    /// Nobody has connected whom [`Upstream::accept`] has not given out.
    pub(crate) fn assert_nobody(&self) {
        assert!(self.streams.try_recv().is_err(), "somebody connected to the upstream");
    }

    /// The port answers no more.
    pub(crate) fn close(self) -> SocketAddr {
        drop(self.acceptor);
        self.address
    }
}

/// An upstream that answers by itself.
pub(crate) struct Serving {
    acceptor: Acceptor,
    heard: Arc<Mutex<Vec<Answer>>>,
    connections: Arc<Mutex<usize>>,
}

impl Serving {
    /// Answers every request with what `answer` makes of it.
    pub(crate) fn start(answer: impl Fn(&Answer) -> String + Send + Sync + 'static) -> Serving {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(0));
        let (list, count, answer) =
            (Arc::clone(&heard), Arc::clone(&connections), Arc::new(answer));
        let acceptor = Acceptor::start(move |stream| {
            *count.lock() += 1;
            let (list, answer) = (Arc::clone(&list), Arc::clone(&answer));
            // It ends with its connection.
            std::thread::spawn(move || {
                let mut wire = Wire::new(stream);
                while let Some(request) = wire.try_request() {
                    let text = answer(&request);
                    list.lock().push(request);
                    wire.send(&text);
                }
            });
        });
        Serving { acceptor, heard, connections }
    }

    /// Answers 200 and `ok`.
    pub(crate) fn ok() -> Serving {
        Serving::start(|_| "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.acceptor.address
    }

    /// All requests so far, whole or broken off.
    pub(crate) fn heard(&self) -> Vec<Answer> {
        self.heard.lock().clone()
    }

    /// Whom it heard of, by target.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.heard.lock().iter().map(|request| request.head.word(1).to_owned()).collect()
    }

    pub(crate) fn connections(&self) -> usize {
        *self.connections.lock()
    }
}

/// A listener that lets nobody in: who connects waits until there is room.
pub(crate) struct FullQueue {
    pub(crate) address: SocketAddr,
    socket: Socket,
    queue: Vec<TcpStream>,
}

impl FullQueue {
    pub(crate) fn new() -> FullQueue {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut queue = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, FULL_AFTER) {
            queue.push(stream);
            assert!(queue.len() < 100, "a queue without end");
        }
        FullQueue { address, socket, queue }
    }

    /// Takes those out that filled the queue; who waits comes next.
    pub(crate) fn make_room(self) -> TcpListener {
        let listener = TcpListener::from(self.socket);
        for _ in &self.queue {
            listener.accept().unwrap();
        }
        listener
    }
}

/// A thread that accepts until it is dropped.
struct Acceptor {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    fn start(take: impl Fn(TcpStream) + Send + 'static) -> Acceptor {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                // ordering: relaxed, the connection that wakes us comes after it.
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                if let Ok(stream) = stream {
                    take(stream);
                }
            }
        });
        Acceptor { address, stop, thread: Some(thread) }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // ordering: relaxed, see above.
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
