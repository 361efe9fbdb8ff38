//! The HTTP/2 side of the origin: what the `h2` crate reads passes through here frame by frame, so that each request is noted with the time
//! at which the first byte of its HEADERS frame came; it answers 200 to everything.
//!
//! A stalled origin gives room for bodies late, and reads its socket all the same: what lies unread in the kernel is put together with what
//! comes later, and has its stamp.

use crate::intake::Stamp;
use crate::origin::{Arrival, Log, Manner, Stall};
use crate::stamp;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Bytes that begin a connection (RFC 9113, 3.4), and each frame (4.1).
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;

const HEADERS: u8 = 1;

/// Where the requests of one connection stand in the log.
type Places = Arc<Mutex<HashMap<u32, Option<usize>>>>;

/// A connection, read frame by frame.
struct Frames<S> {
    stream: S,
    at: Stamp,
    log: Arc<Log>,
    places: Places,
    preface: usize,
    head: [u8; FRAME_HEAD],
    have: usize,
    /// Bytes of the frame that are still to come, once its head is whole.
    left: usize,
    of: u32,
    /// The highest stream so far.
    last: u32,
    /// The first byte of the frame's head.
    first: Arrival,
}

impl<S> Frames<S> {
    fn wants(&self) -> usize {
        match (self.preface, self.have) {
            (0, FRAME_HEAD) => self.left,
            (0, have) => FRAME_HEAD.saturating_sub(have),
            (preface, _) => preface,
        }
    }

    fn pass(&mut self, bytes: &[u8]) {
        let now = stamp::wall();
        let at = self.at.last();
        if self.preface > 0 {
            self.preface = self.preface.saturating_sub(bytes.len());
        } else if self.have < FRAME_HEAD {
            if self.have == 0 {
                let begun = self.at.first();
                let (first, last) = (begun.unwrap_or(now), at.unwrap_or(now));
                let stamped = begun.is_some();
                self.first = Arrival { first, last, read: now, stamped, ..Arrival::default() };
            }
            let end = self.have.saturating_add(bytes.len());
            if let Some(place) = self.head.get_mut(self.have..end) {
                place.copy_from_slice(bytes);
            }
            self.have = end;
            if end == FRAME_HEAD {
                self.begin();
            }
        } else {
            self.left = self.left.saturating_sub(bytes.len());
            let place = self.places.lock().get(&self.of).copied().flatten();
            self.log.change(place, |arrival| arrival.last = at.unwrap_or(now));
        }
        if self.have == FRAME_HEAD && self.left == 0 {
            self.have = 0;
        }
    }

    fn begin(&mut self) {
        let [a, b, c, kind, _, d, e, f, g] = self.head;
        self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.of = u32::from_be_bytes([d & 0x7f, e, f, g]);
        if kind == HEADERS && self.of > self.last {
            self.last = self.of;
            let place = self.log.open(self.first);
            self.places.lock().insert(self.of, place);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Frames<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        let most = own.wants().min(buffer.remaining());
        let into = buffer.initialize_unfilled_to(most);
        let mut part = ReadBuf::new(into);
        ready!(Pin::new(&mut own.stream).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        own.pass(part.filled());
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Frames<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// One answer in so many ends its connection: fewer than with HTTP/1.1, since it carries many others.
const LEAVE_EVERY: usize = 64;

/// Serves a connection to its end.
///
/// # Errors
/// What ended it, other than its client's leave.
pub(crate) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    at: Stamp,
    log: Arc<Log>,
    manner: Manner,
) -> Result<(), h2::Error> {
    let places = Places::default();
    let frames = Frames {
        stream,
        at,
        log: Arc::clone(&log),
        places: Arc::clone(&places),
        preface: PREFACE,
        head: [0; FRAME_HEAD],
        have: 0,
        left: 0,
        of: 0,
        last: 0,
        first: Arrival::default(),
    };
    let leave = Arc::new(Notify::new());
    let mut connection = h2::server::handshake(frames).await?;
    loop {
        let next = tokio::select! {
            next = connection.accept() => next,
            () = leave.notified() => {
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(next) = next else { return Ok(()) };
        let (request, respond) = next?;
        let place = places.lock().remove(&u32::from(respond.stream_id())).flatten();
        places.lock().insert(u32::from(respond.stream_id()), place);
        let (log, leave) = (Arc::clone(&log), Arc::clone(&leave));
        tokio::spawn(async move {
            // A stream that was reset has its arrival in the log already.
            let _ = answer(request, respond, &log, place, manner.stall).await;
            let every = manner.close_every.map(|every| every.saturating_mul(LEAVE_EVERY));
            if every.zip(place).is_some_and(|(every, place)| place.is_multiple_of(every)) {
                leave.notify_one();
            }
        });
    }
}

async fn answer(
    request: hyper::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    log: &Log,
    place: Option<usize>,
    stall: Option<Stall>,
) -> Result<(), h2::Error> {
    let id = request.headers().get("x-id").and_then(|id| id.to_str().ok()?.parse().ok());
    log.change(place, |arrival| arrival.id = id);
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        if let Some(stall) = stall {
            tokio::time::sleep(stall.pause).await;
        }
        body.flow_control().release_capacity(length)?;
    }
    log.change(place, |arrival| arrival.whole = true);
    let mut sending = respond.send_response(hyper::Response::new(()), false)?;
    sending.send_data(Bytes::from_static(b"ok"), true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Load, Mix, Plan, Target};
    use crate::origin::{Origin, Speech};
    use std::net::SocketAddr;
    use std::time::Duration;

    /// Goal: requests over HTTP/2 are noted once each, by their ids, at their first byte and as whole, and answered.
    #[test]
    fn requests_over_http2_are_noted() {
        const TARGETS: &[Target] = &[Target { path: "/a", client: Some("a") }];
        let speech = Speech { vault: None, http2: true };
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let origin = Origin::start_as(any, Manner::default(), &speech).unwrap();
        let mix = Mix { plain: 0, body: 0, pipelined: 0, streams: 2 };
        let plan =
            Plan { addr: origin.addr(), targets: TARGETS, mix, body: 0, batch: 1, streams: 4 };
        let load = Load::start(plan).unwrap();
        crate::wait::until("answers", Duration::from_secs(20), Duration::from_millis(1), || {
            Ok(load.record().connections().iter().all(|one| one.good() >= 50).then_some(()))
        })
        .unwrap();
        let (fates, _) = load.record().take();
        drop(load);
        assert!(fates.iter().all(|fate| fate.status == 200), "{fates:?}");
        let arrivals = origin.log().from(0);
        let mut ids: Vec<u64> = arrivals.iter().filter_map(|arrival| arrival.id).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert!(ids.len() == all && all >= fates.len(), "{all} ids, {} answers", fates.len());
        let earliest = fates.iter().map(|fate| fate.sent).min().unwrap();
        assert!(
            arrivals
                .iter()
                .all(|one| one.stamped && earliest <= one.first && one.first <= one.read)
        );
        assert!(arrivals.iter().filter(|one| one.whole).count() >= fates.len());
    }
}
