//! The small origin that is built in, for trying things out: it answers everything, and says so; no product stands on it.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, header};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Sees the fields of every request.
pub type Watch = Arc<dyn Fn(&HeaderMap) + Send + Sync>;

/// A running origin; it ends when this value is dropped.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    served: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Origin {
    /// Starts on a free port of the loopback address.
    ///
    /// # Errors
    /// No port or no thread.
    pub fn start() -> io::Result<Origin> {
        Origin::start_with(Arc::new(|_| {}))
    }

    /// Starts, and shows every request's head to `watch` as it arrives.
    ///
    /// # Errors
    /// No port or no thread.
    pub fn start_with(watch: Watch) -> io::Result<Origin> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let served = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let counter = Arc::clone(&served);
        let thread =
            std::thread::Builder::new().name("breaker-origin".into()).spawn(move || {
                runtime.block_on(async move {
                    let Ok(listener) = TcpListener::from_std(listener) else { return };
                    tokio::select! {
                        () = accept(listener, counter, watch) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Origin { address, served, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests it has answered.
    #[must_use]
    pub fn served(&self) -> u64 {
        // ordering: relaxed, a number on its own.
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, served: Arc<AtomicU64>, watch: Watch) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: do not spin.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (served, watch) = (Arc::clone(&served), Arc::clone(&watch));
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                watch(request.headers());
                let served = Arc::clone(&served);
                async move { Ok::<_, Infallible>(answer(&request, &served)) }
            });
            let _ended =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(request: &Request<Incoming>, served: &AtomicU64) -> Response<Full<Bytes>> {
    // ordering: relaxed, a number on its own.
    let number = served.fetch_add(1, Ordering::Relaxed) + 1;
    let path = request.uri().path();
    let text = format!(
        "hello from the built-in origin: {} {path} was number {number}\n",
        request.method()
    );
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}
