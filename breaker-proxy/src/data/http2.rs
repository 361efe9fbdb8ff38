//! An HTTP/2 client connection; it looks into no request.

use super::channel::Channel;
use super::front::Seat;
use super::handle::handle;
use super::peer::Peer;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// Serves a connection to its end.
pub async fn serve(seat: &Seat, channel: Channel, peer: Rc<Peer>) {
    let worker = &seat.worker;
    let bounds = &worker.plane.bounds;
    let service = service_fn(|request| {
        let (worker, peer) = (Rc::clone(worker), Rc::clone(&peer));
        async move { Ok::<_, Infallible>(handle(worker, peer, request).await) }
    });
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(bounds.streams)
        .max_header_list_size(bounds.head_bytes)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    let mut conn = pin!(builder.serve_connection(TokioIo::new(channel), service));
    let mut asked = false;
    // An error here is the client's: hyper has ended the streams, and each call its account.
    let _ended = poll_fn(|cx| {
        if seat.ending(cx) && !asked {
            asked = true;
            conn.as_mut().graceful_shutdown();
        }
        conn.as_mut().poll(cx)
    })
    .await;
}

/// Runs HTTP/2 streams as tasks of the same thread.
#[derive(Clone, Copy, Debug)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
